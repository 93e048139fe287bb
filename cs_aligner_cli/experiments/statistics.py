"""Means, intervals and tests over training seeds and test images at once: both are samples, and they are crossed.

Every seed answers the queries of the same images, so that a metric's value has two independent sources of chance.
The model is the one of multi-reader multi-case studies (readers are seeds, cases are images): y_si = mu + a_s + b_i +
e_si with both effects random (Dorfman, Berbaum & Metz, Invest. Radiol. 1992). In simulation the intervals and tests of
``Estimate`` never err more often than they say, at 5% and in the tails that Holm's correction looks at (``python
benchmarks/experiments.py coverage``). A percentile bootstrap of seeds, then images, errs too often with few seeds that
differ (a draw of three seeds has two thirds of their variance, and no heavier tails), and so do Hillis' degrees of
freedom (Statist. Med. 2007; 7% for 5% with three seeds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cs_aligner_cli.common.estimates import Estimate, crossed, variance
from cs_aligner_cli.common.types import Floats


def crossed_estimate(values: Floats, scale: float = 1.0) -> Estimate:
    """The mean of ``values`` (S seeds, C images), both being random samples; ``scale``: the range of one value.

    With MSA, MSB and MSE the mean squares of seeds, of images and of the rest, its variance is MSA / (S C) on S - 1
    degrees of freedom plus max(MSB - MSE, 0) / (S C) (``crossed``). One seed: the mean over images, on C - 1 degrees.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    if images < 2:
        return seeds_estimate(values[:, 0])
    by_image = values.mean(axis=0)
    if seeds < 2:
        return Estimate(mean, variance(by_image) / images, images - 1.0, 0.0, "images", images, scale)
    by_seed = values.mean(axis=1)
    rest = values - by_seed[:, None] - by_image + mean
    of_rest = variance(rest.ravel()) * (rest.size - 1) / ((seeds - 1) * (images - 1)) / (seeds * images)
    return crossed(mean, variance(by_seed) / seeds, seeds - 1.0, variance(by_image) / images, of_rest, images, scale)


def seeds_estimate(values: Sequence[float] | Floats) -> Estimate:
    """The mean of one number per seed (S,), as a centroid gap: what varies between test images is not in its error.

    Equal numbers, as of a count that is the same for all, or of what no seed changes, say as little as one does.
    """
    numbers = np.asarray(values, np.float64)
    mean, between = float(numbers.mean()), variance(numbers) if len(numbers) > 1 else 0.0
    if between == 0:
        return Estimate(mean, 0.0, 1.0, 0.0, "nothing")
    return Estimate(mean, between / len(numbers), len(numbers) - 1.0, 0.0, "seeds")


def per_image(sums: Floats, counts: Floats) -> Floats:
    """(S, C) values whose mean over images is each seed's ratio sum / count, to first order in the counts.

    ``sums`` (S, C): what the queries of an image scored together; ``counts`` (C,): how many queries it has.
    """
    share = counts / counts.mean()
    pooled = sums.sum() / (len(sums) * counts.sum())
    values: Floats = sums / counts.mean() - pooled * share + pooled
    return values


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
