"""Every Triton kernel of the fused objective against the tiles in float64; run by test_fused.py, TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.objectives.fused_plan import PLANS, Plan, Tile, kernel_constants
from cs_aligner_cli.objectives.gram import InfoNce, PairValues, evaluate_fused, evaluate_pairs
from cs_aligner_cli.objectives.kernels import Gaussian

# Tiles that divide neither rows nor dimensions, and chunks of one tile's rows.
TILE = Tile(32, 64, 16, 4, 1, 2)
INSIDE = Plan(torch.float32, torch.float32, TILE, inside=True, chunk_bytes=1)
PARTED = Plan(torch.float32, torch.float32, Tile(32, 64, 16, 4, 1, 2, parts=4), inside=True, chunk_bytes=1)
OUTSIDE = Plan(torch.float32, torch.float32, TILE, chunk_bytes=1)
# The interpreter has no bfloat16 products: those of the kernels are tried in float16, whose steps are the same.
HALF = Plan(torch.float16, torch.bfloat16, TILE, inside=True, chunk_bytes=1)
# Rows that the device's copy engine fetches: of 16 bytes each.
DESCRIBED = Plan(torch.float32, torch.float32, TILE, inside=True, described=True, chunk_bytes=1)
BFLOAT = Plan(torch.bfloat16, torch.bfloat16, TILE, chunk_bytes=1)
WEIGHTS = (0.7, 1.3)
PLACED = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)


def clouds(m: int, n: int, d: int = 20, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows of norm ``size`` around two centres."""
    torch.manual_seed(m + n)
    parts = [torch.nn.functional.normalize(torch.randn(k, d) + torch.randn(d), dim=1) * size for k in (m, n)]
    return parts[0], parts[1]


def both(
    x: Tensor, y: Tensor, plan: Plan, divergence: Any, scale: float | None = None, groups: Tensor | None = None
) -> tuple[PairValues, PairValues]:
    """Fused in float32, and by tiles in float64."""
    scales = [
        None if scale is None else InfoNce(torch.tensor(scale, dtype=t), groups) for t in (x.dtype, torch.float64)
    ]
    expected = evaluate_pairs(x.double(), y.double(), scales[1], divergence, weights=WEIGHTS)
    return evaluate_fused(x, y, scales[0], divergence, PLACED, True, plan), expected


def agree(found: PairValues, expected: PairValues, value: float, gradient: float) -> None:
    for name in ("infonce", "divergence"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=value, atol=value)
    for name in ("x_grad", "y_grad", "scale_grad"):
        one, other = getattr(found, name), getattr(expected, name)
        if one is not None:
            assert float((one.double() - other).norm()) <= gradient * float(other.norm()) + 1e-6, name


CS = gram_divergence("cs", (0.7,))
DIVERGENCES = {
    "cs mixture": gram_divergence("cs", (0.4, 1.1, 0.8)),
    "mmd u mixture": gram_divergence("mmd", (0.4, 1.1), "u"),
    "energy u": gram_divergence("energy", (), "u"),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_of_uneven_clouds(name: str) -> None:
    x, y = clouds(33, 70)
    centre = (x.mean(0) + y.mean(0)) / 2  # as evaluate_pairs does
    agree(*both(x - centre, y - centre, INSIDE, DIVERGENCES[name]), 1e-6, 1e-6)


@pytest.mark.parametrize(("estimator", "size"), [("u", 20.0), ("v", 300.0)])
def test_far_clouds_neither_underflow_nor_overflow(estimator: Any, size: float) -> None:
    x, y = clouds(33, 10, size=size)
    agree(*both(x, y, INSIDE, gram_divergence("cs", (0.7,), estimator)), 1e-5, 1e-4)


@pytest.mark.parametrize(
    ("plan", "value", "gradient"),
    [
        (INSIDE, 1e-6, 1e-6),
        (PARTED, 1e-6, 1e-6),
        (DESCRIBED, 1e-6, 1e-6),
        (OUTSIDE, 1e-6, 1e-6),
        (HALF, 1e-3, 1e-2),
        (BFLOAT, 2e-2, 2e-2),
    ],
)
def test_joint_objective(plan: Plan, value: float, gradient: float) -> None:
    agree(*both(*clouds(67, 67), plan, CS, 14.3), value, gradient)


@pytest.mark.parametrize("scale", [100.0, 400.0])
def test_groups_and_every_form_of_the_softmax(scale: float) -> None:
    """One reference for all logits, far down, and maxima by row and column."""
    groups = (torch.arange(80) // 6)[::2]  # a view of every second one
    agree(*both(*clouds(40, 40), INSIDE, CS, scale, groups), 1e-6, 3e-6)


def test_a_scale_of_nothing_has_its_gradient() -> None:
    found, expected = both(*clouds(20, 20), INSIDE, None, 0.0)
    assert abs(float(expected.scale_grad)) > 0.001  # type: ignore[arg-type]
    agree(found, expected, 1e-6, 1e-6)


def test_infonce_alone() -> None:
    agree(*both(*clouds(33, 33), INSIDE, None, 14.3), 1e-6, 1e-6)


def test_rows_that_lie_column_by_column() -> None:
    x, y = clouds(20, 20)
    for divergence in (None, CS):
        agree(*both(x.T.contiguous().T, y, INSIDE, divergence, 14.3), 1e-6, 1e-6)


def test_nearly_solved_pairs_keep_their_digits() -> None:
    x, _ = clouds(40, 40, 8)
    y = torch.nn.functional.normalize(x + 0.1 * torch.randn(40, 8), dim=1)
    agree(*both(x, y, INSIDE, None, 100.0), 1e-6, 1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_ties_and_equal_clouds(rows: int) -> None:
    x, _ = clouds(rows, rows)
    x[-1] = x[0]
    found, expected = both(x, x.clone(), INSIDE, CS, 5.0)
    agree(found, expected, 1e-6, 1e-6)
    assert abs(float(found.divergence)) < 1e-6  # type: ignore[arg-type]


def test_values_alone_and_the_same_bits_twice() -> None:
    x, y = clouds(33, 33)
    infonce = InfoNce(torch.tensor(14.3), None)
    one, two = (evaluate_fused(x, y, infonce, CS, PLACED, True, INSIDE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True) if a is not None and b is not None)
    alone = evaluate_fused(x, y, infonce, CS, PLACED, False, INSIDE)
    assert alone.x_grad is None
    torch.testing.assert_close(alone.divergence, one.divergence, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.infonce, one.infonce)


def test_bandwidths_are_read_from_where_they_lie() -> None:
    """So that one recorded graph serves a bandwidth that changes with every step."""
    x, y = clouds(33, 40)
    constants = kernel_constants(Gaussian((0.9,)), x.device)
    placed = evaluate_fused(x, y, None, CS, PLACED, True, INSIDE, constants=constants)
    plain = evaluate_fused(x, y, None, gram_divergence("cs", (0.9,)), PLACED, True, INSIDE)
    assert torch.equal(placed.x_grad, plain.x_grad)  # type: ignore[arg-type]
    assert torch.equal(placed.divergence, plain.divergence)  # type: ignore[arg-type]


def test_the_plan_of_every_precision_is_sound() -> None:
    """What a GPU uses, on inputs larger than one tile: bf16 products by cuBLAS' stand-in, see BFLOAT."""
    for plan in (PLANS["fp32"], PLANS["fp16"]):
        agree(*both(*clouds(70, 70), plan, CS, 14.3), 2e-3, 1e-2)
