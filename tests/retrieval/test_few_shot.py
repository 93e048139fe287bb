"""Few-shot classification: perfect, collapsed and unrelated rows, closed forms, and draws that nest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from samples import tensor_rows
from torch.overrides import TorchFunctionMode

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval.few_shot import (
    METHODS,
    Shots,
    _over_draws,
    few_shot,
    linear_probe,
    nearest_mean,
    tip_adapter,
)

LABELS = np.repeat(np.arange(4), 20)


def clustered(seed: int, spread: float) -> torch.Tensor:
    centres = 3 * torch.eye(4, 6)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((80, 6))).float()
    return centres[LABELS] + spread * noise


def test_rows_that_are_their_classes_are_all_recognised() -> None:
    found = few_shot(clustered(0, 0.0), LABELS, clustered(1, 0.0), LABELS, torch.eye(4, 6), draws=2)
    assert set(found) == set(METHODS) and list(found["linear_probe"]) == [1, 2, 4, 8, 16]
    assert all(accuracy.mean == 1 and math.isnan(accuracy.low) for by_k in found.values() for accuracy in by_k.values())


def test_collapsed_rows_are_all_of_the_first_class() -> None:
    same = torch.ones(80, 6)
    found = few_shot(same, LABELS, same, LABELS, torch.ones(4, 6), shots=(2,), draws=2)
    assert all(by_k[2].mean == 0.25 for by_k in found.values())


def test_rows_that_know_nothing_of_the_classes_score_as_chance_does() -> None:
    known, asked = (tensor_rows(seed, 800, 6).float() for seed in (0, 1))
    labels = np.repeat(np.arange(4), 200)
    found = few_shot(known, labels, asked, labels, tensor_rows(2, 4, 6).float(), shots=(4,), draws=4)
    assert all(abs(by_k[4].mean - 0.25) < 0.06 for by_k in found.values())


def test_more_shots_help_where_rows_are_noisy_and_names_do_not_change() -> None:
    found = few_shot(clustered(0, 1.0), LABELS, clustered(1, 1.0), LABELS, torch.eye(4, 6), draws=5)
    assert found["nearest_mean"][16].mean > found["nearest_mean"][1].mean + 0.1
    assert found["linear_probe"][16].mean > found["linear_probe"][1].mean + 0.1
    assert len({accuracy.mean for accuracy in found["zero_shot"].values()}) == 1
    low, high = found["nearest_mean"][1][1:]
    assert low < found["nearest_mean"][1].mean < high
    assert math.isnan(
        few_shot(clustered(0, 1), LABELS, clustered(1, 1), LABELS, torch.eye(4, 6), (1,), 1)["zero_shot"][1].low
    )


def test_no_interval_over_draws_goes_beyond_what_an_accuracy_can_be() -> None:
    assert _over_draws([1.0, 0.9])[1:] == pytest.approx((0.95 - 12.706 * 0.05, 1.0), abs=1e-3)
    assert _over_draws([0.0, 0.1]).low == 0


def test_methods_are_their_formulas() -> None:
    rows, asked, names = (tensor_rows(seed, n, 5) for seed, n in ((0, 6), (1, 3), (2, 2)))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    shots = Shots(rows, labels, names)
    means = l2_normalize(torch.stack([rows[labels == c].mean(dim=0) for c in (0, 1)]))
    torch.testing.assert_close(nearest_mean(shots, asked), asked @ means.T)
    expected = 100 * asked @ names.T
    for i, c in enumerate(labels):
        expected[:, c] += torch.exp(-5.5 * (1 - asked @ rows[i]))
    torch.testing.assert_close(tip_adapter(shots, asked), expected)


def test_the_probe_is_where_its_gradient_vanishes() -> None:
    """Adding a constant row of features changes nothing, and neither does starting from other units."""
    rows, asked = tensor_rows(0, 12, 4), tensor_rows(1, 5, 4)
    labels = torch.arange(3).repeat(4)
    names = tensor_rows(2, 3, 4)
    plain = linear_probe(Shots(rows, labels, names), asked)
    moved = linear_probe(Shots(7 * rows + 1, labels, names), 7 * asked + 1)
    torch.testing.assert_close(plain, moved, atol=1e-3, rtol=1e-3)


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"shots: 16 images of each class are wanted, but class 3 .* has 5"):
        few_shot(clustered(0, 0)[:65], LABELS[:65], clustered(1, 0), LABELS, torch.eye(4, 6))


def test_draws_that_are_all_right_say_nothing_of_how_draws_vary() -> None:
    mean, low, high = _over_draws([1.0, 1.0, 1.0])
    assert mean == 1
    assert np.isnan(low) and np.isnan(high)


class Largest(TorchFunctionMode):
    """The entries of the largest tensor that a function of torch returns."""

    entries = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.entries = max(self.entries, found.numel())
        return found


def test_the_cache_is_asked_block_by_block() -> None:
    """ImageNet has 50,000 images to ask and 16,000 shots."""
    labels = torch.arange(4).repeat_interleave(250)
    shots = Shots(tensor_rows(0, 1000, 6), labels, tensor_rows(1, 4, 6))
    asked = tensor_rows(2, 5000, 6)
    with Largest() as largest:
        found = tip_adapter(shots, asked)
    assert largest.entries <= 1024 * 1000
    torch.testing.assert_close(found[1500:1520], tip_adapter(shots, asked[1500:1520]))
