"""Means, intervals and tests over training seeds and test images at once: both are samples, and they are crossed.

Every seed answers the queries of the same images, so that a metric's value has two independent sources of chance.
The model is the one of multi-reader multi-case studies (readers are seeds, cases are images): y_si = mu + a_s + b_i +
e_si with both effects random (Dorfman, Berbaum & Metz, Invest. Radiol. 1992). Intervals and p values are generalised
ones (Weerahandi, JASA 1993): Student's t where seeds alone vary, the normal distribution where images alone do, and
the mixture of the two in between. In simulation they never err more often than they say, at 5% and far out in the
tails that Holm's correction looks at (``python benchmarks/experiments.py coverage``). A percentile bootstrap of seeds,
then images, errs too often with few seeds that differ (a draw of three seeds has two thirds of their variance, and no
heavier tails), and so do Hillis' degrees of freedom (Statist. Med. 2007; 7% for 5% with three seeds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from cs_aligner_cli.common.shares import share_interval
from cs_aligner_cli.common.types import Floats

LEVEL = 0.05
# How many standard errors a 95% interval reaches either way where nothing varied.
_NORMAL = 1.96
POWER = 0.8
# Points of the seeds' chi-square distribution that p is averaged over: more of them change its third digit.
_QUANTILES = 500


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    ``of_seeds``: the part of the mean's variance that is estimated from ``df`` + 1 seeds; ``of_images``: the part that
    many images make known. ``covers`` names what they are over: "seeds and images", "images" (one seed), "seeds", or
    "nothing" (one seed, and no values per image), where intervals and p are NaN.
    """

    mean: float
    of_seeds: float
    df: float
    of_images: float
    covers: str

    @property
    def standard_error(self) -> float:
        """The square root of the mean's variance; NaN where nothing is known of it."""
        return math.sqrt(self.of_seeds + self.of_images) if self.covers != "nothing" else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
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
        return self._beyond(abs(self.mean)) if self.covers != "nothing" else math.nan

    @property
    def detectable(self) -> float:
        """The smallest true mean that a test of level 5% finds with probability 80% at this standard error."""
        return self._distance(LEVEL) + self._distance(2 * (1 - POWER))

    def _beyond(self, distance: float) -> float:
        """The probability that the mean lies further than ``distance`` from its expectation."""
        if self.of_seeds + self.of_images == 0:
            return 1.0 if distance == 0 else 0.0
        variances = self.of_seeds * _inverse_chi_squares(self.df) + self.of_images
        return float(special.erfc(distance / np.sqrt(2 * variances)).mean())

    def _distance(self, level: float) -> float:
        """The distance that is exceeded with probability ``level``."""
        error = self.standard_error
        if math.isnan(error) or error == 0:
            return error
        high = error * float(stats.t.ppf(1 - level / 2, self.df)) * 2
        return float(optimize.brentq(lambda distance: self._beyond(distance) - level, 0.0, high))


@lru_cache(maxsize=64)
def _inverse_chi_squares(df: float) -> Floats:
    """df / q at even quantiles q of the chi-square distribution: what an estimated variance of 1 may stand for."""
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    inverse: Floats = df / stats.chi2.ppf(shares, df)
    return inverse


def crossed_estimate(values: Floats) -> Estimate:
    """The mean of ``values`` (S seeds, C images), both being random samples.

    With MSA, MSB and MSE the mean squares of seeds, of images and of the rest, its variance is MSA / (S C) on S - 1
    degrees of freedom plus max(MSB - MSE, 0) / (S C). One seed: the mean over images, on C - 1 degrees of freedom.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    if images < 2:
        return seeds_estimate(values[:, 0])
    by_image = values.mean(axis=0)
    if seeds < 2:
        return Estimate(mean, float(by_image.var(ddof=1)) / images, images - 1.0, 0.0, "images")
    by_seed = values.mean(axis=1)
    rest = values - by_seed[:, None] - by_image + mean
    ms_images = seeds * float(by_image.var(ddof=1))
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    of_images = max(ms_images - ms_rest, 0.0) / (seeds * images)
    return Estimate(mean, float(by_seed.var(ddof=1)) / seeds, seeds - 1.0, of_images, "seeds and images")


def seeds_estimate(values: Sequence[float] | Floats) -> Estimate:
    """The mean of one number per seed (S,), as a centroid gap: what varies between test images is not in its error."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return Estimate(float(numbers.mean()), 0.0, 1.0, 0.0, "nothing")
    return Estimate(float(numbers.mean()), float(numbers.var(ddof=1)) / len(numbers), len(numbers) - 1.0, 0.0, "seeds")


def per_image(sums: Floats, counts: Floats) -> Floats:
    """(S, C) values whose mean over images is each seed's ratio sum / count, to first order in the counts.

    ``sums`` (S, C): what the queries of an image scored together; ``counts`` (C,): how many queries it has.
    """
    share = counts / counts.mean()
    pooled = sums.sum() / (len(sums) * counts.sum())
    values: Floats = sums / counts.mean() - pooled * share + pooled
    return values


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm, Scand. J. Stat. 1979), NaN staying NaN and not counted."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def pareto_front(cost: Sequence[float], gain: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none costs as little or less and gains as much or more, one of them strictly."""
    points = list(zip(cost, gain, strict=True))
    return [
        not any(c <= cost_ and g >= gain_ and (c < cost_ or g > gain_) for c, g in points) for cost_, gain_ in points
    ]


def main_effects(settings: Sequence[Mapping[str, str]], values: Sequence[float]) -> dict[str, float]:
    """Key to the share of the variance of ``values`` that the means over its values explain (eta squared).

    ``settings``: one mapping of key to value, as text, per configuration. Keys with a single value are left out; so
    are all of them where the values do not differ.
    """
    numbers = np.asarray(values, np.float64)
    total = float(((numbers - numbers.mean()) ** 2).sum())
    shares: dict[str, float] = {}
    for key in dict.fromkeys(key for own in settings for key in own):
        groups: dict[str, list[float]] = {}
        for own, value in zip(settings, numbers, strict=True):
            groups.setdefault(own.get(key, ""), []).append(float(value))
        if len(groups) > 1 and total > 0:
            between = sum(len(g) * (float(np.mean(g)) - float(numbers.mean())) ** 2 for g in groups.values())
            shares[key] = between / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
