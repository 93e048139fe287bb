"""gap-report: how far apart the modalities are in every store, side by side, as one page and as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.artifacts import write_bytes, write_json
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.gap import measure_gap, null_floor
from cs_aligner_cli.gap.figures import (
    conflict_curves,
    cosine_histograms,
    divergence_curve,
    gap_against_recall,
    projection,
)
from cs_aligner_cli.gap.metrics import evenly_spaced
from cs_aligner_cli.gap.page import render_page, report_rows
from cs_aligner_cli.layout import MODALITIES, Layout
from cs_aligner_cli.objectives import conflict_sweep
from cs_aligner_cli.provenance import git_state, versions
from cs_aligner_cli.recipe import GapReport, Recipe
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.store import NO_SPACE, Store, nothing_to_compare

Features = np.ndarray[Any, np.dtype[np.float32]]
Pairs = tuple[Features, Features]
REPORT = "report.html"
_KS = (1, 5, 10)
# The pairs that the conflict is taken on: the size of a large training batch.
_CONFLICT_PAIRS = 1000


def gap_report(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Measure and draw the gap of every store of the report's split; return the metrics per store and the page's path.

    Each image is paired with one of its captions (Split.pairs). Raises InputError if a store is missing or stale, no
    store shares a space, or the split holds too few pairs.
    """
    layout = Layout(recipe)
    artifact = layout.gap
    for need in artifact.needs:
        need.require()
    record = None if force else artifact.fresh()
    if record is None:
        with artifact.building() as build:
            split = PreparedData(layout.prepared.path).split(recipe.gap_split, "gap_report.split")
            with console.progress("measuring the gap", len(layout.stores(split.name)) + 1) as advance:
                report, pairs = _measure(recipe, layout, split, advance)
                if not pairs:
                    raise nothing_to_compare(split.name)
                figures = _figures(report, pairs, recipe.seed)
                advance()
            page = render_page(report, figures).encode()
            write_bytes(build.folder / REPORT, page)
            write_bytes(build.folder / "report.csv", pd.DataFrame(report_rows(report)).to_csv(index=False).encode())
            write_json(build.folder / "report.json", report)
            write_bytes(build.folder / "conflict.csv", _conflict_table(report).to_csv(index=False).encode())
            for name, png in figures.items():
                write_bytes(build.folder / f"{name}.png", png)
            build.summary = {
                "split": split.name,
                "pairs": report["pairs"],
                "gap_report": {name: values for name, values in report["stores"].items() if values},
                "null_floor": report["null"],
                "notes": [
                    *report["note"],
                    *(f"{name}: {NO_SPACE}" for name, found in report["stores"].items() if not found),
                ],
            }
    summary: dict[str, Any] = (artifact.record() or {})["summary"]
    return {"status": "done" if record is None else "fresh", "report": str(artifact.path / REPORT), **summary}


def _measure(recipe: Recipe, layout: Layout, split: Split, advance: Any) -> tuple[dict[str, Any], dict[str, Pairs]]:
    spec = recipe.gap_report
    rows = _sampled_pairs(spec, split)
    report: dict[str, Any] = {
        "name": recipe.name,
        "split": split.name,
        "pairs": len(rows["image"]),
        "note": _told(spec, len(rows["image"]), len(split.images)),
        "stores": {},
        "null": {},
        "retrieval": {},
        "conflict": {},
        "provenance": {**versions(), "seed": recipe.seed, "git": git_state(), "recipe": recipe.to_yaml()},
    }
    pairs: dict[str, Pairs] = {}
    for name, artifact in layout.stores(split.name).items():
        store = Store(artifact.path)
        arrays = {m: store.array(m) for m in MODALITIES}
        report["stores"][name] = {}
        if store.shares_space:
            pairs[name] = arrays["image"].take(rows["image"]), arrays["text"].take(rows["text"])
            options: dict[str, Any] = {"bandwidths": spec.bandwidths, "seed": recipe.seed}
            report["stores"][name] = measure_gap(*pairs[name], exact_pairs=spec.exact_pairs, **options)
            image, text = pairs[name]
            exact = evenly_spaced(len(image), spec.exact_pairs)
            report["null"][name] = null_floor(image[exact], text[exact], **options)
            report["conflict"][name] = _conflict(*pairs[name])
            report["retrieval"][name] = _retrieval(arrays["image"].all(), arrays["text"].all(), split)
        advance()
    return report, pairs


def _told(spec: GapReport, pairs: int, images: int) -> list[str]:
    """What a reader must know of the sample."""
    notes = [f"{pairs} of {images} images, each paired with one of its captions drawn at random."]
    if pairs > spec.exact_pairs:
        notes.append(
            f"The CS divergence is approximated by Nystroem's method on all {pairs} pairs; uniformity, shared "
            f"information, separability and null floors come from {spec.exact_pairs} evenly spaced ones."
        )
    return notes


def _sampled_pairs(spec: GapReport, split: Split) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Rows of images and of one caption of each; evenly spaced where there are more than ``max_pairs``."""
    images, captions = split.pairs
    kept = evenly_spaced(len(images), spec.max_pairs)
    return {"image": images[kept], "text": captions[kept]}


def _retrieval(image: Any, text: Any, split: Split) -> dict[str, Any]:
    ks = [k for k in _KS if k <= min(len(image), len(text))]
    return evaluate_retrieval(image, text, split.image_of_caption, ks=ks)


def _conflict(image: Features, text: Features) -> list[dict[str, float]]:
    """The conflict on evenly spaced pairs."""
    kept = evenly_spaced(len(image), _CONFLICT_PAIRS)
    return conflict_sweep(image[kept], text[kept])


def _conflict_table(report: dict[str, Any]) -> pd.DataFrame:
    """The conflict of every store at every temperature, bandwidth and weight, one row each."""
    return pd.DataFrame([{"store": name, **row} for name, rows in report["conflict"].items() for row in rows])


def _figures(report: dict[str, Any], pairs: dict[str, Pairs], seed: int) -> dict[str, bytes]:
    points = {
        name: {
            "gap": report["stores"][name]["centroid_gap"],
            "r1_i2t": found["i2t"]["R@1"],
            "r1_t2i": found["t2i"]["R@1"],
        }
        for name, found in report["retrieval"].items()
    }
    return {
        "projection": projection(pairs, seed=seed),
        "cosine_histograms": cosine_histograms(pairs, seed=seed),
        "divergence_curve": divergence_curve(pairs, seed=seed),
        "conflict": conflict_curves(report["conflict"]),
        "gap_against_recall": gap_against_recall(points),
    }
