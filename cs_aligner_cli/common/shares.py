"""Intervals that say no more than can be: Wilson's of a share, and any other cut off at what its quantity may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

# The least and the most that a quantity can be.
Bounds: TypeAlias = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)


def share_interval(share: float, variance: float, units: int, z: float) -> list[float]:
    """The interval [low, high] of a share in [0, 1] that has this variance (Wilson 1927); ``z`` standard errors wide.

    It keeps its width where the share nears 0 or 1, where the variance vanishes; there ``units``, the independent
    things that were counted (an image with all its captions), are the trials.
    """
    spreading = share * (1 - share)
    trials = spreading / variance if spreading > 0 and variance > 0 else float(max(units, 1))
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(spreading / trials + z * z / (4 * trials * trials))
    return cut_off(share, [centre - reach, centre + reach], SHARE)


def cut_off(value: float, interval: Sequence[float], bounds: Bounds) -> list[float]:
    """The part of a value's interval [low, high] within ``bounds``; NaN stays NaN.

    Rounding may take the value itself beyond its bounds, 1 + 2e-16 say; the interval holds it all the same.
    """
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in interval)
    return [min(low, value), max(high, value)]


def where_all_agree(value: float, units: int, scale: float = 1.0) -> tuple[list[float], float]:
    """The 95% interval of a mean over units that all have the same value, and p of the hypothesis that it is 0.

    Of what is counted, as queries answered, a variance of 0 does not make it known: the interval is Wilson's of none of
    so many that differ, either way, each by ``scale``, the range of a unit's values; p is that of all having one sign
    by chance.
    """
    from scipy.special import stdtrit

    z = float(stdtrit(max(units - 1, 1), 0.975))
    reach = scale * z * z / (max(units, 1) + z * z)
    return [value - reach, value + reach], 1.0 if value == 0 else min(2.0 ** (1 - units), 1.0)


def of_difference(bounds: Bounds) -> Bounds:
    """The bounds of the difference of two quantities that have these."""
    reach = bounds[1] - bounds[0]
    return -reach, reach
