"""Pairwise terms other than InfoNCE: against open_clip, plain formulas and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from samples import tensor_rows
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import (
    align_uniform,
    cs_divergence,
    direction_agreement,
    energy_distance,
    frechet,
    generalized_cs_divergence,
    hoelder_divergence,
    infonce,
    infonce_with_negatives,
    joint_loss,
    l2_contrastive,
    mmd,
    pseudo_pairs,
    siglip,
    siglip_with_negatives,
    tiles,
    token_cs_divergence,
)
from cs_aligner_cli.objectives.levels import late_interaction_infonce
from cs_aligner_cli.objectives.pseudo_pairs import Side


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE", {"cpu": (4, 7)})


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -3.0), (1.0, 2.0)])
def test_siglip_is_open_clips_loss(scale: float, bias: float) -> None:
    leaves = [tensor_rows(0, 10, 8).float(), tensor_rows(1, 10, 8).float(), torch.tensor(scale), torch.tensor(bias)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    ours, theirs = siglip(*leaves), SigLipLoss()(*leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for grad, expected in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)
    assert siglip(leaves[0].detach().numpy(), leaves[1].detach().numpy(), scale, bias).item() == ours.item()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: siglip(x, y, 10.0, -3.0),
        lambda x, y: hoelder_divergence(x, y, 0.2, 1.5, 1.2),
        lambda x, y: generalized_cs_divergence([x, y, x.flip(0)[:50]], 0.2),
        lambda x, y: infonce(x, y, 20.0),
        lambda x, y: cs_divergence(x, y, 0.2),
    ],
)
def test_sums_over_hundreds_of_tiles_are_those_of_float64(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    image, text = tensor_rows(0, 100, 4).float(), tensor_rows(1, 100, 4).float()
    exact = loss(image.double(), text.double()).item()
    assert loss(image, text).dtype == torch.float32
    assert loss(image, text).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 0, 1, 2, 2, 2])])
def test_siglip_gradient_and_groups(groups: torch.Tensor | None) -> None:
    inputs = [tensor_rows(0, 6, 3), tensor_rows(1, 6, 3), *(torch.tensor(v, dtype=torch.float64) for v in (5.0, -2.0))]
    inputs = [leaf.requires_grad_() for leaf in inputs]
    assert torch.autograd.gradcheck(lambda *leaves: siglip(*leaves, groups), inputs)
    image, text, scale, bias = inputs
    signs = 2 * torch.eye(6, dtype=torch.float64) - 1
    counted = torch.ones(6, 6, dtype=torch.bool)
    if groups is not None:
        counted = (groups.unsqueeze(1) != groups) | torch.eye(6, dtype=torch.bool)
    losses = -torch.nn.functional.logsigmoid(signs * (scale * image @ text.T + bias))
    torch.testing.assert_close(siglip(*inputs, groups), losses[counted].sum() / 6)


def test_align_uniform_is_its_formula() -> None:
    x, y = tensor_rows(0, 9, 4).requires_grad_(), tensor_rows(1, 9, 4).requires_grad_()

    def uniformity(z: torch.Tensor, t: float) -> torch.Tensor:
        return torch.exp(-t * torch.pdist(z).square()).mean().log()

    for weight, t in ((1.0, 2.0), (0.3, 5.0)):
        expected = (x - y).square().sum(1).mean() + weight * (uniformity(x, t) + uniformity(y, t)) / 2
        torch.testing.assert_close(align_uniform(x, y, weight, t), expected)
        assert torch.autograd.gradcheck(lambda a, b: align_uniform(a, b, weight, t), (x, y))  # noqa: B023


def test_l2_contrastive_is_regression_plus_a_light_infonce() -> None:
    x, y = tensor_rows(0, 9, 4).requires_grad_(), tensor_rows(1, 9, 4).requires_grad_()
    groups = torch.arange(9) // 2
    expected = (x - y).square().sum(1).mean() + 0.2 * infonce(x, y, 20.0, groups)
    torch.testing.assert_close(l2_contrastive(x, y, 20.0, groups), expected)
    assert torch.autograd.gradcheck(lambda a, b: l2_contrastive(a, b, 20.0, groups, 0.5), (x, y))


@pytest.mark.parametrize("scale", [0.0, 1e-25])
@pytest.mark.parametrize("products", ["infonce", "joint"])
def test_the_gradients_at_a_scale_of_next_to_nothing(scale: float, products: str) -> None:
    x, y = (tensor_rows(seed, 7, 4).requires_grad_() for seed in (0, 1))
    of_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    logits, own = of_scale * x @ y.T, torch.arange(7)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    found = infonce(x, y, of_scale)
    if products == "joint":
        expected, found = expected + cs_divergence(x, y, 0.5), joint_loss(x, y, of_scale, 0.5)
    leaves = x, y, of_scale
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::cs_aligner_cli.common.errors.NotUnitRowsWarning")
@pytest.mark.parametrize("size", [1e-25, 1e19, 1e30])
def test_float32_rows_whose_squares_float32_cannot_hold(size: float) -> None:
    """Every value and gradient is that of the same rows in float64."""
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        *(lambda x, y, of=of: of(x, y, bandwidth=size) for of in (cs_divergence, mmd, hoelder_divergence) if size > 1),
        lambda x, y: generalized_cs_divergence([x, y], max(size, 0.7)),
        lambda x, y: token_cs_divergence(x[None], y[None], max(size, 0.7)),
        lambda x, y: joint_loss(x, y, 1.0, 0.7),
        lambda x, y: siglip(x, y, 1.0, 0.0),
        energy_distance,
        align_uniform,
        frechet,
    ]
    rows = [tensor_rows(seed, 6, 4).float() * size for seed in (0, 1)]
    for loss in losses:
        leaves = [[z.to(dtype).requires_grad_() for z in rows] for dtype in (torch.float32, torch.float64)]
        found, expected = (loss(*own) for own in leaves)
        assert expected.isfinite()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        of_rows, of_wide = (
            torch.autograd.grad(value, own) for value, own in zip((found, expected), leaves, strict=True)
        )
        for one, other in zip(of_rows, of_wide, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-37 + 1e-6 * float(other.abs().max()))


def test_a_pairs_own_logit_counts_however_large_it_is() -> None:
    """The maximum of a row is that of its tiles: another product of the same two rows differs in its last digits."""
    x = tensor_rows(0, 9, 30)
    assert infonce(x, x.clone(), 1e20).item() == infonce(x.float(), x.float(), 1e12).item() == 0


def test_infonce_is_right_at_a_negative_scale() -> None:
    x, y = tensor_rows(0, 9, 4).float(), tensor_rows(1, 9, 4).float()
    logits, own = -100 * x.double() @ y.double().T, torch.arange(9)
    expected = torch.stack([torch.nn.functional.cross_entropy(z, own) for z in (logits, logits.T)]).mean()
    assert infonce(x, y, -100.0).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        infonce,
        l2_contrastive,
        direction_agreement,
        lambda x, y, scale: siglip(x, y, scale, scale),
        lambda x, y, scale: joint_loss(x, y, scale, 0.5),
        lambda x, y, scale: infonce_with_negatives(x, y, scale, unpaired_text=x),
        lambda x, y, scale: siglip_with_negatives(x, y, 1.0, scale, unpaired_text=x),
        lambda x, y, scale: pseudo_pairs(Side(x, x, x, x), Side(y, None, y, None), scale),
        lambda x, y, scale: late_interaction_infonce(x[:, None], y[:, None], scale),
    ],
)
def test_a_scale_is_a_number_or_a_tensor_of_one(loss: Callable[..., Tensor]) -> None:
    x, y = tensor_rows(0, 5, 4), tensor_rows(1, 5, 4)
    scales = [torch.full(shape, 3.0, dtype=torch.float64, requires_grad=True) for shape in ((), (1,), (1, 1))]
    for scale in scales:
        value = loss(x, y, scale)
        value.backward()  # type: ignore[no-untyped-call]
        assert value.item() == loss(x, y, 3.0).item()
        assert scale.grad is not None and scale.grad.item() == scales[0].grad.item()  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"logit_(scale|bias): expected one number, got \(3,\)"):
        loss(x, y, torch.ones(3))


def test_half_precision_and_autocast_change_no_type() -> None:
    x, y = tensor_rows(0, 9, 4).bfloat16(), tensor_rows(1, 9, 4).bfloat16()
    losses = [lambda: siglip(x, y, 10.0, -10.0), lambda: align_uniform(x, y), lambda: l2_contrastive(x, y, 10.0)]
    plain = [loss() for loss in losses]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = [loss() for loss in losses]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in plain)
    assert [value.item() for value in cast] == [value.item() for value in plain]


def test_error_texts() -> None:
    x, y = tensor_rows(0, 4, 3), tensor_rows(1, 3, 3)
    for loss in (lambda: siglip(x, y, 1.0, 0.0), lambda: align_uniform(x, y), lambda: l2_contrastive(x, y, 1.0)):
        with pytest.raises(InputError, match="image and text rows are not pairs: 4 against 3"):
            loss()
    with pytest.raises(InputError, match="uniformity needs at least 2 pairs, got 1"):
        align_uniform(x[:1], x[:1])
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="t: expected a number above 0"):
            align_uniform(x, x, t=bad)
    with pytest.raises(InputError, match="groups: expected 4 integers"):
        siglip(x, x, 1.0, 0.0, torch.arange(3))


def test_groups_may_be_strings() -> None:
    image, text = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    names = ["a dog", "a cat", "a dog", "a hat", "a cat", "a dog"]
    expected = infonce(image, text, 3.0, np.array([0, 1, 0, 2, 1, 0]))
    for groups in (names, np.array(names), np.array(names, object)):
        assert infonce(image, text, 3.0, groups) == expected
    assert infonce(image, text, 3.0, names) < infonce(image, text, 3.0)
    for wrong in ([1.5] * 6, names[:5], [None] * 6):
        with pytest.raises(InputError, match="groups: expected 6 integers or strings"):
            infonce(image, text, 3.0, wrong)
