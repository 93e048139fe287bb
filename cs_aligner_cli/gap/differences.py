"""Which differences between stores of the same pairs are more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.results import interval


def differences(
    values: Mapping[str, Mapping[str, float]], draws: Mapping[str, Mapping[str, Floats]], subject: str
) -> list[dict[str, Any]]:
    """The subject's value less that of every other store, per metric: a paired bootstrap.

    ``values`` and ``draws`` (D,) by store and metric, the draws being those of the same resampled pairs in every
    store. Returns rows of "store", "metric", "difference", "interval" [low, high] of 95%, and "clear": whether the
    interval leaves out 0. Metrics that one of the two lacks are left out.
    """
    rows = []
    for other in values:
        for metric in values[subject] if other != subject else ():
            if metric not in draws[subject] or metric not in draws[other]:
                continue
            low, high = interval(draws[subject][metric] - draws[other][metric])
            rows.append(
                {
                    "store": other,
                    "metric": metric,
                    "difference": values[subject][metric] - values[other][metric],
                    "interval": [low, high],
                    "clear": bool(np.isfinite([low, high]).all() and (low > 0 or high < 0)),
                }
            )
    return rows
