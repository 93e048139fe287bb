"""The objective on a CUDA device against the direct expression in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cs_aligner_cli.objectives import (
    Clouds,
    Logits,
    Term,
    cs_divergence,
    evaluate_terms,
    infonce,
    joint_loss,
    mmd,
    on_clouds,
    on_pairs,
)
from cs_aligner_cli.objectives.divergences import gram_divergence

pytestmark = pytest.mark.gpu

# Products, then the largest relative error of value and of gradient.
PRECISIONS = [("fp32", 1e-6, 1e-6), ("tf32", 1e-5, 1e-3), ("bf16", 1e-5, 2e-3), ("fp16", 1e-5, 2e-3)]


def rows(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two clouds on the sphere with a gap."""
    torch.manual_seed(0)
    offset = normalize(torch.randn(d), dim=0) * d**0.5 / 3
    x, y = (normalize(torch.randn(n, d) + sign * offset, dim=1).cuda() for sign in (1, -1))
    return x, y


def direct(x: Tensor, y: Tensor, scale: Tensor, sigma: float, groups: Tensor | None = None) -> Tensor:
    """InfoNCE + CS by whole matrices."""

    def log_sum_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
        return torch.logsumexp((squares / (-2 * sigma**2)).flatten(), 0)

    logits, own = scale * x @ y.T, torch.arange(len(x), device=x.device)
    if groups is not None:
        same = (groups.unsqueeze(1) == groups) & (own.unsqueeze(1) != own)
        logits = logits.masked_fill(same, -math.inf)
    ranking = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    return ranking + log_sum_kernel(x, x) + log_sum_kernel(y, y) - 2 * log_sum_kernel(x, y)


def graded(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
    grads = torch.autograd.grad(loss, leaves)
    return loss.detach().double(), torch.cat([grad.flatten().double() for grad in grads])


@pytest.mark.parametrize(("products", "value", "gradient"), PRECISIONS)
@pytest.mark.parametrize(("n", "d"), [(2048, 512), (1999, 500), (130, 1024)])
def test_error_against_float64(products: str, value: float, gradient: float, n: int, d: int) -> None:
    x, y = (part.requires_grad_() for part in rows(n, d))
    wide = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    scale = torch.tensor(14.3, device="cuda")
    found, slope = graded(joint_loss(x, y, scale, 0.7071, products=products), x, y)  # type: ignore[arg-type]
    exact, expected = graded(direct(*wide, scale.double(), 0.7071), *wide)
    assert abs(float((found - exact) / exact)) < value
    assert float((slope - expected).norm() / expected.norm()) < gradient


@pytest.mark.parametrize("scale", [14.3, 100.0, 400.0])
def test_groups_and_a_learned_scale(scale: float) -> None:
    x, y = (part.requires_grad_() for part in rows(700, 64))
    groups = torch.arange(700, device="cuda") // 5
    wide = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    scales = [torch.tensor(scale, device="cuda", dtype=dtype, requires_grad=True) for dtype in (x.dtype, wide[0].dtype)]
    found, slope = graded(joint_loss(x, y, scales[0], 0.7, groups=groups), x, y, scales[0])
    exact, expected = graded(direct(*wide, scales[1], 0.7, groups), *wide, scales[1])
    assert abs(float((found - exact) / exact)) < 1e-6
    assert float((slope - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("size", [1.0, 50.0])
def test_uneven_clouds_near_and_far(estimator: str, size: float) -> None:
    """The tiles of the CPU in float64 are the reference."""
    x, y = rows(300, 40)
    x, y = (x * size).requires_grad_(), (y[:170] * size).requires_grad_()
    wide = x.detach().cpu().double().requires_grad_(), y.detach().cpu().double().requires_grad_()
    for loss in (cs_divergence, mmd):
        if loss is mmd and size > 1:
            continue  # a mean of kernels that are all 0
        found, slope = graded(loss(x, y, [0.5, 0.9], estimator), x, y)  # type: ignore[arg-type]
        exact, expected = graded(loss(*wide, [0.5, 0.9], estimator), *wide)  # type: ignore[arg-type]
        assert abs(float(found.cpu() - exact)) < 1e-5 * max(1.0, abs(float(exact)))
        assert float((slope.cpu() - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_same_bits_twice_and_no_word_to_the_host() -> None:
    x, y = rows(1000, 128)
    scale = torch.tensor(14.3, device="cuda")
    terms = [
        Term(
            "infonce", 1.0, on_pairs(lambda i, t, logits, groups: infonce(i, t, logits.scale, groups)), sums="infonce"
        ),
        Term(
            "cs", 1.0, on_clouds(lambda i, t: cs_divergence(i, t, 0.7)), sums=gram_divergence("cs", (0.7,), "v", "bf16")
        ),
    ]
    groups = torch.arange(1000, device="cuda") // 2

    def step() -> list[Tensor]:
        found = evaluate_terms(terms, Clouds.of_pairs(x, y, groups), Logits(scale, scale), separate=False)
        return [found.total, *found.grads.values(), *found.logit_grads]

    launched = step()  # compiles, and sends the kernel's constants
    first = step()  # records a graph
    for one, other in zip(launched, first, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_replayed_step_takes_the_inputs_of_its_own() -> None:
    """Rows, scale and weight may change from step to step; results of earlier steps stay."""
    found, expected = [], []
    for number in range(4):
        x, y = (part.roll(number, 1).mul(1 + number / 10).requires_grad_() for part in rows(300, 64))
        scale, weight = torch.tensor(10.0 + number, device="cuda"), 0.5 + number
        found.append(torch.autograd.grad(joint_loss(x, y, scale, 0.7, weight), (x, y)))
        wide = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
        exact = infonce(*wide, scale.double()) + weight * cs_divergence(*wide, 0.7)
        expected.append(torch.autograd.grad(exact, wide))
    for grads, exact_grads in zip(found, expected, strict=True):
        for one, other in zip(grads, exact_grads, strict=True):
            assert float((one - other).norm() / other.norm()) < 2e-6


def test_memory_is_linear_in_the_rows() -> None:
    x, y = (part.requires_grad_() for part in rows(16384, 128))
    loss = joint_loss(x, y, 14.3, 0.7, products="bf16")  # compiles, too
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = joint_loss(x, y, 14.3, 0.7, products="bf16")
    loss.backward()
    assert (torch.cuda.max_memory_allocated() - before) / 2**20 < 512  # one matrix of float32 takes 1,024
