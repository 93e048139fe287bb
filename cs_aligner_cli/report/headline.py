"""The two short tables that a report opens with: every store at a glance, and the differences that were tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cs_aligner_cli.common.p_values import rounded_p
from cs_aligner_cli.gap.glossary import describe

_DIRECTIONS = {"i2t": "R@1 image to text", "t2i": "R@1 text to image"}
RECALLS = ("R@1", "R@10")
# R@10 in a corpus of images and texts together, in which a gap does harm.
MIXED_RECALL = "mixed_R@10"
_GAP, _SQUARED_GAP = "centroid_gap", "squared_gap_debiased"
_METRICS = ("margin", "margin_standardised", "residual_ratio", "cs_divergence")
_TITLES = {
    "R@1": "R@1, mean of both ways",
    "R@10": "R@10, mean of both ways",
    MIXED_RECALL: "R@10 in a mixed corpus",
    _GAP: "Centroid gap",
    _SQUARED_GAP: "Squared gap, debiased",
    "margin": "Margin",
    "margin_standardised": "Margin, standardised",
    "residual_ratio": "Residual, in strangers'",
}
# What a column says, where it stands.
_ABOUT = {
    "i2t": "own text found first",
    "t2i": "own image found first",
    "R@1": "queries answered first",
    "R@10": "queries answered among the first ten",
    MIXED_RECALL: "images and texts searched together",
    _GAP: "between the mean image and text",
    _SQUARED_GAP: "less what sampling noise adds",
    "margin": "cosine of pairs less that of strangers",
    "margin_standardised": "in standard deviations of strangers",
    "residual_ratio": "of pairs over strangers, means taken away",
    "cs_divergence_u": "between the distributions; 0: none",
}
_UP = (*RECALLS, MIXED_RECALL, "margin", "margin_standardised")


class Cell(NamedTuple):
    """A number with its interval, as shown; ``sort`` is the bare number (None: there is none)."""

    shown: str
    interval: str = ""
    sort: float | None = None
    clear: bool = False
    note: str = ""


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every store: {"columns": [{"title", "about", "better"}], "rows": [{"store", "kind", "cells": [Cell]}]}."""
    stores = {name: values for name, values in report["stores"].items() if values}
    kinds, retrieval = report.get("kinds", {}), report.get("retrieval", {})
    recalls = report.get("recall_intervals", {})
    directions = [d for d in _DIRECTIONS if any(d in found for found in retrieval.values())]
    keys = metric_keys(report)
    mixed = report.get("mixed", {})
    columns = [{"title": _DIRECTIONS[d], "about": _ABOUT[d], "better": "up"} for d in directions]
    columns += [_column(key) for key in ([MIXED_RECALL] if mixed else []) + keys]
    rows = []
    for name, values in stores.items():
        cells = [
            _percent(retrieval.get(name, {}).get(d, {}).get("R@1"), recalls.get(name, {}).get(d, {}).get("R@1"))
            for d in directions
        ]
        if mixed:
            span = recalls.get(name, {}).get("mixed", {}).get("R@10")
            cells.append(_percent(mixed.get(name, {}).get("R@10"), span))
        spans = report.get("intervals", {}).get(name, {})
        cells += [_number(values.get(key), spans.get(key), _no_gap(report, name, key)) for key in keys]
        rows.append({"store": name, "kind": kinds.get(name, "store"), "cells": cells})
    return {"columns": columns, "rows": rows}


def changes(report: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the differences between the report's subject and every other store, laid out as ``headline``."""
    return _laid_out(report, report.get("differences", ()))


def seed_changes(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same over seeds of training, and "runs"; {} where one run was measured."""
    seeds = report.get("seeds", {})
    laid_out = _laid_out(report, seeds.get("differences", ()))
    return {**laid_out, "runs": seeds["runs"]} if laid_out else {}


def _laid_out(report: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {(row["store"], row["metric"]): row for row in tests}
    if not found:
        return {}
    keys = [key for key in tested_metrics(report) if any(metric == key for _, metric in found)]
    rows = [
        {"store": name, "kind": report["kinds"][name], "cells": [_change(key, found.get((name, key))) for key in keys]}
        for name in report["stores"]
        if any((name, key) in found for key in keys)
    ]
    return {"subject": report["subject"], "columns": [_column(key) for key in keys], "rows": rows}


def _column(key: str) -> dict[str, str]:
    """A column's title, what it says, and whether "up" or "down" is better."""
    about = _ABOUT.get(key.partition("@")[0] if key.startswith("cs_") else key, "")
    return {"title": _title(key), "about": about, "better": "up" if key in _UP else "down"}


def metric_keys(report: Mapping[str, Any]) -> list[str]:
    """The metrics of the headline that the stores have; of D_CS, U at the middle bandwidth."""
    return [key for key in (_GAP, *_tested(report)) if any(key in values for values in report["stores"].values())]


def tested_metrics(report: Mapping[str, Any]) -> list[str]:
    """The family whose differences between stores are tested together: R@K, the squared gap, and the headline's."""
    return [*RECALLS, MIXED_RECALL, _SQUARED_GAP, *_tested(report)]


def _tested(report: Mapping[str, Any]) -> list[str]:
    there = {key for values in report["stores"].values() for key in values}
    divergences = sorted(
        (key for key in there if key.startswith("cs_divergence_u@")), key=lambda key: float(key.partition("@")[2])
    )
    middle = divergences[len(divergences) // 2 : len(divergences) // 2 + 1]
    return [key for name in _METRICS for key in (middle if name == "cs_divergence" else [name])]


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_in_words(p: float) -> str:
    """``p = 0.031``, or ``p < 0.001``; ``p < 0.05`` where rounding would put it at the level that it is below."""
    rounded = rounded_p(p)
    return f"p {rounded}" if rounded.startswith("<") else f"p = {rounded}"


def _no_gap(report: Mapping[str, Any], store: str, key: str) -> str:
    """What the metric reads without a gap, and whether there is one."""
    level, p = (report.get(part, {}).get(store, {}).get(key) for part in ("null", "tests"))
    if p is None:
        return ""
    return f"no gap: {level:.3f}, {p_in_words(p)}" if level else f"no gap: 0, {p_in_words(p)}"


def _title(key: str) -> str:
    name, _, bandwidth = key.partition("@")
    return _TITLES.get(key) or f"{describe(name).label}, at {bandwidth}"


def _percent(value: float | None, span: list[float] | None) -> Cell:
    if value is None:
        return Cell("\N{EN DASH}")
    return Cell(f"{100 * value:.1f}%", f"{100 * span[0]:.1f} to {100 * span[1]:.1f}" if span else "", value)


def _number(value: float | None, span: list[float] | None, note: str) -> Cell:
    if value is None:
        return Cell("\N{EN DASH}")
    low, high = span or (0.0, 0.0)
    shown = [number(v) for v in (value, low, high)]
    return Cell(shown[0], f"{shown[1]} to {shown[2]}" if span else "", value, note=note)


def _change(key: str, row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell("\N{EN DASH}")
    percent = key in (*RECALLS, MIXED_RECALL)
    scale, digits, unit = (100, 1, " points") if percent else (1, 4 if key == _SQUARED_GAP else 3, "")
    low, high = (signed(scale * bound, digits) for bound in row["interval"])
    value = row["difference"]
    note = p_in_words(row["p_holm"]) if row.get("p_holm") is not None else ""
    return Cell(f"{signed(scale * value, digits)}{unit}", f"{low} to {high}", value, row["clear"], note)
