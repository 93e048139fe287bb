"""Differences of counted shares where every query, or every run, has the same: no variance is no certainty."""

from __future__ import annotations

import numpy as np
import pytest

from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.groups import random_groups
from cs_aligner_cli.gap.results import Measurement, Smooth, Spread
from cs_aligner_cli.gap.seeds import seed_differences

QUERIES = 20


def test_a_difference_that_all_queries_share_is_not_known_to_the_last_digit() -> None:
    none = Spread(np.zeros(QUERIES), None, QUERIES)
    values = {"a": {"R@1": 1.0, "margin": 0.5}, "b": {"R@1": 1.0, "margin": 0.5}, "c": {"R@1": 0.0, "margin": 0.2}}
    sides = {name: Measurement(of_store, dict.fromkeys(of_store, none)) for name, of_store in values.items()}
    over_pairs = {(row["store"], row["metric"]): row for row in differences(sides, "a", ["R@1"])}
    over_seeds = {(row["store"], row["metric"]): row for row in seed_differences([sides, sides], "a", ["R@1"])}
    for rows in (over_pairs, over_seeds):
        low, high = rows["b", "R@1"]["interval"]
        assert -low == high == pytest.approx(0.18, abs=0.01)  # Wilson's of none of 20
        assert rows["b", "R@1"]["p"] == 1
        assert rows["c", "R@1"]["interval"] == [pytest.approx(1 - high), 1.0]
        assert rows["c", "R@1"]["p"] == 2.0**-19  # all 20 of one sign
    # What is no count can be known: equal rows have equal margins.
    assert over_pairs["b", "margin"]["interval"] == [0, 0]


def test_runs_that_agree_by_chance_keep_what_their_queries_vary() -> None:
    """Each of three runs answers another query more than the other store does: no mean differs, and one query of 50."""
    runs = []
    for run in range(3):
        won = (np.arange(50) == run) / 50
        mine = Measurement({"R@1": 0.52}, {"R@1": Spread(won - won.mean(), None, 50)})
        runs.append({"a": mine, "b": Measurement({"R@1": 0.5}, {"R@1": Spread(np.zeros(50), None, 50)})})
    (row,) = seed_differences(runs, "a", ["R@1"])
    assert row["interval"][0] < 0 < row["interval"][1]
    assert row["p"] > 0.05


def test_intervals_hold_a_difference_that_one_query_in_a_hundred_makes() -> None:
    """In a third of such samples no query differs, and an interval without width would hold in 63% of all."""
    groups, rng, held = random_groups(100, 0), np.random.default_rng(0), 0
    lost = Measurement({"R@10": 0.5}, {"R@10": Spread(np.zeros(100), None, 100)})
    for _ in range(300):
        won = (rng.uniform(size=100) < 0.01).astype(float)
        spread = Smooth(0.0, (won - won.mean()) / 100).spread(groups)
        (row,) = differences({"a": Measurement({"R@10": 0.5 + won.mean()}, {"R@10": spread}), "b": lost}, "a", [])
        held += row["interval"][0] <= 0.01 <= row["interval"][1]
    assert held > 0.95 * 300
