"""Intervals cover and tests err as often as they say; every statistic is what numpy says of the drawn queries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import skew

from cs_aligner_cli.retrieval.bootstrap import _resamples, _values, intervals, statistics
from cs_aligner_cli.retrieval.metrics import QueryScores


def scored(ranks, occurrence) -> QueryScores:
    ranks, occurrence = np.asarray(ranks), np.asarray(occurrence)
    values = {"R@1": (ranks == 1).astype(float), "mean_rank": ranks.astype(float)}
    return QueryScores(np.arange(len(ranks)), ranks, values, occurrence)


def both(i2t, t2i, images: int, per_image: int, ranks=None):
    owner = np.repeat(np.arange(images), per_image)
    scores = {"i2t": scored(i2t, np.arange(len(owner)) % 7), "t2i": scored(t2i, np.arange(images) % 5)}
    queries, items = {"i2t": np.arange(images), "t2i": owner}, {"i2t": owner, "t2i": np.arange(images)}
    return statistics(scores, queries, items, ranks)


def test_every_statistic_of_a_draw_is_that_of_the_drawn_queries() -> None:
    rng = np.random.default_rng(0)
    images, per_image = 11, 3
    i2t, t2i = rng.integers(1, 9, images), rng.integers(1, 9, images * per_image)
    found = both(i2t, t2i, images, per_image)
    (weights,) = _resamples(images, 40, seed=3)
    drawn = _values(found, [weights])
    assert (weights.sum(axis=1) == images).all()
    for draw, counts in enumerate(weights.astype(int)):
        chosen = np.repeat(np.arange(images), counts)
        captions = (chosen[:, None] * per_image + np.arange(per_image)).ravel()
        assert drawn["i2t", "R@1"][draw] == pytest.approx((i2t[chosen] == 1).mean())
        assert drawn["t2i", "mean_rank"][draw] == pytest.approx(t2i[captions].mean())
        assert drawn["t2i", "median_rank"][draw] == np.median(t2i[captions])
        assert drawn["i2t", "median_rank"][draw] == np.median(i2t[chosen])
        assert drawn["t2i", "hubness"][draw] == pytest.approx(skew((np.arange(images) % 5)[chosen]), abs=1e-9)
        assert drawn["both", "RSum"][draw] == pytest.approx(
            100 * ((i2t[chosen] == 1).mean() + (t2i[captions] == 1).mean())
        )


def simulated(rng: np.random.Generator, images: int, per_image: int = 5):
    """Captions of one image share its difficulty, so treating them as independent would make intervals too short."""
    difficulty = rng.normal(size=images)
    hit = rng.random((images, per_image)) < 1 / (1 + np.exp(-1.5 * difficulty[:, None] - 0.3))
    image_hit = rng.random(images) < 1 / (1 + np.exp(-difficulty))
    return np.where(image_hit, 1, 2), np.where(hit.ravel(), 1, 2)


def test_the_interval_covers_the_true_recall() -> None:
    """True recalls from a million images; 1,000 evaluations of 300 images each: coverage 95% +- 2 points."""
    rng = np.random.default_rng(0)
    i2t, t2i = simulated(rng, 1_000_000)
    truth = {"i2t": (i2t == 1).mean(), "t2i": (t2i == 1).mean()}
    covered = {"i2t": 0, "t2i": 0}
    for trial in range(1000):
        spans = intervals(both(*simulated(rng, 300), 300, 5), draws=400, seed=trial)
        for direction in covered:
            low, high = spans[direction]["R@1"]
            covered[direction] += low <= truth[direction] <= high
    assert 930 <= covered["i2t"] <= 970, covered
    assert 930 <= covered["t2i"] <= 970, covered
