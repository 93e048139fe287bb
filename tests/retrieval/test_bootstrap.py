"""Intervals cover and tests err as often as they say; every statistic is what numpy says of the drawn queries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import skew, t

from cs_aligner_cli.retrieval.bootstrap import _resamples, _values, intervals, mean_statistics, statistics
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


def simulated(rng: np.random.Generator, images: int, per_image: int = 5, easy: float = 0.0):
    """Captions of one image share its difficulty, so treating them as independent would make intervals too short."""
    difficulty = rng.normal(size=images)
    hit = rng.random((images, per_image)) < 1 / (1 + np.exp(-1.5 * difficulty[:, None] - 0.3 - 1.2 * easy))
    image_hit = rng.random(images) < 1 / (1 + np.exp(-difficulty - easy))
    return np.where(image_hit, 1, 2), np.where(hit.ravel(), 1, 2)


@pytest.mark.parametrize("easiness", [[0.0], [4.0, 4.25, 4.5, 4.75, 5.0]], ids=["middle", "ceiling"])
def test_the_interval_covers_the_true_recall(easiness: list[float]) -> None:
    """True recalls from 400,000 images; 1,000 evaluations of 300 images each: coverage 95% +- 2 points.

    At the ceiling they are .97 to .995: over several, since few errors are a coarse scale.
    """
    rng = np.random.default_rng(0)
    covered = {"i2t": 0, "t2i": 0}
    owners = {"i2t": np.arange(300), "t2i": np.repeat(np.arange(300), 5)}
    for easy in easiness:
        truth = [(ranks == 1).mean() for ranks in simulated(rng, 400_000, easy=easy)]
        for _ in range(1000 // len(easiness)):
            for direction, ranks, true in zip(covered, simulated(rng, 300, easy=easy), truth, strict=True):
                hits = {(direction, "R@1"): (ranks == 1).astype(float)}
                low, high = intervals(mean_statistics(hits, owners[direction]))[direction]["R@1"]
                covered[direction] += low <= true <= high
    assert 930 <= covered["i2t"] <= 970, covered
    assert 930 <= covered["t2i"] <= 970, covered


def test_a_share_at_its_end_has_wilsons_interval_over_images() -> None:
    """Of 40 images with 5 captions each, all found: one minus 40 / (40 + z^2), z of Student's t with 39 degrees."""
    found = mean_statistics({("t2i", "R@1"): np.ones(200)}, np.repeat(np.arange(40), 5))
    low, high = intervals(found)["t2i"]["R@1"]
    assert (low, high) == (pytest.approx(40 / (40 + 2.0227**2), abs=1e-4), 1.0)
    one = intervals(mean_statistics({("t2i", "R@1"): np.zeros(1)}, np.zeros(1, int)))["t2i"]["R@1"]
    assert one == [pytest.approx(0.0, abs=1e-12), pytest.approx(1.0, abs=0.01)]


def test_what_all_images_score_alike_keeps_an_interval() -> None:
    """Every query finds its item first: no draw differs, and of 20 images that does not say that none ever will."""
    ones = np.ones(20, int)
    scores = {"i2t": scored(ones, ones * 0), "t2i": scored(ones, ones * 0)}
    for one in scores.values():
        one.values["MRR"] = np.ones(20)
    own = {direction: np.arange(20) for direction in scores}
    found = intervals(statistics(scores, own, own), draws=50)
    reach = t.ppf(0.975, 19) ** 2 / (20 + t.ppf(0.975, 19) ** 2)
    assert found["i2t"]["MRR"] == [pytest.approx(1 - reach), 1.0]
    assert found["i2t"]["mean_rank"] == [1.0, pytest.approx(1 + 19 * reach)]
    assert found["both"]["RSum"] == [pytest.approx(200 * (1 - reach)), 200.0]
