"""How sure a share is: Wilson's interval, on as many trials as its variance is worth."""

from __future__ import annotations

import math


def share_interval(share: float, variance: float, units: int, z: float) -> list[float]:
    """The interval [low, high] of a share in [0, 1] that has this variance (Wilson 1927); ``z`` standard errors wide.

    It keeps its width where the share nears 0 or 1, where the variance vanishes; there ``units``, the independent
    things that were counted (an image with all its captions), are the trials.
    """
    spreading = share * (1 - share)
    trials = spreading / variance if spreading > 0 and variance > 0 else float(max(units, 1))
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(spreading / trials + z * z / (4 * trials * trials))
    return [max(centre - reach, 0.0), min(centre + reach, 1.0)]
