"""The gap report as one HTML file that needs no network, and as rows for a CSV file."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from cs_aligner_cli.gap.glossary import GROUPS, describe, in_report_order
from cs_aligner_cli.report.canvas import Picture
from cs_aligner_cli.report.examples import data_uri
from cs_aligner_cli.report.headline import changes, headline, p_in_words, seed_changes
from cs_aligner_cli.report.verdict import verdict

_TEMPLATE, _SCRIPT = "page.html.j2", "page.js"
_FIRST = "gap_against_recall"  # the figure that stands before all others
_ONE_PANEL = 1000  # pixels; wider figures have several panels side by side
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
    "projection_tsne": _Caption(
        "Who is beside whom: t-SNE",
        "The same pairs, placed by t-SNE so that near rows stay near; both modalities are fitted together. Islands of "
        "one colour are neighbourhoods of one modality; mixed islands with short lines hold pairs side by side. Axes, "
        "sizes of islands and distances between them mean nothing: for those look at the figure before.",
    ),
    "projection_umap": _Caption(
        "Who is beside whom: UMAP",
        "The same pairs, placed by UMAP so that near rows stay near; both modalities are fitted together. Islands of "
        "one colour are neighbourhoods of one modality; mixed islands with short lines hold pairs side by side. Axes, "
        "sizes of islands and distances between them mean nothing: for those look at the figure before.",
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
        "becomes the squared gap over the squared bandwidth. The black band is V's 95% interval. The grey area is "
        "what V reads without a gap: 95% of the values that it takes once members of random pairs have changed places "
        "(sign flips). Where V lies in it, no gap can be told. U has no such bias; where its line is missing it is "
        "zero or less, and no divergence was found. MMD takes the same three kernel means without "
        "logarithms, and so fades where kernels are narrow.",
    ),
    "spectra": _Caption(
        "How many dimensions are used",
        "The singular values of each modality's centred rows, largest first, as shares of their sum. A flat line that "
        "drops late uses many dimensions; a steep one lives in few. An alignment that squeezes a modality shows as a "
        "line steeper than before.",
    ),
    "training": _Caption(
        "What training did",
        "Every term of the loss (before its weight), the weight, the norm of the divergence's gradient in norms of "
        "the pairwise term's, the temperature and validation R@1, over the steps. A ratio near 0 means that the "
        "divergence hardly moved anything; above 1 it led.",
    ),
    "conflict": _Caption(
        "Why InfoNCE leaves a gap, and what CS gives back",
        "InfoNCE pulls every pair together, which closes the gap (below 0), and pushes every image from the texts of "
        "others, which opens it again (above 0). The black line is what is left of the two. Once pairs are ranked at a "
        "low temperature, both fade, near or far, and the gap stays; the CS divergence (bandwidth 0.7071) still closes "
        "it. The axis is linear between -0.1 and 0.1. conflict.csv has all temperatures, bandwidths and weights, the "
        "share of a pair in its own softmax (saturation), and the same for the distance of pairs.",
    ),
    "gap_against_recall": _Caption(
        "What closing the gap cost",
        "One mark per store: further left is a smaller gap, further up a better R@1; the bars are 95% intervals. "
        "Squares are closed forms: nothing is trained for them beyond the store that they start from. In the grey area "
        "no gap can be told of the store it is named after (95% of its sign flips read less). An alignment that helps "
        "moves left without falling, and is worth its training where no square lies up and to the left of it.",
    ),
}


def render_page(
    report: Mapping[str, Any], figures: Mapping[str, Picture], shown: Mapping[str, Any] | None = None
) -> str:
    """Return the report as one self-contained HTML page: pictures as data URIs, one inline script that sorts tables.

    ``report`` holds plain JSON values, as docs/gap-report.md describes them: "name", "split", "pairs" and "stores"
    (store to metrics, {} where its rows share no space) are required; "note", "kinds", "subject", "intervals", "null",
    "tests", "bands", "samples", "retrieval", "recall_intervals", "mixed", "differences", "seeds" and "provenance" are
    not. A retrieval direction ("i2t",
    "t2i") needs "R@1". ``figures`` maps a name to its Picture; those of ``gap.figures``, ``gap.curves`` and
    ``gap.tradeoff`` have an explanation, others are shown under their name. ``shown`` holds pairs and queries to look
    at, as the stage makes them. Everything is escaped. Raises InputError on an unknown metric.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=format_number, percent=_percent, rank=_rank, breakable=_breakable, p=p_in_words)
    template = environment.from_string(_resource(_TEMPLATE))
    script = _resource(_SCRIPT)
    provenance = dict(report.get("provenance", {}))
    recipe = provenance.pop("recipe", "")
    stores = report["stores"]
    return template.render(
        report=report,
        verdict=verdict(report),
        stores=[name for name, values in stores.items() if values],
        without_space=[name for name, values in stores.items() if not values],
        subject=report.get("subject"),
        table=headline(report),
        changes=changes(report),
        seeds=seed_changes(report),
        metric_groups=_metric_groups(report),
        retrieval=_retrieval_table(report.get("retrieval", {})),
        figures=[_figure(name, picture.png) for name, picture in figures.items()],
        shown=_with_photos(shown or {}),
        provenance=provenance,
        recipe=recipe,
        script=Markup(script),
        # The only script that the page's policy lets run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _resource(name: str) -> str:
    return files("cs_aligner_cli.report").joinpath(name).read_text(encoding="utf-8")


def _with_photos(value: Any) -> Any:
    """The items to show with each photo's bytes, if any, as an address under "uri"."""
    if isinstance(value, Mapping):
        inner = {key: _with_photos(item) for key, item in value.items() if key != "photo"}
        return {**inner, "uri": value["photo"] and data_uri(value["photo"])} if "photo" in value else inner
    return [_with_photos(item) for item in value] if isinstance(value, list) else value


def report_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics in long form for a CSV file: dicts of store, metric, value, low, high, null, p, pairs.

    ``report`` as in ``render_page``; stores in its order, metrics in that of METRICS. None: no interval, no floor.
    """
    return [
        {
            "store": store,
            "metric": key,
            "value": values[key],
            "low": (_of(report, "intervals", store, key) or [None, None])[0],
            "high": (_of(report, "intervals", store, key) or [None, None])[1],
            "null": _of(report, "null", store, key),
            "p": _of(report, "tests", store, key),
            "pairs": _of(report, "samples", store, key),
        }
        for store, values in report["stores"].items()
        for key in in_report_order(values)
    ]


def _of(report: Mapping[str, Any], part: str, store: str, key: str) -> Any:
    return report.get(part, {}).get(store, {}).get(key)


def format_number(value: float | None) -> str:
    """Four decimals, as comparing divergences takes; powers of ten for tiny values; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.4f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _breakable(name: str) -> Any:
    """A store's name, escaped, that may go on in the next line after a mark inside it."""
    from markupsafe import Markup, escape

    text = str(escape(name))
    for mark in "+_:":
        text = text.replace(mark, f"{mark}<wbr>")
    return Markup(text)


def _percent(fraction: float | None) -> str:
    return "\N{EN DASH}" if fraction is None else f"{100 * fraction:.1f}"


def _rank(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1f}"


def _metric_groups(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics by group: one row per key with its text and (value, interval, null, p) per store.

    The meaning stands once per family, and the sample where it is smaller than the report's.
    """
    stores = {name: values for name, values in report["stores"].items() if values}
    groups: dict[str, list[dict[str, Any]]] = {}
    explained = ""
    for key in in_report_order({key for values in stores.values() for key in values}):
        metric, family = describe(key), key.partition("@")[0]
        cells = [
            (values.get(key), *(_of(report, part, n, key) for part in ("intervals", "null", "tests")))
            for n, values in stores.items()
        ]
        pairs = next((p for name in stores if (p := _of(report, "samples", name, key))), report["pairs"])
        row = {"metric": metric, "cells": cells, "explain": family != explained}
        groups.setdefault(metric.group, []).append({**row, "pairs": pairs if pairs < report["pairs"] else None})
        explained = family
    return [{"title": title, "about": GROUPS[title], "rows": groups[title]} for title in GROUPS if title in groups]


def _retrieval_table(retrieval: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that any store has, and per direction the stores' values in their order."""
    found = {key: None for store in retrieval.values() for side in store.values() for key in side}
    columns = [key for key in found if key.startswith(("R@", "mAP", "MRR", "nDCG"))]
    numbers = [key for key in ("median_rank", "mean_rank", "hubness") if key in found]
    groups = {
        title: {store: sides[side] for store, sides in retrieval.items() if side in sides}
        for side, title in _DIRECTIONS.items()
    }
    return {"fractions": columns, "numbers": numbers, "groups": groups if retrieval else {}}


def _figure(name: str, png: bytes) -> dict[str, Any]:
    # Width and height stand in the PNG's first chunk; with them the page does not jump while it opens.
    width, height = struct.unpack(">II", png[16:24])
    caption = _CAPTIONS.get(name, _Caption(name.replace("_", " ").capitalize(), ""))
    data = base64.b64encode(png).decode("ascii")
    # On a phone a figure of several panels keeps its letters legible and scrolls within its frame instead.
    min_width = round(0.6 * width) if width > _ONE_PANEL else 0
    first = name == _FIRST
    return {"caption": caption, "first": first, "width": width, "height": height, "min_width": min_width, "data": data}
