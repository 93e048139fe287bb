"""A mean with its interval and test, where few seeds tell one part of its variance and many images another.

Intervals and p values are generalised ones (Weerahandi, JASA 1993): Student's t where seeds alone vary, the normal
distribution where images alone do, and the mixture of the two in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.common.shares import share_interval, where_all_agree
from cs_aligner_cli.common.types import Floats

POWER = 0.8
# How many standard errors a 95% interval reaches either way where nothing varied.
_NORMAL = 1.96
# Of the trapezoidal rule: from 200 on no digit of p changes.
_POINTS = 400
# Values that differ by less, standard deviation against the largest of them or 1, differ by rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    ``of_seeds``: the part of the mean's variance that is estimated from ``df`` + 1 seeds; ``of_images``: the part that
    many images make known. ``covers`` names what they are over: "seeds and images", "images" (one seed), "seeds", or
    "nothing" (no values per image, and of one seed, or the same of all), where intervals and p are NaN. ``units``: how
    many images were counted, each with a value in a range of ``scale``; where all have the same, interval and p are
    those of ``where_all_agree``. 0: values without variance are known.
    """

    mean: float
    of_seeds: float
    df: float
    of_images: float
    covers: str
    units: int = 0
    scale: float = 1.0

    @property
    def standard_error(self) -> float:
        """The square root of the mean's variance; NaN where nothing is known of it."""
        return math.sqrt(self.of_seeds + self.of_images) if self.covers != "nothing" else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
        if self._all_agree:
            low, high = where_all_agree(self.mean, self.units, self.scale)[0]
            return low, high
        half = self._distance(LEVEL)
        return self.mean - half, self.mean + half

    def share_interval(self, units: int, scale: float) -> tuple[float, float]:
        """The 95% interval of a mean that is ``scale`` times a share, over ``units``: Wilson's, at this one's width."""
        error = self.standard_error
        width = (self.interval[1] - self.mean) / error if error else _NORMAL
        low, high = share_interval(self.mean / scale, (error / scale) ** 2, units, width)
        return scale * low, scale * high

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the mean is 0."""
        if self._all_agree:
            return where_all_agree(self.mean, self.units)[1]
        return self._beyond(abs(self.mean)) if self.covers != "nothing" else math.nan

    @property
    def detectable(self) -> float:
        """The smallest true mean that a test of level 5% finds with probability 80% at this standard error."""
        return self._distance(LEVEL) + self._distance(2 * (1 - POWER))

    @property
    def _all_agree(self) -> bool:
        return self.units > 0 and self.standard_error == 0

    def _beyond(self, distance: float) -> float:
        """The probability that the mean lies further than ``distance`` from its expectation."""
        if self.of_seeds + self.of_images == 0:
            return 1.0 if distance == 0 else 0.0
        if self.of_seeds == 0 or distance == 0:
            return math.erfc(distance / math.sqrt(2 * (self.of_seeds + self.of_images)))
        if self.of_images == 0:
            from scipy import special

            return 2 * float(special.stdtr(self.df, -distance / math.sqrt(self.of_seeds)))
        return self._mixed(distance)

    def _mixed(self, distance: float) -> float:
        """The mean of the normal distribution's two tails over the seeds' variance, of_seeds df / q: an integral over
        log q with q of the chi-square distribution, by the trapezoidal rule, which is exact to rounding for a smooth
        function that vanishes at both ends."""
        from scipy import special

        # Below ``turn`` the tails are close to 1 and what is left falls as q^(df / 2), to 1e-13 of it at the low end.
        turn = min(math.log(self.of_seeds * self.df) - 2 * math.log(distance), math.log(self.df))
        logs = np.linspace(
            turn - 60 / self.df - 10 * math.sqrt(2 / self.df),
            math.log(self.df + 10 * math.sqrt(2 * self.df) + 80),
            _POINTS,
        )
        q = np.exp(logs)
        log_density = self.df / 2 * (logs - math.log(2)) - q / 2 - special.gammaln(self.df / 2)
        tails = special.erfc(distance / np.sqrt(2 * (self.of_seeds * self.df / q + self.of_images)))
        return float((np.exp(log_density) * tails).sum() * (logs[1] - logs[0]))

    def _distance(self, level: float) -> float:
        """The distance that is exceeded with probability ``level``."""
        error = self.standard_error
        if math.isnan(error) or error == 0:
            return error
        from scipy import optimize, special

        high = error * float(special.stdtrit(self.df, 1 - level / 2)) * 2
        return float(optimize.brentq(lambda distance: self._beyond(distance) - level, 0.0, high, rtol=1e-9))


def crossed(
    mean: float, of_seeds: float, df: float, of_images: float, of_rest: float, units: int = 0, scale: float = 1.0
) -> Estimate:
    """The mean over seeds and images, from the mean squares of seeds, of images and of the rest, over their number.

    What varies with both is in the squares of seeds too, and is taken from those of images. Counts may have the same
    sum for every seed by chance; then it is in the squares of seeds no more, and nothing is taken away.
    """
    known = max(of_images - of_rest, 0.0) if of_seeds > 0 else max(of_images, of_rest)
    return Estimate(mean, of_seeds, df, known, "seeds and images", units, scale)


def variance(values: Floats) -> float:
    """The sample variance of (n,) values; 0 where they differ by rounding alone."""
    found = float(values.var(ddof=1))
    return found if found > (_ROUNDING * max(1.0, float(np.abs(values).max()))) ** 2 else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm, Scand. J. Stat. 1979), NaN staying NaN and not counted."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted
