"""Which differences between stores of the same pairs are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cs_aligner_cli.common.estimates import holm
from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.common.shares import cut_off, of_difference, where_all_agree
from cs_aligner_cli.gap.bounds import is_counted, metric_bounds
from cs_aligner_cli.gap.results import Measurement, interval, p_value


def differences(measured: Mapping[str, Measurement], subject: str, headline: Sequence[str]) -> list[dict[str, Any]]:
    """The subject's value less that of every other store, per metric, tested on the pairs that both hold.

    ``measured`` by store. Returns rows of "store", "metric", "difference", "interval" [low,
    high] of 95%, "p" (Student's t, two-sided), "headline" and "clear". The metrics of ``headline`` are one family for
    each other store: "p_holm" is corrected for their number (Holm, Scandinavian Journal of Statistics 1979), and they
    are clear where it is below 0.05. All others are exploratory: their p is not corrected, and none of them is ever
    called clear. Metrics that one of the two lacks are left out.
    """
    rows: list[dict[str, Any]] = []
    mine = measured[subject]
    for other, theirs in measured.items():
        of_other: list[dict[str, Any]] = []
        for metric in mine.values if other != subject else ():
            if metric not in mine.spreads or metric not in theirs.spreads:
                continue
            difference = mine.values[metric] - theirs.values[metric]
            spread = mine.spreads[metric].less(theirs.spreads[metric])
            span, p = interval(difference, spread), p_value(difference, spread)
            if is_counted(metric) and not spread.error:
                span, p = where_all_agree(difference, spread.units)
            span = cut_off(difference, span, of_difference(metric_bounds(metric)))
            row = {"store": other, "metric": metric, "difference": difference, "interval": span}
            of_other.append({**row, "p": p, "headline": metric in headline, "p_holm": None, "clear": False})
        family = [row for row in of_other if row["headline"]]
        for row, corrected in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"], row["clear"] = corrected, corrected < LEVEL
        rows += of_other
    return rows
