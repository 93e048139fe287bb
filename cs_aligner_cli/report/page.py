"""The gap report as one HTML file that needs no network, and as rows for a CSV file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from cs_aligner_cli.common.templates import load_template, read_resource
from cs_aligner_cli.gap.glossary import GROUPS, describe, in_report_order
from cs_aligner_cli.report import SORT_SCRIPT
from cs_aligner_cli.report.canvas import Picture
from cs_aligner_cli.report.captions import caption, in_words
from cs_aligner_cli.report.evidence import own_stores
from cs_aligner_cli.report.examples import data_uri
from cs_aligner_cli.report.headline import changes, headline, p_in_words, seed_changes
from cs_aligner_cli.report.inline_svg import anchor, inline_svg
from cs_aligner_cli.report.tiles import tiles
from cs_aligner_cli.report.verdict import answers, further

_TEMPLATE, _SCRIPTS = "page.html.j2", (SORT_SCRIPT, "page.js")
_FIRST = "gap_against_recall"  # the figure that stands before all others
_ONE_PANEL = 1000  # pixels; wider figures have several panels side by side
_SHOWN = 1.1  # pixels of the page to a pixel of the PNG
_DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}


def render_page(
    report: Mapping[str, Any], figures: Mapping[str, Picture], shown: Mapping[str, Any] | None = None
) -> str:
    """Return the report as one self-contained HTML page: figures as SVG that follows the page's scheme, one script.

    ``report`` holds plain JSON values, as docs/gap-report.md describes them: "name", "split", "pairs" and "stores"
    (store to metrics, {} where its rows share no space) are required; "note", "findings", "kinds", "subject",
    "intervals", "null", "tests", "bands", "samples", "retrieval", "recall_intervals", "mixed", "differences", "seeds",
    "sweep", "conflict", "pictures", "published" (tables) and "provenance" are not. A retrieval direction ("i2t", "t2i")
    needs "R@1". ``figures`` maps a name to its Picture; those that ``report.captions`` knows have an explanation,
    others are shown under their name. ``shown`` holds pairs and queries to look at, as the stage makes them. Everything
    is escaped. Raises InputError on an unknown metric.
    """
    filters = {"number": format_number, "percent": _percent, "rank": _rank, "breakable": _breakable, "p": p_in_words}
    template = load_template(__package__, _TEMPLATE, **filters)
    script = "".join(read_resource(__package__, name) for name in _SCRIPTS)
    provenance = dict(report.get("provenance", {}))
    recipe = provenance.pop("recipe", "")
    stores = report["stores"]
    parts = {
        "table": headline(report),
        "changes": changes(report),
        "seeds": seed_changes(report),
        "published": report.get("published", []),
        "figures": [_figure(name, picture, report) for name, picture in figures.items()],
        "shown": _with_photos(shown or {}),
        "metric_groups": _metric_groups(report),
        "retrieval": _retrieval_table(report.get("retrieval", {})),
        "provenance": provenance,
    }
    return template.render(
        **parts,
        report=report,
        contents=_contents(parts),
        answers=answers(report),
        further=further(report),
        tiles=tiles(report),
        stores=_shown_first(report),
        without_space=[name for name, values in stores.items() if not values],
        subject=report.get("subject"),
        recipe=recipe,
        script=Markup(script),  # noqa: S704 - our own file
        # The only script that the page's policy lets run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _contents(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, by their ids."""
    there = {
        "glance": ("Every store", parts["table"]["rows"]),
        "differences": ("Differences", parts["changes"]),
        "seeds": ("Seeds of training", parts["seeds"]),
        "published": ("Beside the published", parts["published"]),
        "figures": ("Pictures", [figure for figure in parts["figures"] if not figure["first"]]),
        "pairs": ("Pairs and queries", parts["shown"]),
        "metrics": ("Every metric", parts["metric_groups"]),
        "retrieval": ("Retrieval", parts["retrieval"]["groups"]),
        "provenance": ("Where this comes from", parts["provenance"]),
    }
    return [(section, title) for section, (title, present) in there.items() if present]


def _shown_first(report: Mapping[str, Any]) -> list[str]:
    """The stores in the order of a wide table's columns: what is compared with what, then all others."""
    measured = [name for name, values in report["stores"].items() if values]
    own = own_stores(report)
    return [*reversed(own), *(name for name in measured if name not in own)]


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


def _breakable(name: str) -> Markup:
    """A store's name, escaped, that may go on in the next line after a mark inside it."""
    text = str(escape(name))
    for mark in "+_:":
        text = text.replace(mark, f"{mark}<wbr>")
    return Markup(text)  # noqa: S704 - escaped above


def _percent(fraction: float | None) -> str:
    return "\N{EN DASH}" if fraction is None else f"{100 * fraction:.1f}"


def _rank(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1f}"


def _metric_groups(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics by group: one row per key with its text and (value, interval, null, p) per store.

    The meaning stands once per family, and the sample where it is smaller than the report's.
    """
    stores = {name: report["stores"][name] for name in _shown_first(report)}
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


def _figure(name: str, picture: Picture, report: Mapping[str, Any]) -> dict[str, Any]:
    # A figure grows no larger than it was drawn; on a phone it keeps its letters legible and scrolls within its frame.
    return {
        "caption": caption(name),
        "id": f"figure-{anchor(name)}",
        "first": name == _FIRST,
        "svg": Markup(inline_svg(picture.svg, name, in_words(name, report, picture.titles))),  # noqa: S704 - drawn here
        "width": round(_SHOWN * picture.width),
        "min_width": round((0.6 if picture.width > _ONE_PANEL else 0.5) * picture.width),
    }
