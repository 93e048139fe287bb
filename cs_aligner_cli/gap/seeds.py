"""What holds over seeds of training: differences between stores, averaged over runs of one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from cs_aligner_cli.common.estimates import Estimate, crossed, holm, variance
from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.common.shares import cut_off, of_difference
from cs_aligner_cli.gap.bounds import is_counted, metric_bounds
from cs_aligner_cli.gap.results import Measurement, Spread


def seed_differences(
    runs: Sequence[Mapping[str, Measurement]], subject: str, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """The subject's value less that of every other store, per metric, averaged over runs that differ in their seed.

    ``runs`` (two or more, of the same test pairs): store to its measurement. Returns rows as ``differences``, with
    "values", the difference in each run. Runs and test pairs are crossed random effects: the variance of the mean is
    that between runs over their number, estimated from so few, and what test pairs add to it by themselves (see
    ``Estimate``). ``metrics`` are one family for each other store, corrected by Holm.
    """
    rows: list[dict[str, Any]] = []
    for other in (name for name in runs[0] if name != subject and all(name in run for run in runs)):
        family: list[dict[str, Any]] = []
        for metric in metrics:
            sides = [(run[subject], run[other]) for run in runs]
            if not all(metric in side.spreads for both in sides for side in both):
                continue
            values = [mine.values[metric] - theirs.values[metric] for mine, theirs in sides]
            over_pairs = [mine.spreads[metric].less(theirs.spreads[metric]) for mine, theirs in sides]
            found = _mean(values, over_pairs, is_counted(metric))
            span = cut_off(found.mean, found.interval, of_difference(metric_bounds(metric)))
            row = {"store": other, "metric": metric, "difference": found.mean, "values": values}
            family.append({**row, "interval": span, "p": found.p})
        corrected = holm([row["p"] for row in family])
        rows += [
            {**row, "headline": True, "p_holm": p, "clear": p < LEVEL} for row, p in zip(family, corrected, strict=True)
        ]
    return rows


def _mean(values: Sequence[float], spreads: Sequence[Spread], counted: bool) -> Estimate:
    count = len(values)
    average = reduce(Spread.plus, spreads).times(1 / count)
    # What varies with both, run and pairs, is in the variance between runs already.
    rest = sum(spread.less(average).variance for spread in spreads) / (count - 1)
    between, units = variance(np.asarray(values)) / count, average.units if counted else 0
    return crossed(float(np.mean(values)), between, count - 1.0, average.variance, rest / count, units)
