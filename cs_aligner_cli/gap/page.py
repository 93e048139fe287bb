"""The gap report as one HTML file that needs no network, and as rows for a CSV file."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from cs_aligner_cli.gap.glossary import describe, in_report_order
from cs_aligner_cli.gap.verdict import verdict

_TEMPLATE = "page.html.j2"
_ONE_PANEL = 800  # pixels; wider figures have several panels side by side
_DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}


class _Caption(NamedTuple):
    title: str
    text: str


_CAPTIONS = {
    "projection": _Caption(
        "Where the two clouds lie",
        "Each point is an image or a text, placed on the two directions in which the rows of its store (both "
        "modalities together) vary most; lines join some of the pairs. Two separate clouds are a gap. Mixed "
        "clouds with short lines are aligned; mixed clouds with long lines only overlap. Every panel has its "
        "own directions but the same scale, and low percentages mean that most of the spread lies outside "
        "the picture.",
    ),
    "cosine_histograms": _Caption(
        "How similar pairs and strangers are",
        "The green area is the cosine between an image and its own text, the grey line between an image and "
        "another's text: the less the two overlap, the better pairs can be found. A gap shows as a grey line "
        "far to the left of the orange and blue ones: strangers of the other modality are then less alike "
        "than strangers of one's own.",
    ),
    "divergence_curve": _Caption(
        "The divergence at every bandwidth",
        "A narrow kernel compares fine structure; a wide one sees only the centroids, where the divergence "
        "becomes the squared gap over the squared bandwidth. Where V lies in the grey area it cannot be told "
        "from no gap at all. That area is measured on halves of one modality, so on half as many rows, and "
        "lies somewhat high, most of all on the left. U has hardly any such bias; where its line is missing "
        "it is zero or less, and no divergence was found.",
    ),
    "conflict": _Caption(
        "Why InfoNCE leaves a gap, and what CS gives back",
        "InfoNCE pulls every pair together (alignment) and pushes all images away from all texts (uniformity across "
        "modalities). The black line is the share of the pull that this push takes back: at 1 nothing of it is left, "
        "and the pairs stay where they are, near or far. The other lines add the CS divergence (bandwidth 0.7071) "
        "to the push: lower means that more of the pull is left, below 0 that CS even adds to it. Low temperatures "
        "are where InfoNCE ranks pairs well without moving the clouds. Values below -1 lie outside the picture.",
    ),
    "gap_against_recall": _Caption(
        "What closing the gap cost",
        "One mark per store: further left is a smaller gap, further up a better R@1; the bar spans the two "
        "directions of retrieval. An alignment that helps moves left without falling.",
    ),
}


def render_page(report: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """Return the report as one self-contained HTML page (inline style, PNG as data URIs, no script).

    ``report`` holds plain JSON values::

        {
          "name": str, "split": str,       # the data set and its split
          "pairs": int,                    # pairs that every store was measured on
          "note": [str, ...],              # optional: what a reader must know, e.g. why a store is absent
          "stores": {store: {metric: float}},  # columns in order; keys of measure_gap; {}: no shared space
          "null": {store: {metric: float}},    # optional: null_floor of each store
          "retrieval": {store: {"i2t": {...}, "t2i": {...}}},  # optional: any subset of the stores
          "provenance": {str: Any},        # optional: versions, seed, "command", ..., "recipe" (YAML text)
        }

    A retrieval direction holds "R@k" and "mAP" (fractions in [0, 1], shown in percent), "median_rank" and
    "mean_rank"; "R@1" is required, and other keys are not shown. ``figures`` maps a name to PNG bytes; the
    five names of ``gap.figures`` have an explanation, others are shown under their name. Everything is
    escaped. Raises InputError on an unknown metric.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=format_number, percent=_percent, rank=_rank)
    template = environment.from_string(files("cs_aligner_cli.gap").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    provenance = dict(report.get("provenance", {}))
    recipe = provenance.pop("recipe", "")
    stores = report["stores"]
    return template.render(
        report=report,
        verdict=verdict(report),
        stores=[name for name, values in stores.items() if values],
        without_space=[name for name, values in stores.items() if not values],
        metric_rows=_metric_rows(report),
        retrieval=_retrieval_table(report.get("retrieval", {})),
        figures=[_figure(name, png) for name, png in figures.items()],
        provenance=provenance,
        recipe=recipe,
    )


def report_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics in long form for a CSV file: dicts of store, metric, value, null (None: no floor).

    ``report`` as in ``render_page``; stores in its order, metrics in that of METRICS.
    """
    null = report.get("null", {})
    return [
        {"store": store, "metric": key, "value": values[key], "null": null.get(store, {}).get(key)}
        for store, values in report["stores"].items()
        for key in in_report_order(values)
    ]


def format_number(value: float | None) -> str:
    """Four decimals, as comparing divergences takes; powers of ten for tiny values; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.4f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _percent(fraction: float | None) -> str:
    return "\N{EN DASH}" if fraction is None else f"{100 * fraction:.1f}"


def _rank(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1f}"


def _metric_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per metric key: its text, and (value, null) per store; the meaning once per family."""
    stores = {name: values for name, values in report["stores"].items() if values}
    null = report.get("null", {})
    rows: list[dict[str, Any]] = []
    explained = ""
    for key in in_report_order({key for values in stores.values() for key in values}):
        metric, family = describe(key), key.partition("@")[0]
        cells = [(values.get(key), null.get(name, {}).get(key)) for name, values in stores.items()]
        rows.append({"metric": metric, "cells": cells, "explain": family != explained})
        explained = family
    return rows


def _retrieval_table(retrieval: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that any store has, and per direction the stores' values in their order."""
    found = {key: None for store in retrieval.values() for side in store.values() for key in side}
    columns = [key for key in found if key.startswith(("R@", "mAP"))]
    ranks = [key for key in ("median_rank", "mean_rank") if key in found]
    groups = {
        title: {store: sides[side] for store, sides in retrieval.items() if side in sides}
        for side, title in _DIRECTIONS.items()
    }
    return {"fractions": columns, "ranks": ranks, "groups": groups if retrieval else {}}


def _figure(name: str, png: bytes) -> dict[str, Any]:
    # Width and height stand in the PNG's first chunk; with them the page does not jump while it opens.
    width, height = struct.unpack(">II", png[16:24])
    caption = _CAPTIONS.get(name, _Caption(name.replace("_", " ").capitalize(), ""))
    data = base64.b64encode(png).decode("ascii")
    # On a phone a figure of several panels keeps its letters legible and scrolls within its frame instead.
    min_width = round(0.6 * width) if width > _ONE_PANEL else 0
    return {"caption": caption, "width": width, "height": height, "min_width": min_width, "data": data}
