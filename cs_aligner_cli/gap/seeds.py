"""What holds over seeds of training: differences between stores, averaged over runs of one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from cs_aligner_cli.gap.differences import LEVEL, holm
from cs_aligner_cli.gap.results import Measurement, Spread, p_of, quantile


def seed_differences(
    runs: Sequence[Mapping[str, Measurement]], subject: str, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """The subject's value less that of every other store, per metric, averaged over runs that differ in their seed.

    ``runs`` (two or more, of the same test pairs): store to its measurement. Returns rows as ``differences``, with
    "values", the difference in each run. Runs and test pairs are crossed random effects: the variance of the mean is
    that between runs over their number, and that over test pairs of the mean difference; its degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 1946). ``metrics`` are one family for each other store, corrected by Holm.
    """
    rows: list[dict[str, Any]] = []
    for other in (name for name in runs[0] if name != subject and all(name in run for run in runs)):
        family = []
        for metric in metrics:
            sides = [(run[subject], run[other]) for run in runs]
            if not all(metric in side.spreads for both in sides for side in both):
                continue
            values = [mine.values[metric] - theirs.values[metric] for mine, theirs in sides]
            over_pairs = [mine.spreads[metric].less(theirs.spreads[metric]) for mine, theirs in sides]
            family.append({"store": other, "metric": metric, **_mean(values, over_pairs)})
        corrected = holm([row["p"] for row in family])
        rows += [
            {**row, "headline": True, "p_holm": p, "clear": p < LEVEL} for row, p in zip(family, corrected, strict=True)
        ]
    return rows


def _mean(values: Sequence[float], spreads: Sequence[Spread]) -> dict[str, Any]:
    count, mean = len(values), float(np.mean(values))
    average = reduce(Spread.plus, spreads).times(1 / count)
    between, over_pairs = float(np.var(values, ddof=1)) / count, average.variance
    variance = between + over_pairs
    if not variance:
        return {"difference": mean, "values": list(values), "interval": [mean, mean], "p": 1.0 if mean == 0 else 0.0}
    freedom = variance**2 / (between**2 / (count - 1) + over_pairs**2 / average.freedom)
    error = variance**0.5
    reach = quantile(freedom) * error
    interval = [mean - reach, mean + reach]
    return {"difference": mean, "values": list(values), "interval": interval, "p": p_of(mean / error, freedom)}
