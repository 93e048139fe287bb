"""The two short tables that a report opens with: every store at a glance, and the differences that were tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cs_aligner_cli.gap.glossary import describe

_DIRECTIONS = {"i2t": "R@1 image to text", "t2i": "R@1 text to image"}
_METRICS = ("centroid_gap", "paired_cosine", "cs_divergence", "neighbour_purity", "mutual_knn")
_TITLES = {
    "centroid_gap": "Centroid gap",
    "paired_cosine": "Paired cosine",
    "neighbour_purity": "Modality purity",
    "mutual_knn": "Mutual kNN",
}


class Cell(NamedTuple):
    """A number with its interval, as shown; ``sort`` is the bare number (None: there is none)."""

    shown: str
    interval: str = ""
    sort: float | None = None
    clear: bool = False


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of every store: {"columns": [{"title", "better"}], "rows": [{"store", "kind", "cells": [Cell]}]}."""
    stores = {name: values for name, values in report["stores"].items() if values}
    kinds, retrieval = report.get("kinds", {}), report.get("retrieval", {})
    recalls = report.get("recall_intervals", {})
    directions = [d for d in _DIRECTIONS if any(d in found for found in retrieval.values())]
    keys = metric_keys(report)
    columns = [{"title": _DIRECTIONS[d], "better": "up"} for d in directions]
    columns += [{"title": _title(key), "better": _better(key)} for key in keys]
    rows = []
    for name, values in stores.items():
        cells = [
            _percent(retrieval.get(name, {}).get(d, {}).get("R@1"), recalls.get(name, {}).get(d)) for d in directions
        ]
        spans = report.get("intervals", {}).get(name, {})
        cells += [_number(values.get(key), spans.get(key)) for key in keys]
        rows.append({"store": name, "kind": kinds.get(name, "store"), "cells": cells})
    return {"columns": columns, "rows": rows}


def changes(report: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the differences between the report's subject and every other store, laid out as ``headline``."""
    found = {(row["store"], row["metric"]): row for row in report.get("differences", ())}
    if not found:
        return {}
    keys = ["R@1", *metric_keys(report)]
    rows = [
        {"store": name, "kind": report["kinds"][name], "cells": [_change(key, found.get((name, key))) for key in keys]}
        for name, values in report["stores"].items()
        if values and name != report["subject"]
    ]
    titles = ["R@1, mean of both ways", *(_title(key) for key in keys[1:])]
    return {"subject": report["subject"], "columns": [{"title": title} for title in titles], "rows": rows}


def metric_keys(report: Mapping[str, Any]) -> list[str]:
    """The metrics of the headline that the stores have; of D_CS, U (else V) at the middle bandwidth."""
    there = {key for values in report["stores"].values() for key in values}
    keys: list[str] = []
    for name in _METRICS:
        if name != "cs_divergence":
            keys += [name] if name in there else []
            continue
        for estimator in "uv":
            with_bandwidth = [key for key in there if key.startswith(f"{name}_{estimator}@")]
            if with_bandwidth:
                ordered = sorted(with_bandwidth, key=lambda key: float(key.partition("@")[2]))
                keys.append(ordered[len(ordered) // 2])
                break
    return keys


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _title(key: str) -> str:
    name, _, bandwidth = key.partition("@")
    return _TITLES.get(key) or f"{describe(name).label}, at {bandwidth}"


def _better(key: str) -> str:
    return "up" if key in ("paired_cosine", "mutual_knn") else "down"


def _percent(value: float | None, span: list[float] | None) -> Cell:
    if value is None:
        return Cell("\N{EN DASH}")
    return Cell(f"{100 * value:.1f}%", f"{100 * span[0]:.1f} to {100 * span[1]:.1f}" if span else "", value)


def _number(value: float | None, span: list[float] | None) -> Cell:
    if value is None:
        return Cell("\N{EN DASH}")
    low, high = span or (0.0, 0.0)
    shown = [f"{v:.3f}".replace("-", "\N{MINUS SIGN}") for v in (value, low, high)]
    return Cell(shown[0], f"{shown[1]} to {shown[2]}" if span else "", value)


def _change(key: str, row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell("\N{EN DASH}")
    scale, digits, unit = (100, 1, " points") if key == "R@1" else (1, 3, "")
    low, high = (signed(scale * bound, digits) for bound in row["interval"])
    value = row["difference"]
    return Cell(f"{signed(scale * value, digits)}{unit}", f"{low} to {high}", value, row["clear"])
