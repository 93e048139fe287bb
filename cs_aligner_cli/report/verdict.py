"""The gap report in plain sentences, computed from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Shares of the gap and points of R@1 below these print as zero, and so are called unchanged.
_UNCHANGED_SHARE = 0.005
_UNCHANGED_POINTS = 0.05
_NO_GAP = 1e-9
_ARROW = "\N{NO-BREAK SPACE}\N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}"


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return a paragraph on the last store of this run against the first, then one against each between them.

    Last comes what needs no training. Stores without a centroid gap do not count; ``report`` is as in ``render_page``.
    """
    measured = [name for name, values in report["stores"].items() if "centroid_gap" in values]
    if not measured:
        return ["No store has its image and text rows in one space, so no gap between them can be measured yet."]
    kinds = report.get("kinds", {})
    own = [name for name in measured if kinds.get(name, "store") == "store"]
    sentences = []
    if len(own) == 1:
        sentences = [_alone(report, own[0])]
    elif own:
        sentences = [_compared(report, reference, own[-1]) for reference in own[:-1]]
    for kind, of_what in (("run", "Of the other runs' stores"), ("baseline", "Of what needs no training")):
        sentences += _best_of(report, of_what, [name for name in measured if kinds.get(name) == kind])
    return sentences


def _best_of(report: Mapping[str, Any], of_what: str, stores: list[str]) -> list[str]:
    """A sentence on the store that retrieves best, and one on that with the smallest gap, where it is another."""
    ranked = {name: recall for name in stores if (recall := mean_r1(report, name)) is not None}
    if not ranked:
        return []
    best = max(ranked, key=lambda name: ranked[name])
    closest = min(ranked, key=lambda name: float(report["stores"][name]["centroid_gap"]))
    sentence = f"{of_what}, {best} retrieves best: {_state(report, best)}."
    if closest != best:
        sentence += f" {closest} has the smallest gap: {_state(report, closest)}."
    return [sentence]


def _state(report: Mapping[str, Any], store: str) -> str:
    values = report["stores"][store]
    cosine = f", paired cosine {values['paired_cosine']:.2f}" if "paired_cosine" in values else ""
    return f"R@1 {mean_r1(report, store):.1f}%, gap {values['centroid_gap']:.2f}{cosine}"


def mean_r1(report: Mapping[str, Any], store: str) -> float | None:
    """R@1 of a store in percent, averaged over both directions; None where retrieval was not evaluated."""
    directions = report.get("retrieval", {}).get(store)
    if not directions:
        return None
    return 50 * float(directions["i2t"]["R@1"] + directions["t2i"]["R@1"])


def _alone(report: Mapping[str, Any], store: str) -> str:
    values, recall = report["stores"][store], mean_r1(report, store)
    parts = [f"{store} has a centroid gap of {values['centroid_gap']:.2f}"]
    if "paired_cosine" in values:
        parts.append(f"a paired cosine of {values['paired_cosine']:.2f}")
    if recall is not None:
        parts.append(f"an R@1 of {recall:.1f}%")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    alone = sum(bool(values) for values in report["stores"].values()) == 1
    ending = " There is no other store to compare it with." if alone else ""
    return f"{listed}.{_floor(report, store)}{ending}"


def _compared(report: Mapping[str, Any], reference: str, store: str) -> str:
    before, after = (report["stores"][name] for name in (reference, store))
    sentence = _gap_change(before["centroid_gap"], after["centroid_gap"], reference, store)
    sentence += _recall_change(mean_r1(report, reference), mean_r1(report, store), _is_chance(report, reference))
    cosines = before.get("paired_cosine"), after.get("paired_cosine")
    if None not in cosines:
        sentence += f"; paired cosine went {cosines[0]:.2f}{_ARROW}{cosines[1]:.2f}"
    sentence += f".{_floor(report, store)}"
    if None not in cosines and _closed_without_pairs(before, after):
        sentence += " But the paired cosine did not rise: the clouds moved together, the pairs did not come closer."
    return sentence


def _gap_change(before: float, after: float, reference: str, store: str) -> str:
    numbers = f"({before:.2f}{_ARROW}{after:.2f})"
    if before < _NO_GAP:
        return f"{reference} had no centroid gap, {store} has one of {after:.2f}"
    closed = 1 - after / before
    if abs(closed) < _UNCHANGED_SHARE:
        return f"{store} left the centroid gap of {reference} as it was {numbers}"
    if closed > 0:
        return f"{store} closed {closed:.0%} of the centroid gap of {reference} {numbers}"
    return f"{store} widened the centroid gap of {reference} by {-closed:.0%} {numbers}"


def _recall_change(before: float | None, after: float | None, chance: bool) -> str:
    if before is None or after is None:
        return ""
    won = after - before
    numbers = f"({before:.1f}%{_ARROW}{after:.1f}%{', within chance' if chance else ''})"
    if abs(won) < _UNCHANGED_POINTS:
        return f" with R@1 unchanged {numbers}"
    if won < 0:
        return f" at a cost of {-won:.1f} points of R@1 {numbers}"
    return f" and won {won:.1f} points of R@1 {numbers}"


def _is_chance(report: Mapping[str, Any], reference: str) -> bool:
    """Whether the difference of R@1 to a store was tested and found to be no more than chance."""
    rows = report.get("differences", ())
    return any(row["store"] == reference and row["metric"] == "R@1" and not row["clear"] for row in rows)


def _floor(report: Mapping[str, Any], store: str) -> str:
    floor = report.get("null", {}).get(store, {}).get("centroid_gap")
    if floor is None or report["stores"][store]["centroid_gap"] > floor:
        return ""
    return f" What is left lies within the null floor of {floor:.2f}: no gap can be told at this sample size."


def _closed_without_pairs(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    closed = after["centroid_gap"] < (1 - _UNCHANGED_SHARE) * before["centroid_gap"]
    return closed and after["paired_cosine"] <= before["paired_cosine"]
