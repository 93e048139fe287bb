"""Distances between samples of features: closed forms, float64 references, and parity with torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.agreement import clip_score, prompt_retrieval, row_cosines
from cs_aligner_cli.generation.coverage import precision_recall
from cs_aligner_cli.generation.frechet import frechet_distance, frechet_floor
from cs_aligner_cli.generation.kernel_distances import cmmd, kid


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift


def with_moments(mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(4 * len(mean), len(mean)))
    rows -= rows.mean(axis=0)
    rows = np.linalg.qr(rows)[0] * (len(rows) - 1) ** 0.5
    return rows @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = (m @ m.T + np.eye(6) for m in rng.normal(size=(2, 6, 6)))
    m, n = rng.normal(size=(2, 6))
    found = frechet_distance(with_moments(m, a, 1), with_moments(n, b, 2))
    assert found["mean_part"] == pytest.approx(((m - n) ** 2).sum(), rel=1e-10)
    root = sqrtm(sqrtm(a) @ b @ sqrtm(a)).real
    assert found["covariance_part"] == pytest.approx(np.trace(a + b - 2 * root), rel=1e-9)
    assert found["distance"] == pytest.approx(found["mean_part"] + found["covariance_part"])


@pytest.mark.parametrize("n", [20, 500])  # fewer rows than dimensions, and more
def test_frechet_of_a_sample_with_itself_is_zero(n):
    x = sample(n, 64, 0, shift=3.0)
    for y in (x, np.random.default_rng(0).permutation(x), x[::-1].copy(), x + 1e-9):
        assert 0 <= frechet_distance(x, y)["covariance_part"] <= frechet_distance(x, y)["distance"] < 1e-6


@pytest.mark.parametrize("n", [40, 300])
def test_frechet_is_that_of_torch_fidelity(n):
    x, y = sample(n, 24, 0), sample(n + 7, 24, 1, shift=0.3)
    statistics = [fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y)["distance"] == pytest.approx(theirs, rel=1e-4)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_frechet_is_symmetric_shift_invariant_and_scales_by_the_square(seed):
    x, y = sample(12, 5, seed), sample(17, 5, seed + 1)
    value = frechet_distance(x, y)["distance"]
    assert frechet_distance(y, x)["distance"] == pytest.approx(value, rel=1e-8, abs=1e-10)
    assert frechet_distance(x + 4, y + 4)["distance"] == pytest.approx(value, rel=1e-8, abs=1e-10)
    assert frechet_distance(3 * x, 3 * y)["distance"] == pytest.approx(9 * value, rel=1e-8, abs=1e-10)


def test_frechet_floor_falls_with_the_sample_size_and_lies_under_a_difference():
    floors = [frechet_floor(np.random.default_rng(0).normal(size=(n, 8))) for n in (40, 400, 4000)]
    assert floors[0] > floors[1] > floors[2] > 0
    x, y = np.random.default_rng(1).normal(size=(2, 2000, 8))
    assert frechet_distance(x, y + 0.5)["distance"] > 10 * frechet_floor(x)
    assert np.isnan(frechet_floor(x[:3]))


def test_kid_is_that_of_torch_fidelity():
    x, y = sample(60, 16, 0), sample(60, 16, 1, shift=0.2)
    theirs = kid_features_to_metric(*map(torch.from_numpy, (x, y)), kid_subsets=1, kid_subset_size=60, verbose=False)[
        "kernel_inception_distance_mean"
    ]
    assert kid(x, y) == pytest.approx(theirs, rel=1e-4)


def test_kid_has_no_bias_and_its_tiles_do_not_show(monkeypatch):
    draws = np.random.default_rng(0).normal(size=(200, 2, 20, 4))
    values = [kid(x, y) for x, y in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    x, y = sample(50, 6, 0), sample(41, 6, 1)
    whole = kid(x, y), cmmd(x, y)
    monkeypatch.setattr("cs_aligner_cli.generation.kernel_distances._TILE", 7)
    assert (kid(x, y), cmmd(x, y)) == pytest.approx(whole, rel=1e-9)


def published_cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """The published form, written out: V-statistics of exp(-d^2 / 200) on unit rows, times 1,000."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_cmmd_is_the_published_formula_and_its_unbiased_form_has_no_floor():
    x, y = sample(70, 12, 0), sample(90, 12, 1, shift=0.5)
    assert cmmd(x, y, unbiased=False) == pytest.approx(published_cmmd(x, y), rel=1e-9)
    draws = np.random.default_rng(0).normal(size=(200, 2, 20, 4))
    values = [cmmd(a, b) for a, b in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert np.mean([cmmd(a, b, unbiased=False) for a, b in draws]) > 0.4


def test_precision_and_recall_are_those_of_torch_fidelity():
    x, y = sample(80, 6, 0), sample(80, 6, 1)
    theirs = prc_features_to_metric(
        *map(torch.from_numpy, (x, y)), prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    assert precision_recall(x, y) == pytest.approx({k: theirs[k] for k in ("precision", "recall")}, abs=1e-4)


def test_precision_sees_strangers_and_recall_what_is_missing():
    real = np.random.default_rng(0).normal(size=(200, 3))
    collapsed = real[:1] + 1e-3 * np.random.default_rng(1).normal(size=(200, 3))
    assert precision_recall(collapsed, real)["precision"] == 1
    assert precision_recall(collapsed, real)["recall"] < 0.02
    assert precision_recall(real + 100, real) == {"precision": 0, "recall": 0}
    assert precision_recall(real, real) == {"precision": 1, "recall": 1}


def test_cosines_and_clip_score():
    x, y = np.eye(3), np.array([[2.0, 0, 0], [0, -1, 0], [1, 0, 1]])
    assert row_cosines(x, y) == pytest.approx([1, -1, 0.5**0.5])
    assert clip_score(x, y) == pytest.approx(100 * (1 + 0 + 0.5**0.5) / 3)
    assert row_cosines(np.zeros((1, 3)), np.ones((1, 3))) == pytest.approx([0])
    assert clip_score(np.ones((8, 3)), np.ones((8, 3))) == 100  # and no 3e-14 more


def test_prompt_retrieval_counts_equal_prompts_once():
    prompts = ["a", "b", "a", "c"]
    text = np.eye(4)[[0, 1, 0, 2]]
    assert prompt_retrieval(text, text, prompts) == {"prompt_R@1": 1}
    assert prompt_retrieval(text[[1, 0, 2, 3]], text, prompts) == {"prompt_R@1": 0.5}
    many = np.random.default_rng(0).normal(size=(40, 30))
    assert prompt_retrieval(many, many, [str(i) for i in range(40)]) == {"prompt_R@1": 1, "prompt_R@10": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x[:1], x), "x: a covariance needs at least 2 rows, got 1"),
        (lambda x: frechet_distance(x, np.full((3, 4), np.nan)), "y: row 0 is not finite"),
        (lambda x: frechet_distance(x, x[:, :2]), "differ in dimension: 4 against 2"),
        (lambda x: kid(x, x[:1]), "y: a kernel distance needs at least 2 rows, got 1"),
        (lambda x: precision_recall(x[:3], x), "generated: 3 neighbours need more than 3 rows"),
        (lambda x: precision_recall(np.full((5, 4), np.nan), x), "generated: row 0 is not finite"),
        (lambda x: kid(x, np.where(x > 1, np.inf, x)), "y: row . is not finite"),
        (lambda x: cmmd(np.where(x > 1, np.nan, x), x), "x: row . is not finite"),
        (lambda x: clip_score(x, np.where(x > 1, np.nan, x)), "y: row . is not finite"),
        (lambda x: row_cosines(x, x[:3]), "there are 9 and 3"),
    ],
)
def test_samples_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.random.default_rng(0).normal(size=(9, 4)))
