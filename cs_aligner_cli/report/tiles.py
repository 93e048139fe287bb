"""The four numbers that a report opens with: the gap left, R@1, mixed retrieval, and what was to be had for free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.report.evidence import (
    MIXED,
    RECALL,
    direction,
    gap_left,
    own_stores,
    recall_of,
    reference_of,
    row_of,
    the_pairs,
    value_of,
)
from cs_aligner_cli.report.free import Alternative, free_alternatives
from cs_aligner_cli.report.headline import p_in_words, signed

_ALONE = "no other store to compare with"


class Tile(NamedTuple):
    """A question's number, what it is compared with, and in words what its test says; ``tone``: good, bad or open."""

    title: str
    value: str
    detail: str
    words: str
    tone: str = "open"


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """The tiles of the report's subject; [] where no store has a gap to measure. ``report`` as in ``render_page``."""
    own, reference = own_stores(report), reference_of(report)
    if not own:
        return []
    subject = own[-1]
    found = [_gap(report, reference, subject), _recall(report, reference, subject), _mixed(report, reference, subject)]
    free = free_alternatives(report, subject)
    return [*found, _free(report, free[0], subject)] if free else found


def _gap(report: Mapping[str, Any], reference: str | None, subject: str) -> Tile:
    detail = f"{reference} {value_of(report, reference, 'centroid_gap'):.3f}" if reference else ""
    value, found = f"{value_of(report, subject, 'centroid_gap'):.3f}", gap_left(report, subject)
    if found is None:
        return Tile("Centroid gap left", value, detail, "not tested")
    _, level, p = found
    detail = "; ".join(part for part in (detail, f"{level:.3f} is read without a gap") if part)
    words = "no gap can be told" if p >= LEVEL else "a gap is left"
    words += " in this run" if report.get("seeds") else ""
    return Tile("Centroid gap left", value, detail, f"{words}, {p_in_words(p)}", "good" if p >= LEVEL else "bad")


def _recall(report: Mapping[str, Any], reference: str | None, subject: str) -> Tile:
    recall = recall_of(report, subject)
    row = row_of(report, reference, RECALL) if reference else None
    if reference is None or row is None or recall is None:
        value, words = ("\N{EN DASH}", "not measured") if recall is None else (f"{recall:.1f}%", _ALONE)
        return Tile("R@1, mean of both ways", value, "", words)
    before = recall_of(report, reference) or 0.0
    detail = f"{recall:.1f}%; {reference} {before:.1f}%; {_interval(row)}"
    words, tone = _judged(direction(report, reference, RECALL))
    return Tile(f"R@1, against {reference}", f"{signed(100 * row['difference'], 1)} points", detail, words, tone)


def _mixed(report: Mapping[str, Any], reference: str | None, subject: str) -> Tile:
    title, after = "R@10, images and texts searched together", recall_of(report, subject, MIXED)
    if after is None:
        # Rankings of fewer than ten images have no R@10.
        wanting = "10 images" if report.get("mixed", {}).get(subject) else "two captions of an image"
        return Tile(title, "\N{EN DASH}", "", f"not measured: it takes {wanting}")
    row = row_of(report, reference, MIXED) if reference else None
    if reference is None or row is None:
        return Tile(title, f"{after:.1f}%", "", _ALONE)
    before = recall_of(report, reference, MIXED) or 0.0
    words, tone = _judged(direction(report, reference, MIXED))
    return Tile(title, f"{after:.1f}%", f"{reference} {before:.1f}%; {_interval(row)}", words, tone)


def _free(report: Mapping[str, Any], best: Alternative, subject: str) -> Tile:
    """The strongest closed form: a good one makes the training look dear, and is marked so."""
    gap, recall = report["stores"][best.store]["centroid_gap"], recall_of(report, best.store)
    detail = f"{best.what}; gap {gap:.3f}, R@1 {recall:.1f}%"
    mixed = recall_of(report, best.store, MIXED)
    detail += f", mixed R@10 {mixed:.1f}%" if mixed is not None else ""
    if not best.tested:
        return Tile("Best for free", best.store, detail, "not tested")
    if best.as_good:
        lead, tone = f"as good, as far as {the_pairs(report)} tell", "bad"
    else:
        lead, tone = ("another trade", "open") if best.better else ("not as good", "good")
    return Tile("Best for free", best.store, detail, f"{lead}: {best.compared(subject)}", tone)


def _interval(row: Mapping[str, Any]) -> str:
    low, high = (signed(100 * bound, 1) for bound in row["interval"])
    return f"95%: {low} to {high} points"


def _judged(change: int) -> tuple[str, str]:
    return {
        1: ("higher, more than chance", "good"),
        -1: ("lower, more than chance", "bad"),
        0: ("no difference is shown", "open"),
    }[change]
