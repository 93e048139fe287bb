"""What a report's tests show of its subject against another store: the only ground that its sentences stand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.report.headline import MIXED_RECALL, p_in_words

CONTROL = "pairwise_only"
GAP, MARGIN, RECALL, MIXED = "squared_gap_debiased", "margin_standardised", "R@1", MIXED_RECALL
# A smaller change of the margin counts as none: bringing shifted rows back to unit length does as much.
_UNCHANGED = 0.05


def own_stores(report: Mapping[str, Any]) -> list[str]:
    """This run's stores that were measured, in their order."""
    kinds = report.get("kinds", {})
    return [
        n for n, values in report["stores"].items() if "centroid_gap" in values and kinds.get(n, "store") == "store"
    ]


def reference_of(report: Mapping[str, Any]) -> str | None:
    """What the subject is compared with first: its control, else the first store of this run; None where there is none.

    The control differs in the divergence alone, a frozen store in all of training.
    """
    others = own_stores(report)[:-1]
    return next(iter(sorted(others, key=lambda name: name != CONTROL)), None)


def row_of(report: Mapping[str, Any], reference: str, metric: str) -> Mapping[str, Any] | None:
    """The test of the subject against a reference: over seeds, where they were measured."""
    rows = [*report.get("seeds", {}).get("differences", ()), *report.get("differences", ())]
    return next((row for row in rows if row["store"] == reference and row["metric"] == metric), None)


def direction(report: Mapping[str, Any], reference: str, metric: str) -> int:
    """1 where the subject's metric is clearly above the reference's, -1 where below, 0 where no difference is shown."""
    row = row_of(report, reference, metric)
    if row is None or not row["clear"]:
        return 0
    if metric == MARGIN and abs(row["difference"]) < _UNCHANGED * abs(value_of(report, reference, MARGIN)):
        return 0
    return 1 if row["difference"] > 0 else -1


def value_of(report: Mapping[str, Any], store: str, metric: str) -> float:
    """A store's value of a gap metric: the mean over seeds, where they were measured."""
    runs = report.get("seeds", {}).get("stores", {}).get(store) or [report["stores"][store]]
    return float(sum(run.get(metric, 0.0) for run in runs)) / len(runs)


def recall_of(report: Mapping[str, Any], store: str, metric: str = RECALL) -> float | None:
    """R@1 (mean of both directions) or R@10 in a mixed corpus, in percent; over seeds as ``value_of``; None: none."""
    if any(metric in run for run in report.get("seeds", {}).get("stores", {}).get(store, ())):
        return 100 * value_of(report, store, metric)
    if metric == MIXED:
        found = report.get("mixed", {}).get(store, {}).get("R@10")
        return None if found is None else 100 * float(found)
    return recall_in_run(report, store, metric)


def recall_in_run(report: Mapping[str, Any], store: str, metric: str = RECALL) -> float | None:
    """R@1 (mean of both directions) in percent in the report's own run, as its figures draw it; None: none."""
    directions = report.get("retrieval", {}).get(store)
    return 50 * float(directions["i2t"][metric] + directions["t2i"][metric]) if directions else None


def p_of_test(report: Mapping[str, Any], reference: str, metric: str) -> str:
    """``, p = 0.031`` of a difference, corrected where it was; "" where there is no test."""
    row = row_of(report, reference, metric)
    return "" if row is None else f", {p_in_words(row['p_holm'] if row.get('p_holm') is not None else row['p'])}"


def the_pairs(report: Mapping[str, Any]) -> str:
    """Whose word it is where a test knows one run only: in a report over seeds, that of its own run."""
    return "this run's pairs" if report.get("seeds") else "these pairs"


def gap_left(report: Mapping[str, Any], store: str) -> tuple[float, float, float] | None:
    """A store's centroid gap, what is read without any, and p of the sign-flip test; None where it was not tested."""
    found = [report.get(part, {}).get(store, {}).get("centroid_gap") for part in ("stores", "null", "tests")]
    return None if None in found else (found[0], found[1], found[2])
