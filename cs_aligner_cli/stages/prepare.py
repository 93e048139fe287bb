"""prepare: from a manifest to the two tables, with a report of counts, duplicates and what was dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, TooManyBadItems
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.caption_lengths import caption_lengths, context_length, open_clip_counter
from cs_aligner_cli.data.collector import Source, check_images
from cs_aligner_cli.data.drawn_splits import draw_splits
from cs_aligner_cli.data.duplicates import near_images, pair_codes, repeated, shared_captions
from cs_aligner_cli.data.manifest import STORED_FEATURES, DrawnManifest, Manifest, load_manifest, manifest_path
from cs_aligner_cli.data.manifest_base import OnDisk
from cs_aligner_cli.data.prepared import PreparedData, Split, caption_texts, hold_out, write_prepared
from cs_aligner_cli.data.repack import write_shards
from cs_aligner_cli.data.sources import SOURCES, source_files
from cs_aligner_cli.data.stated_checksums import check_checksums
from cs_aligner_cli.data.tidy import linked, unify_splits, without_partner
from cs_aligner_cli.encoders.availability import (
    brings_weights,
    refuse_unknown_model,
    require_encoder_of,
    waits_for_hub,
    weight_files,
)
from cs_aligner_cli.files.artifact import RECORD, Artifact, Build, file_stamps, write_json
from cs_aligner_cli.files.locks import HOLDER, LOCK
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import draw_pairing, unpaired_splits
from cs_aligner_cli.stages.making import Made, joined, make

REPORT = "report.json"
# The whole list of bad items is in the report; a summary shows the first few.
_SHOWN = 5
# What can be bad, and what is told of even where none is.
KINDS = ("image", "caption", "row", "member", "shard")
_ALWAYS_TOLD = ("images", "captions")


def prepare(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Make the prepared data set of a recipe; return its summary with ``status`` done or fresh.

    With it come, where the recipe's text tower has open_clip's tokenizer, ``caption_lengths``, and where it asks for
    them the WebDataset ``shards``. Raises InputError if the manifest or its files are wrong or nothing usable is left,
    TooManyBadItems (after the output is in place) if more items were bad than ``data.max_bad_fraction``.
    """
    layout, manifest = Layout(recipe), load_manifest(recipe)
    if recipe.prepare.repack and manifest.kind in STORED_FEATURES:
        raise InputError(
            f"prepare.repack: a manifest of kind {manifest.kind} has stored features, and no images to pack"
        )
    for modality in layout.modalities:
        refuse_unknown_model(recipe, modality)
    tables = _tables(layout, manifest, console, force)
    summary = tables.summary
    for note in (*summary["notes"], layout.measured_on_training, _small_split(recipe, summary["splits"])):
        if note:
            console.warn(note)
    for what, found in summary["duplicates"].items():
        if found["contents_in_several_splits"]:
            console.warn(f"{found['contents_in_several_splits']} contents of {what} stand in several splits: a leak")
    towers, counted = _towers(layout, console, force), _caption_lengths(layout, console)
    lengths = _part(counted) or (towers.summary["caption_lengths"] if towers else None)
    if lengths and (cut := lengths["truncated"]):
        limit = lengths["limit"]
        console.warn(f"{cut} captions are longer than the {limit} tokens that the text tower reads, and lose their end")
    shards, pairing = _shards(layout, console, force), _pairing(layout, console, force)
    result = {
        **summary,
        "towers": towers.summary["towers"] if towers else {},
        "caption_lengths": lengths,
        "shards": _part(shards, {"folder": str(layout.shards.path)} if layout.shards else {}),
        "pairing": _part(pairing),
        "status": joined(tables, towers, counted, shards, pairing),
        "folder": str(layout.prepared.path),
    }
    _refuse_too_many_bad(result, recipe.data.max_bad_fraction, layout.prepared.path / REPORT)
    return result


def _small_split(recipe: Recipe, splits: dict[str, dict[str, int]]) -> str:
    """What to say of a measured split that is smaller than the largest k."""
    spec = recipe.eval_retrieval
    counts = splits.get(spec.split)
    if counts is None or not (smallest := min(counts.values()) // spec.folds) or smallest >= max(spec.ks):
        return ""
    return (
        f"eval_retrieval.ks: {spec.ks}, but the galleries of split {spec.split} hold {smallest} items,"
        " to which larger k will be lowered"
    )


def _part(made: Made | None, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
    return {"status": made.status, **(more or {}), **made.summary} if made else None


def _tables(layout: Layout, manifest: Manifest, console: Console, force: bool) -> Made:
    """Make the tables of one data set, which must bring images, captions or both, as its layout says."""
    sources = file_stamps([manifest_path(layout.recipe), *source_files(manifest, console)])
    write = partial(_write_tables, layout, manifest, console)
    return make(layout.prepared, write, force=force, sources=sources)


def _write_tables(layout: Layout, manifest: Manifest, console: Console, build: Build) -> dict[str, Any]:
    recipe = layout.recipe
    _refuse_foreign(layout.prepared, "data.dir")
    for modality in _brought(layout):
        require_encoder_of(recipe, modality)
    if not isinstance(manifest, DrawnManifest):
        check_checksums(manifest, console)
    source = SOURCES[manifest.kind](manifest, build.folder, console)
    if "digest" not in source.images:
        assert not isinstance(manifest, DrawnManifest)
        assert manifest.root is not None
        absent = getattr(manifest, "absent_files", "bad") == "skip"
        check_images(source, manifest.root, absent, recipe.prepare.min_side, console)
    if isinstance(manifest, OnDisk) and manifest.split_fractions:
        draw_splits(source, manifest.split_fractions, manifest.split_seed, recipe.prepare.near_distance)
    unify_splits(source)
    images, captions = linked(source)
    tables = {"image": images, "text": captions}
    lacking = [m for m in MODALITIES if m in layout.modalities and tables[m].empty]
    if lacking:
        what = " and ".join({"image": "images", "text": "captions"}[modality] for modality in lacking)
        raise InputError(f"{manifest_path(recipe)}: no usable {what} are left", _reasons(source))
    further = {modality: _owned(source, modality, images) for modality in source.further}
    summary, pairs = _report(recipe, manifest, source, images, captions, console)
    columns = ["image_id", "split", "locator", "feature_row", "width", "height", "digest", "label"]
    images = images if "label" in images else images.assign(label="")
    write_prepared(build.folder, images[columns], captions, source.description, further)
    details = {"near_pairs": pairs, "converted_pictures": source.conversions, "bad_items": source.bad}
    write_json(build.folder / REPORT, {**summary, **details})
    return summary


def _brought(layout: Layout) -> list[str]:
    """The modalities whose towers bring weights that are on this machine, and can be tried."""
    specs = {m: layout.recipe.encoders.of(m) for m in MODALITIES if m in layout.modalities}
    return [m for m, spec in specs.items() if brings_weights(spec) and not waits_for_hub(spec)]


def _towers(layout: Layout, console: Console, force: bool) -> Made | None:
    """What is found of towers with weights from elsewhere: {"towers": {modality: name}, "caption_lengths"}; None where
    there are none. One that must still be fetched from a hub is checked by embed."""
    modalities = _brought(layout)
    if not modalities:
        return None

    def write(build: Build) -> dict[str, Any]:
        from cs_aligner_cli.encoders.hub import describe_encoder
        from cs_aligner_cli.encoders.preflight import check_towers

        path = layout.prepared.path
        encoders = check_towers(layout.recipe, modalities, caption_texts(path))
        text = encoders.get("text")
        limit = text.caption_limit if text else None
        return {
            "towers": {m: describe_encoder(encoder.identity) for m, encoder in encoders.items()},
            "caption_lengths": limit and _lengths(layout, limit.tokens, limit.lengths, console),
        }

    sources = file_stamps(weight_files(layout.recipe))
    return make(layout.tower_check(modalities), write, force=force, sources=sources)


def _caption_lengths(layout: Layout, console: Console) -> Made | None:
    """How many captions a text tower of random weights would cut; None for others, and without its own tokenizer."""
    spec = layout.recipe.encoders.of("text")
    limit = None if brings_weights(spec) and not waits_for_hub(spec) else context_length(spec)
    if limit is None:
        return None
    return make(layout.caption_lengths(limit), lambda build: _lengths(layout, limit, open_clip_counter(), console))


def _lengths(
    layout: Layout, limit: int, lengths: Callable[[Sequence[str]], list[int]], console: Console
) -> dict[str, Any]:
    splits = (layout.prepared.record() or {})["summary"]["splits"].values()
    count = sum(part["captions"] for part in splits)
    return caption_lengths(caption_texts(layout.prepared.path), count, limit, lengths, console)


def _shards(layout: Layout, console: Console, force: bool) -> Made | None:
    """The prepared data as WebDataset shards, where the recipe asks for them."""
    artifact, repack = layout.shards, layout.recipe.prepare.repack
    if artifact is None or repack is None:
        return None

    def write(build: Build) -> dict[str, Any]:
        _refuse_foreign(artifact, "prepare.repack.dir")
        data = PreparedData(layout.prepared.path)
        with console.progress("packing images", len(data.images)) as advance:
            for left in build.folder.glob("*.tar"):  # of a job that was cut
                left.unlink()
            names = dict.fromkeys([*data.images["split"].unique(), *data.captions["split"].unique()])
            return {
                "splits": {
                    name: write_shards(data, data.part(name), build.folder, repack.shard_mb, advance) for name in names
                }
            }

    return make(artifact, write, force=force)


def _pairing(layout: Layout, console: Console, force: bool) -> Made | None:
    """Which items of training are pairs and which are unpaired, where the recipe asks for unpaired ones."""
    unpaired, train, artifact = layout.recipe.data.unpaired, layout.recipe.train, layout.pairing
    if artifact is None or unpaired is None or train is None:
        return None
    for number, other in enumerate(layout.unpaired.values()):
        try:
            found = _tables(other, load_manifest(other.recipe), console, force).summary
        except InputError as error:
            raise InputError(f"data.unpaired.sources.{number}: {error}") from None
        _refuse_too_many_bad(found, layout.recipe.data.max_bad_fraction, other.prepared.path / REPORT)

    def write(build: Build) -> dict[str, Any]:
        data = PreparedData(layout.prepared.path)
        split = data.split(train.split, "train.split")
        guarded = [table[table["split"] != train.split] for table in (data.images, data.captions)]
        sources, seed = unpaired_splits(layout), layout.recipe.seed
        pairing = draw_pairing(split, guarded, sources, unpaired.paired_fraction, seed, partial(_held_out, layout))
        pairing.write(build.folder)
        return pairing.counts()

    return make(artifact, write, force=force)


def _refuse_foreign(artifact: Artifact, key: str) -> None:
    """Raise InputError if other files lie where an output would take their place."""
    folder = artifact.path
    if not folder.is_dir() or (folder / RECORD).is_file():
        return
    if any(path.name not in (LOCK, HOLDER) for path in folder.iterdir()):
        raise InputError(
            f"{key}: {folder} holds other files, which the {artifact.name} would replace",
            "Name a folder that is not there yet, or an empty one.",
        )


def _held_out(layout: Layout, split: Split) -> npt.NDArray[np.int64]:
    """The images of the training split that training will hold out for validation."""
    train = layout.recipe.train
    if train is None or train.val_split:
        return np.arange(0)
    return hold_out(split, train.val_fraction, layout.recipe.seed, layout.modalities[1:])[1]


def _reasons(source: Source) -> str:
    reasons = [f"{item['item']}: {item['reason']}" for item in source.bad[:_SHOWN]]
    return "\n".join([*reasons, *(f"skipped: {count} {what}" for what, count in source.skipped.items() if count)])


def _owned(source: Source, modality: str, images: pd.DataFrame) -> pd.DataFrame:
    """The items of a further modality, numbered; one whose image is missing or in another split becomes unpaired, and
    is counted."""
    items = source.further[modality].reset_index(drop=True)
    split_of = items["image_id"].map(images.set_index("image_id")["split"])
    astray = items["image_id"].notna() & (split_of != items["split"])
    if astray.any():
        source.skipped[f"{modality} items without their image: it is missing, or in another split"] = int(astray.sum())
    items["image_id"] = items["image_id"].astype(object).where(~astray, None)
    items.insert(0, f"{modality}_id", [f"{i:08d}" for i in range(len(items))])
    return items


def _report(
    recipe: Recipe, manifest: Manifest, source: Source, images: pd.DataFrame, captions: pd.DataFrame, console: Console
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and the pairs of near duplicates by name."""
    counts = {"images": images["split"].value_counts(), "captions": captions["split"].value_counts()}
    names = dict.fromkeys([*images["split"].unique(), *captions["split"].unique()])
    splits = {str(name): {what: int(count.get(name, 0)) for what, count in counts.items()} for name in names}
    bad = {f"{kind}s": sum(item["kind"] == kind for item in source.bad) for kind in KINDS}
    near, pairs = _near_duplicates(recipe, images, captions, console)
    alone, warnings = without_partner(images, captions)
    paired = captions.dropna(subset="image_id")
    items = len(images) + len(captions)
    usable = {"images": len(images), "captions": len(captions), "rows": items, "members": items}
    summary = {
        "data_set": manifest.name,
        "splits": splits,
        "duplicates": {
            "images with the same content": repeated(images["digest"].to_numpy(np.uint64), images["split"]),
            "captions of one image with the same text": repeated(pair_codes(paired), paired["split"]),
        },
        "near_duplicates": near,
        "pictures": {what: len(items) for what, items in source.conversions.items()},
        "bad": {**{kind: n for kind, n in bad.items() if n or kind in _ALWAYS_TOLD}, "first": source.bad[:_SHOWN]},
        "bad_fraction": max(
            bad["shards"] / source.totals.get("shards", 1),
            *(bad[kind] / max(1, n + bad[kind]) for kind, n in usable.items()),
        ),
        "skipped": source.skipped,
        "without_partner": alone,
        "notes": [*source.notes, *warnings],
        "unlike_manifest": _unlike(manifest, splits),
    }
    return summary, pairs


def _near_duplicates(
    recipe: Recipe, images: pd.DataFrame, captions: pd.DataFrame, console: Console
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What stands in several splits without being equal: {"images": ..., "captions": ...}, and pairs of images."""
    near: dict[str, Any] = {}
    pairs: list[dict[str, Any]] = []
    if captions["split"].nunique() > 1:
        with console.progress("comparing captions", len(captions)) as advance:
            near["captions"] = shared_captions(captions, advance)
    distance = recipe.prepare.near_distance
    if distance is not None and "dhash" in images and images["split"].nunique() > 1:
        found = near_images(images, distance, console)
        pairs = found.pop("pairs")
        near["images"] = found
    return near, pairs


def _unlike(manifest: Manifest, splits: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{split}: the manifest expects {want.images} images and {want.captions} captions, found "
        f"{splits.get(split, {}).get('images', 0)} and {splits.get(split, {}).get('captions', 0)}"
        for split, want in manifest.expected.items()
        if splits.get(split) != want.model_dump()
    ]


def _refuse_too_many_bad(result: dict[str, Any], limit: float, report: Path) -> None:
    if result["bad_fraction"] <= limit:
        return
    kinds = {kind: n for kind, n in result["bad"].items() if kind != "first" and n}
    counts = " and ".join(f"{n} {kind if n > 1 else kind[:-1]}" for kind, n in kinds.items())
    shown = "\n".join(f"  {item['item']}: {item['reason']}" for item in result["bad"]["first"])
    raise TooManyBadItems(
        f"{counts} {'are' if sum(kinds.values()) > 1 else 'is'} bad: {result['bad_fraction']:.1%} of a kind, more than "
        f"data.max_bad_fraction ({limit:.1%}) allows\n{shown}\n"
        f"The whole list is in {report}; mend the files, or allow more: --set data.max_bad_fraction=...",
        result,
    )
