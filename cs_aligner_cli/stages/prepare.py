"""prepare: from a manifest to the two tables, with a report of counts, duplicates and what was dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cs_aligner_cli.artifacts import file_stamps, write_json
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.manifest import Manifest, load_manifest, manifest_path
from cs_aligner_cli.data.prepared import write_prepared
from cs_aligner_cli.data.sources import SOURCES, Source, source_files
from cs_aligner_cli.errors import InputError, TooManyBadItems
from cs_aligner_cli.layout import Layout
from cs_aligner_cli.recipe import Recipe

REPORT = "report.json"
# The whole list of bad items is in the report; a summary shows the first few.
_SHOWN = 5


def prepare(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Make the prepared data set of a recipe; return its summary with ``status`` done or fresh.

    Raises InputError if the manifest or its files are wrong or nothing usable is left, TooManyBadItems (after
    the output is in place) if more items were bad than ``data.max_bad_fraction``.
    """
    manifest = load_manifest(recipe)
    artifact = Layout(recipe).prepared
    sources = file_stamps([manifest_path(recipe), *source_files(manifest)])
    record = None if force else artifact.fresh(sources)
    if record is None:
        with artifact.building(sources) as build:
            source = SOURCES[manifest.kind](manifest, build.folder, console)
            images, captions = _linked(source)
            if images.empty or captions.empty:
                raise InputError(f"{manifest_path(recipe)}: no usable images and captions are left", _reasons(source))
            build.summary = _report(manifest, source, images, captions)
            columns = ["image_id", "split", "locator", "feature_row", "width", "height", "label"]
            labelled = images if "label" in images else images.assign(label="")
            write_prepared(build.folder, labelled[columns], captions, source.description)
            write_json(build.folder / REPORT, {**build.summary, "bad_items": source.bad})
    summary: dict[str, Any] = (artifact.record() or {})["summary"]
    for what, found in summary["duplicates"].items():
        if found["contents_in_several_splits"]:
            console.warn(f"{found['contents_in_several_splits']} contents of {what} stand in several splits: a leak")
    result = {"status": "done" if record is None else "fresh", "folder": str(artifact.path), **summary}
    _refuse_too_many_bad(result, recipe.data.max_bad_fraction, artifact.path / REPORT)
    return result


def _reasons(source: Source) -> str:
    reasons = [f"{item['item']}: {item['reason']}" for item in source.bad[:_SHOWN]]
    return "\n".join([*reasons, *(f"skipped: {count} {what}" for what, count in source.skipped.items() if count)])


def _linked(source: Source) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Drop empty captions and captions that do not fit their image; number the rest."""
    images, captions = source.images, source.captions
    image_split = captions["image_id"].map(images.set_index("image_id")["split"])
    paired = captions["image_id"].notna()
    # An image that was dropped or skipped takes its captions along; they are no bad items of their own.
    lost = paired & image_split.isna()
    empty = ~lost & (captions["text"].str.strip() == "")
    other_split = ~lost & ~empty & paired & (image_split != captions["split"])
    reasons = {"empty caption": empty, "caption and image are in different splits": other_split}
    for reason, mask in reasons.items():
        source.bad += [
            {"kind": "caption", "item": f"caption {i} (counted from 0) of image {image_id}", "reason": reason}
            for i, image_id in captions.loc[mask, "image_id"].items()
        ]
    if lost.any():
        dropped = any(item["kind"] == "image" for item in source.bad) or any(source.skipped.values())
        name = "captions of dropped or skipped images" if dropped else "captions of images that are not listed"
        source.skipped[name] = int(lost.sum())
    captions = captions[~(lost | empty | other_split)].reset_index(drop=True)
    captions.insert(0, "caption_id", [f"{i:08d}" for i in range(len(captions))])
    return images, captions


def _report(manifest: Manifest, source: Source, images: pd.DataFrame, captions: pd.DataFrame) -> dict[str, Any]:
    counts = {"images": images["split"].value_counts(), "captions": captions["split"].value_counts()}
    names = dict.fromkeys([*images["split"].unique(), *captions["split"].unique()])
    splits = {str(name): {what: int(count.get(name, 0)) for what, count in counts.items()} for name in names}
    bad = {kind: sum(item["kind"] == kind for item in source.bad) for kind in ("image", "caption")}
    return {
        "data_set": manifest.name,
        "splits": splits,
        "duplicates": {
            **_duplicates("images with the same content", images, "digest"),
            **_duplicates(
                "captions of one image with the same text",
                captions.dropna(subset="image_id"),
                ["image_id", "text"],
            ),
        },
        "bad": {"images": bad["image"], "captions": bad["caption"], "first": source.bad[:_SHOWN]},
        "bad_fraction": max(
            bad["image"] / (len(images) + bad["image"]), bad["caption"] / (len(captions) + bad["caption"])
        ),
        "skipped": source.skipped,
        "unlike_manifest": _unlike(manifest, splits),
    }


def _duplicates(name: str, frame: pd.DataFrame, keys: str | list[str]) -> dict[str, Any]:
    """How many rows repeat an earlier one, and how many repeated contents are in several splits (a leak)."""
    repeated = frame[frame.duplicated(keys, keep=False)]
    across = int((repeated.groupby(keys)["split"].nunique() > 1).sum()) if len(repeated) else 0
    return {name: {"repeats": int(frame.duplicated(keys).sum()), "contents_in_several_splits": across}}


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
    bad = result["bad"]
    shown = "\n".join(f"  {item['item']}: {item['reason']}" for item in bad["first"])
    raise TooManyBadItems(
        f"{bad['images']} images and {bad['captions']} captions are bad: {result['bad_fraction']:.1%} of a "
        f"modality, more than data.max_bad_fraction ({limit:.1%}) allows\n{shown}\n"
        f"The whole list is in {report}; mend the files, or allow more: --set data.max_bad_fraction=...",
        result,
    )
