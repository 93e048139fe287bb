"""The work of prepare: sources read, tables written, duplicates and bad items counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, listed
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.caption_lengths import caption_lengths, open_clip_counter
from cs_aligner_cli.data.collector import Source, check_images
from cs_aligner_cli.data.drawn_splits import draw_splits
from cs_aligner_cli.data.duplicates import near_images, pair_codes, repeated, shared_captions
from cs_aligner_cli.data.manifest import DrawnManifest, Manifest, manifest_path
from cs_aligner_cli.data.manifest_base import OnDisk
from cs_aligner_cli.data.manifest_files import missing_shards
from cs_aligner_cli.data.prepared import PreparedData, Split, caption_texts, hold_out, write_prepared
from cs_aligner_cli.data.repack import write_shards
from cs_aligner_cli.data.sources import SOURCES
from cs_aligner_cli.data.stated_checksums import check_checksums
from cs_aligner_cli.data.tidy import linked, unify_splits, without_partner
from cs_aligner_cli.encoders.availability import refuse_unknown_model, require_encoder_of
from cs_aligner_cli.files.artifact import Build, write_json
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import draw_pairing, unpaired_splits
from cs_aligner_cli.stages.prepare import REPORT, brought_towers

# The whole list of bad items is in the report; a summary shows the first few.
_SHOWN = 5
# What can be bad, and what is told of even where none is.
KINDS = ("image", "caption", "row", "member", "shard")
_ALWAYS_TOLD = ("images", "captions")


def write_tables(
    layout: Layout, manifest: Manifest, console: Console, build: Build, source: Source | None
) -> dict[str, Any]:
    """Read the sources (None: they were not yet) and write the two tables; return the summary, which report.json has
    in full."""
    recipe = layout.recipe
    for modality in layout.modalities:
        refuse_unknown_model(recipe, modality)
    for modality in brought_towers(layout):
        require_encoder_of(recipe, modality)
    if not isinstance(manifest, DrawnManifest):
        check_checksums(manifest, console)
    if source is None:
        source = SOURCES[manifest.kind](manifest, build.folder, console)
    source.notes += missing_shards(manifest)
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


def check_brought_towers(layout: Layout, console: Console) -> dict[str, Any]:
    """What is found of towers with weights from elsewhere: {"towers": {modality: name}, "caption_lengths"}."""
    from cs_aligner_cli.encoders.hub import describe_encoder  # torch, which only this check needs
    from cs_aligner_cli.encoders.preflight import check_towers

    encoders = check_towers(layout.recipe, brought_towers(layout), caption_texts(layout.prepared.path))
    text = encoders.get("text")
    limit = text.caption_limit if text else None
    return {
        "towers": {m: describe_encoder(encoder.identity) for m, encoder in encoders.items()},
        "caption_lengths": limit and _lengths(layout, limit.tokens, limit.lengths, console),
    }


def measure_captions(layout: Layout, limit: int, console: Console) -> dict[str, Any]:
    """How long the captions are in tokens of open_clip's tokenizer, for a text tower that reads ``limit``."""
    return _lengths(layout, limit, open_clip_counter(), console)


def _lengths(
    layout: Layout, limit: int, lengths: Callable[[Sequence[str]], list[int]], console: Console
) -> dict[str, Any]:
    splits = (layout.prepared.record() or {})["summary"]["splits"].values()
    count = sum(part["captions"] for part in splits)
    return caption_lengths(caption_texts(layout.prepared.path), count, limit, lengths, console)


def pack_shards(layout: Layout, console: Console, build: Build) -> dict[str, Any]:
    """Write the prepared data as WebDataset shards; return how many every split has."""
    repack = layout.recipe.prepare.repack
    assert repack is not None
    data = PreparedData(layout.prepared.path)
    with console.progress("packing images", len(data.images)) as advance:
        for left in build.folder.glob("*.tar"):  # of a job that was cut
            left.unlink()
        names = dict.fromkeys([*data.images["split"].unique(), *data.captions["split"].unique()])
        counts = {name: write_shards(data, data.part(name), build.folder, repack.shard_mb, advance) for name in names}
    return {"splits": counts}


def write_pairing(layout: Layout, build: Build) -> dict[str, Any]:
    """Draw which items of training are pairs and which are unpaired; return how many there are of each."""
    unpaired, train = layout.recipe.data.unpaired, layout.recipe.train
    assert unpaired is not None and train is not None
    data = PreparedData(layout.prepared.path)
    split = data.split(train.split, "train.split")
    guarded = [table[table["split"] != train.split] for table in (data.images, data.captions)]
    sources, seed = unpaired_splits(layout), layout.recipe.data_seed
    pairing = draw_pairing(split, guarded, sources, unpaired.paired_fraction, seed, partial(_held_out, layout))
    pairing.write(build.folder)
    return pairing.counts()


def _held_out(layout: Layout, split: Split) -> npt.NDArray[np.int64]:
    """The images of the training split that training will hold out for validation."""
    train = layout.recipe.train
    if train is None or train.val_split:
        return np.arange(0)
    return hold_out(split, train.val_fraction, layout.recipe.data_seed, layout.modalities[1:])[1]


def _reasons(source: Source) -> str:
    reasons = [f"{item['item']}: {item['reason']}" for item in source.bad[:_SHOWN]]
    skipped = [f"skipped: {counted(count, what)}" for what, count in source.skipped.items() if count]
    return "\n".join([*reasons, *skipped, *_unlike_ids(source)])


def _unlike_ids(source: Source) -> list[str]:
    """Where no caption names an image that is listed: which ids are listed, and whether columns are swapped."""
    named, ids = source.captions["image_id"].dropna(), source.images["image_id"]
    if named.empty or ids.empty or named.isin(ids).any():
        return []
    swapped = ["The captions themselves are such ids: are image and caption column swapped?"]
    texts = source.captions["text"].str.strip()
    return [f"Images that are listed: {listed(sorted(ids))}", *(swapped if texts.isin(ids).any() else [])]


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
        "different_texts": _different_texts(captions),
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


def _different_texts(captions: pd.DataFrame) -> dict[str, int]:
    """How many texts the captions of a split are, where some belong to several images."""
    found: dict[str, int] = {}
    for split, part in captions.groupby("split", sort=False):
        texts = part["text"].nunique()
        if texts < len(part[["image_id", "text"]].drop_duplicates()):  # one image may have a caption twice
            found[str(split)] = texts
    return found


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
