"""Estimates over seeds and images: closed forms, coverage and error rates in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from cs_aligner_cli.common.estimates import Estimate, holm
from cs_aligner_cli.experiments.columns import Column
from cs_aligner_cli.experiments.comparison import _interval, _tested
from cs_aligner_cli.experiments.statistics import (
    crossed_estimate,
    main_effects,
    pareto_front,
    per_image,
    seeds_estimate,
)


def drawn(rng: np.random.Generator, seeds: int, images: int, of_seed: float, of_image: float, rest: float = 1.0):
    return (
        of_seed * rng.standard_normal((seeds, 1))
        + of_image * rng.standard_normal(images)
        + rest * rng.standard_normal((seeds, images))
    )


def test_one_seed_is_the_standard_error_of_the_images():
    values = np.random.default_rng(0).standard_normal((1, 50))
    found = crossed_estimate(values)
    assert found.standard_error == pytest.approx(stats.sem(values[0]))
    assert (found.df, found.covers) == (49, "images")


def test_equal_images_leave_the_t_interval_over_seeds():
    by_seed = np.array([0.1, 0.3, 0.2])
    found = crossed_estimate(np.repeat(by_seed[:, None], 40, axis=1))
    expected = seeds_estimate(by_seed)
    assert found.interval == pytest.approx(expected.interval)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed)), abs=2e-3)


def test_equal_seeds_leave_the_t_interval_over_images():
    row = np.random.default_rng(1).standard_normal(60)
    found = crossed_estimate(np.tile(row, (4, 1)))
    assert found.interval == pytest.approx(stats.norm.interval(0.95, row.mean(), stats.sem(row)), abs=1e-6)


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_all_images_have_is_known_as_well_as_so_many_can_tell(seeds: int):
    reach = 100 * stats.t.ppf(0.975, 19) ** 2 / (20 + stats.t.ppf(0.975, 19) ** 2)
    none, every = (crossed_estimate(np.full((seeds, 20), value), 100.0) for value in (0.0, 12.3))
    assert none.interval == pytest.approx((-reach, reach))
    assert every.interval == pytest.approx((12.3 - reach, 12.3 + reach))
    assert (none.p, every.p) == (1.0, 2.0**-19)
    noise = np.random.default_rng(0).uniform(-1e-15, 1e-15, (seeds, 20))
    assert crossed_estimate(12.3 + noise, 100.0).p == 2.0**-19, "sums in another order are no variance"


def test_seeds_that_agree_by_chance_keep_what_their_images_vary():
    """Of three runs, each answers another query more than the control does: the same sum, and one query of 50."""
    won = np.zeros((3, 50))
    won[[0, 1, 2], [0, 1, 2]] = 1
    found = crossed_estimate(won)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.p > 0.05


def test_equal_numbers_of_all_seeds_are_not_tested():
    found = seeds_estimate([0.5, 0.5, 0.5])
    assert (found.mean, found.covers) == (0.5, "nothing")
    assert all(map(math.isnan, (*found.interval, found.p, found.standard_error)))


def test_intervals_hold_a_difference_that_one_image_in_a_hundred_makes():
    """In a third of such experiments no image differs; an interval without width would hold in 63% of all."""
    rng = np.random.default_rng(0)
    made = [crossed_estimate(np.tile((rng.uniform(size=100) < 0.01).astype(float), (3, 1))) for _ in range(300)]
    assert sum(one.interval[0] <= 0.01 <= one.interval[1] for one in made) > 0.95 * 300


@pytest.mark.parametrize(("df", "t"), [(2, 100.0), (2, 300.0), (4, 30.0), (4, 300.0), (199, 0.5)])
def test_p_far_in_the_tails_is_students(df: int, t: float):
    """Holm's correction multiplies what is there: a tail that is cut off would stay cut off."""
    expected = 2 * stats.t.sf(t, df)
    assert Estimate(t, 1.0, df, 0.0, "seeds").p == pytest.approx(expected, rel=1e-9)
    assert Estimate(t, 1.0, df, 1e-12, "seeds and images").p == pytest.approx(expected, rel=1e-6), "by the mixture"


def test_p_of_a_mixture_is_the_integral_over_the_seeds_variance():
    def tails(q: float) -> float:
        return float(stats.chi2.pdf(q, 2) * 2 * stats.norm.sf(8 / np.sqrt(2 / q + 0.5)))

    expected = integrate.quad(tails, 0, 0.1, epsabs=0)[0] + integrate.quad(tails, 0.1, 60, epsabs=0)[0]
    assert Estimate(8.0, 1.0, 2.0, 0.5, "seeds and images").p == pytest.approx(expected, rel=1e-6)


def test_one_number_says_nothing_of_its_error():
    assert math.isnan(seeds_estimate([0.4]).interval[0])
    assert math.isnan(seeds_estimate([0.4]).p)


@given(st.integers(1, 5), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_per_image_values_have_each_seeds_ratio_as_their_mean(seeds: int, images: int, seed: int):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, images).astype(float)
    sums = rng.random((seeds, images)) * counts
    values = per_image(sums, counts)
    assert values.mean(axis=1) == pytest.approx(sums.sum(axis=1) / counts.sum())


@pytest.mark.parametrize(("seeds", "of_seed"), [(2, 0.05), (3, 0.02), (3, 0.3), (5, 0.0), (5, 0.05)])
def test_the_interval_covers(seeds: int, of_seed: float):
    rng, trials = np.random.default_rng(7), 300
    intervals = [crossed_estimate(drawn(rng, seeds, 60, of_seed, 0.5)).interval for _ in range(trials)]
    covered = sum(low <= 0 <= high for low, high in intervals) / trials
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials) <= covered <= 0.99


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_holm_over_paired_tests_keeps_the_family_error(seeds: int):
    """Six configurations that are all worth what the control is, as differences to it: they share its noise."""
    rng = np.random.default_rng(8)
    wrong, trials = 0, 200
    of_seed = 0.05 if seeds > 1 else 0.0  # one seed's test says that it covers the images alone
    for _ in range(trials):
        control = drawn(rng, seeds, 60, of_seed, 1.0)
        p = [crossed_estimate(drawn(rng, seeds, 60, of_seed, 0.3) - control * 0.3).p for _ in range(6)]
        wrong += min(holm(p)) < 0.05
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.8])[0] == 1.0
    assert math.isnan(holm([0.9, math.nan])[1])


def test_the_front_keeps_what_nothing_beats_and_twins_of_it():
    assert pareto_front([0.3, 0.1, 0.1, 0.2], [24, 22, 22, 21]) == [True, True, True, False]


def test_main_effects_of_an_additive_grid_sum_to_one():
    settings = [{"a": str(a), "b": str(b)} for a in range(3) for b in range(3)]
    values = [2.0 * int(s["a"]) + int(s["b"]) for s in settings]
    found = main_effects(settings, values)
    assert list(found) == ["a", "b"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["a"] == pytest.approx(0.8)


RECALL = Column(key="eval_retrieval.aligned.i2t.R@10", title="i2t R@10", better="higher", scale=100.0)


def test_a_recall_that_every_seed_reaches_in_full_keeps_an_interval():
    low, high = _interval(crossed_estimate(np.full((3, 50), 100.0)), RECALL, (0.0, 100.0), 50)
    assert (low, high) == (pytest.approx(100 * 50 / (50 + 1.96**2)), 100.0)
    gap = RECALL.model_copy(update={"key": "gap_report.aligned.centroid_gap"})
    assert _interval(seeds_estimate([1.5] * 3), gap, (0.0, 2.0), 50) is None


def test_intervals_and_those_of_differences_end_where_their_metric_does():
    wide = seeds_estimate([10.0, 90.0])
    assert wide.interval[1] > 500
    tested = _tested({"recall": {"a": wide}, "gap": {"a": wide}}, {"recall": (0.0, 100.0), "gap": (0.0, math.inf)})
    assert tested["recall"]["a"].interval == (-100.0, 100.0)
    assert tested["gap"]["a"].interval == pytest.approx(wide.interval)
    accuracy = Column(key="zero_shot.aligned.accuracy", title="zero-shot", scale=100.0)
    assert _interval(wide, accuracy, (0.0, 100.0), 50) == (0.0, 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_interval_of_a_recall_near_its_ceiling_covers(seeds):
    """Images of unlike difficulty, seeds that answer by chance: R@10 of .96 to .99, 200 images, 1,500 experiments."""
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for trial in range(1500):
        hard = (1, 2, 4)[trial % 3] / 100  # the share of images that are found half of the time
        values = (rng.random((seeds, 200)) > 0.5 * (rng.random(200) < 2 * hard)) * 100.0
        found = crossed_estimate(values)
        for score in covered:
            low, high = _interval(found, RECALL, (0.0, 100.0), 200) if score else found.interval
            covered[score] += low <= 100 * (1 - hard) <= high
    assert 0.93 <= covered[True] / 1500 <= 0.985, covered
    assert covered[False] < covered[True]
