"""Scores of two encoders before training: perfect ones, strangers, and what is known in between."""

from __future__ import annotations

import numpy as np
import pytest
from samples import random_rows
from scipy.stats import ortho_group

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap.pair_scores import score_pair


def test_a_rotation_of_the_same_features_is_a_perfect_pair() -> None:
    x = random_rows(0, 120, 6)
    found = score_pair(x, x @ ortho_group.rvs(6, random_state=1))
    assert found.recall == 1 and found.gallery == 24
    for low, high in (found.recall_interval, found.mutual_knn_interval):
        assert 0.95 < low < 0.99 and high == pytest.approx(1), "120 of 120 prove no certainty"
    assert found.mutual_knn == pytest.approx(1) and found.cka == pytest.approx(1)
    assert found.cka_shuffled < 0.3


def test_strangers_score_as_chance_does() -> None:
    found = score_pair(random_rows(0, 300, 8), random_rows(1, 300, 8))
    low, high = found.recall_interval
    assert low <= 1 / 60 <= high, "one of 60 candidates"
    assert found.mutual_knn == pytest.approx(10 / 299, abs=0.02)
    assert found.cka == pytest.approx(found.cka_shuffled, abs=0.05)


def test_no_map_is_asked_for_pairs_that_it_knows() -> None:
    """With as many dimensions as pairs, CCA would know every pair that it was fitted on."""
    assert score_pair(random_rows(0, 60, 80), random_rows(1, 60, 80)).recall < 0.5


def test_noise_lowers_all_scores() -> None:
    x, noise = random_rows(0, 200, 6, unit=False), np.random.default_rng(2).standard_normal((200, 6))
    near, far = score_pair(x, x + 0.2 * noise), score_pair(x, x + 2 * noise)
    assert near.recall > far.recall and near.mutual_knn > far.mutual_knn and near.cka > far.cka
    assert near.recall_interval[0] > far.recall_interval[1]


def test_rows_that_are_no_pairs_and_too_few_are_refused() -> None:
    x = random_rows(0, 60, 4)
    with pytest.raises(InputError, match="no pairs: 60 rows against 59"):
        score_pair(x, x[:59])
    with pytest.raises(InputError, match="49 pairs are too few to score encoders on; expected at least 50"):
        score_pair(x[:49], x[:49])


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "image: 1 of 60 rows are not finite"), (0.0, "image: 1 of 60 rows are all zeros"), (None, "masked")],
)
def test_rows_without_a_direction_are_refused(value: float | None, message: str) -> None:
    x, y = random_rows(0, 60, 4), random_rows(1, 60, 6)
    spoilt = np.ma.masked_less(x, 0) if value is None else np.where(np.arange(60)[:, None] == 3, value, x)
    with pytest.raises(InputError, match=message):
        score_pair(spoilt, y)
