"""What a gap report shows: its figures, the pairs that can be pointed at, and the queries with their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.data.thumbnails import Photos
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.report.bought import gap_against_pictures
from cs_aligner_cli.report.canvas import Picture
from cs_aligner_cli.report.curves import conflict_curves, divergence_curve, training_curves
from cs_aligner_cli.report.evidence import CONTROL, recall_in_run, reference_of
from cs_aligner_cli.report.figures import cosine_histograms, point_map, projection, spectra
from cs_aligner_cli.report.projections import neighbour_projection
from cs_aligner_cli.report.tradeoff import gap_against_recall
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.gap_report.sample import Sample
from cs_aligner_cli.stages.gap_stores import Features
from cs_aligner_cli.training.metrics_log import read_training_log

PairedFeatures: TypeAlias = tuple[Features, Features]
# Pairs that can be pointed at, and the side of their photos in pixels: they are in the page, all of them.
_POINTS, _SMALL = 200, 112
# More panels than these are not legible side by side.
_PANELS = 6


def draw_figures(
    recipe: Recipe,
    layout: Layout,
    report: dict[str, Any],
    pairs: Mapping[str, PairedFeatures],
    shares: Mapping[str, Any],
) -> dict[str, Picture]:
    """Every figure of the report; where not every store has a panel, its notes are told which have.

    ``pairs``: store to the row-paired features that pictures are made of; ``shares``: store to its spectra.
    """
    panels, seed = _panels(report, pairs), recipe.data_seed
    if len(panels) < len(pairs):
        report["note"].append(
            f"Pictures with a panel for every store show {len(panels)} of {len(pairs)}: {', '.join(panels)}."
        )
    drawn = {name: pairs[name] for name in panels}
    reference = reference_of(report)
    arrow = (reference, report["subject"]) if reference else None
    figures = {
        "gap_against_recall": gap_against_recall(_points(report), arrow),
        "projection": projection(drawn, seed=seed),
    }
    if pictures := report.get("pictures"):
        points = {
            name: {
                "gap": report["stores"][name]["centroid_gap"],
                "pictures": value,
                "r1": recall_in_run(report, name) or 0,
            }
            for name, value in pictures["stores"].items()
        }
        figures["gap_against_pictures"] = gap_against_pictures(points, pictures["title"], pictures["bounds"])
    kind = recipe.gap_report.projection
    if kind != "pca":
        figures[f"projection_{kind}"] = neighbour_projection(drawn, kind, seed=seed)
    figures["cosine_histograms"] = cosine_histograms(drawn, seed=seed)
    figures["divergence_curve"] = divergence_curve({name: report["sweep"][name] for name in panels})
    figures["spectra"] = spectra({name: shares[name] for name in panels})
    if report["conflict"]:
        figures["conflict"] = conflict_curves(report["conflict"])
    logs = {name: read_training_log(layout.trained(name).path) for name in layout.variants}
    if any("terms" in row for rows in logs.values() for row in rows):
        figures["training"] = training_curves(logs)
    return figures


def _panels(report: Mapping[str, Any], pairs: Mapping[str, PairedFeatures]) -> list[str]:
    """The stores that get a panel: this run's, the closed form on the control, other runs', the strongest others."""

    def rank(name: str) -> tuple[int, float]:
        kind = report["kinds"][name]
        if kind == "baseline":
            return 1 if name.startswith(f"{CONTROL}+") else 3, -(recall_in_run(report, name) or 0.0)
        return {"store": 0, "run": 2}[kind], 0.0

    chosen = sorted(pairs, key=rank)[:_PANELS]
    return [name for name in pairs if name in chosen]


def _points(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every store's place in the figure of gap against R@1."""
    return {
        name: {
            "kind": report["kinds"][name],
            "gap": report["stores"][name]["centroid_gap"],
            "gap_interval": report["intervals"][name]["centroid_gap"],
            "r1_i2t": found["i2t"]["R@1"],
            "r1_t2i": found["t2i"]["R@1"],
            "gap_band": report["bands"][name]["centroid_gap"],
            "r1_interval": report["recall_intervals"][name]["mean"]["R@1"],
        }
        for name, found in report["retrieval"].items()
    }


def draw_items(
    report: Mapping[str, Any],
    sample: Sample,
    photos: Photos,
    pairs: Mapping[str, PairedFeatures],
    found: Mapping[str, Any],
) -> dict[str, Any]:
    """Pairs and queries of the report's subject with captions and thumbnails; {} where none were looked for.

    ``pairs``: store to the features of the sample's drawn pairs; ``found`` (``report.examples``) counts the gallery's
    rows.
    """
    if not found:
        return {}
    images, captions = (sample.split.table(m).iloc[sample.gallery[m]] for m in MODALITIES)

    def image(row: int) -> dict[str, Any]:
        return {"id": images["image_id"].iloc[row], "photo": photos.thumbnail(images.iloc[row])}

    def text(row: int) -> str:
        return str(captions["text"].iloc[row])

    subject = report["subject"]
    pair = [{**p, "image": image(p["image"]), "text": text(p["text"])} for p in (*found["best"], *found["worst"])]
    return {
        "store": subject,
        "map": _map(sample.split, photos, pairs[subject], sample.drawn),
        "best": pair[: len(found["best"])],
        "worst": pair[len(found["best"]) :],
        "to_images": [_answered(q, text, image) for q in found["to_images"]],
        "to_texts": [_answered(q, image, text) for q in found["to_texts"]],
    }


def _map(split: Split, photos: Photos, pair: PairedFeatures, drawn: Mapping[str, Ints]) -> list[dict[str, Any]]:
    """Pairs to point at: where each lies, its caption and its photo, small."""
    kept = evenly_spaced(len(drawn["image"]), _POINTS)
    places = point_map(*pair, kept)
    images = split.images.iloc[drawn["image"][kept]]
    texts = split.captions["text"].iloc[drawn["text"][kept]]
    return [
        {
            "image": place["image"],
            "points": place["text"],
            "text": str(text),
            "item": {"id": row["image_id"], "photo": photos.thumbnail(row, _SMALL)},
        }
        for place, (_, row), text in zip(places, images.iterrows(), texts, strict=True)
    ]


def _answered(query: dict[str, Any], ask: Callable[[int], Any], answer: Callable[[int], Any]) -> dict[str, Any]:
    results = [{"item": answer(r["row"]), "cosine": r["cosine"], "hit": r["hit"]} for r in query["results"]]
    return {"query": ask(query["query"]), "results": results}
