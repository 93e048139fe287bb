"""The Sinkhorn divergence in memory linear in the rows, its gradient taken without going back through iterations."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike, as_float64
from cs_aligner_cli.common.errors import InputError, NotConvergedError
from cs_aligner_cli.objectives.row_blocks import RowBlocks
from cs_aligner_cli.objectives.sliced_wasserstein import check_power

# Rounds of Sinkhorn's iterations at most, and how many of a round multiply by a kernel that is kept.
_ROUNDS, _SCALINGS = 200, 50
# Squares of lengths must stay numbers.
_LARGEST_LENGTH = 1e150
# Scalings beyond are taken into the potentials: products of two of them must stay numbers.
_LARGEST_SCALING = 1e100


def sinkhorn(
    x: ArrayLike, y: ArrayLike, blur: float = 0.05, p: int = 2, scaling: float = 0.5, tolerance: float = 0.001
) -> Tensor:
    """Return the debiased Sinkhorn divergence between x (M, d) and y (N, d) as a scalar tensor.

    ``OT(x, y) - OT(x, x)/2 - OT(y, y)/2`` with cost ``||a - b||^p / p`` and entropic regularisation ``blur^p``
    (Feydy et al., AISTATS 2019), p being 1 or 2. Between the Wasserstein cost as blur goes to 0 (half the squared
    2-Wasserstein distance for p = 2) and half a squared maximum mean discrepancy with kernel ``-||a - b||^p / p`` as it
    grows. ``blur`` is a length in the units of the rows. Sinkhorn's iterations anneal down to it from the diameter of
    the rows, multiplying by ``scaling`` at every step, and then go on until the plan's marginals are within
    ``tolerance`` of uniform ones (sum of absolute differences); the value's own error is of the order of its square.

    The potentials are a maximum, so the gradient is that of the costs under the plan (the envelope theorem): nothing is
    sent back through the iterations, and it can be taken once. Symmetric, 0 for equal samples and never negative, each
    up to that tolerance; invariant under a common shift and rotation. No M x N matrix exists: memory is linear in M + N
    beside a constant of 448 MB (blocks of costs and of the kernel that are kept between iterations).

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is. Rows that are
    not finite, or lie further apart than 1e150, give NaN. Raises InputError for rows that do not fit together, options
    out of range, and NotConvergedError for a plan that does not converge in 10,000 iterations.
    """
    x, y, dtype = as_float64(x, y)
    check_power(p)
    if not (math.isfinite(blur) and blur > 0):
        raise InputError(f"blur: expected a finite number above 0, got {blur}")
    if blur > _LARGEST_LENGTH:
        raise InputError(f"blur: expected at most {_LARGEST_LENGTH:g}, got {blur:g}")
    if not 0 < scaling < 1:
        raise InputError(f"scaling: expected a number between 0 and 1, got {scaling}")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance: expected a finite number above 0, got {tolerance}")
    # Distances from a Gram matrix cancel far from the origin; a common shift changes nothing.
    centre = (x.detach().mean(dim=0) + y.detach().mean(dim=0)) / 2
    x, y = x - centre, y - centre
    diameter = _diameter(x, y)
    if not diameter <= _LARGEST_LENGTH:
        return ((x.sum() + y.sum()) * math.nan).to(dtype)
    steps = math.ceil(max(0.0, math.log(blur / max(diameter, blur)) / math.log(scaling)))
    problem = _Problem(p, tuple(max(diameter * scaling**i, blur) ** p for i in range(steps)), blur**p, tolerance)
    value: Tensor = _Divergence.apply(x, y, problem)
    return value.to(dtype)


class _Problem(NamedTuple):
    """Order of the costs, regularisations that are annealed through, the one wanted, and the marginals' tolerance."""

    p: int
    annealed: tuple[float, ...]
    epsilon: float
    tolerance: float


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, problem: _Problem) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            value, dx, dy = _between(x, y, problem)
            for rows, grad in ((x, dx), (y, dy)):
                own, own_grad = _within(rows, problem)
                value -= own / 2
                grad -= own_grad
        ctx.grads = dx, dy
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.grads
        return upstream * dx, upstream * dy, None


def _between(x: Tensor, y: Tensor, problem: _Problem) -> tuple[Tensor, Tensor, Tensor]:
    """OT(x, y) and its gradients with respect to x and y."""
    epsilon, m, n = problem.epsilon, len(x), len(y)
    costs = RowBlocks(partial(_costs, x, y, problem.p), m, n)
    f, g = _potentials(costs, x.new_zeros(m), y.new_zeros(n), problem)
    exact = _of_rows(costs, g, epsilon)  # with it the rows' marginals are exact, with f those of the columns
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    for rows, cost in costs:
        weights = _weights(((exact[rows].unsqueeze(1) + g - cost) / epsilon).exp_().div_(m * n), cost, problem.p)
        dx[rows] = x[rows] * weights.sum(dim=1, keepdim=True) - weights @ y
        weights *= ((f - exact)[rows] / epsilon).exp().unsqueeze(1)
        dy += y * weights.sum(dim=0).unsqueeze(1) - weights.T @ x[rows]
    return exact.mean() + g.mean(), dx, dy


def _within(x: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
    """OT(x, x), and its gradient with respect to the first of the two x, which is half of the whole."""
    costs = RowBlocks(partial(_costs, x, x, problem.p), len(x), len(x))
    f = torch.zeros_like(x[:, 0])
    for epsilon in problem.annealed:
        f = (f + _of_rows(costs, f, epsilon)) / 2
    # The mean with its image, where the problem is symmetric, halves the error at every step.
    for _ in range(_ROUNDS):
        exact = _of_rows(costs, f, problem.epsilon)
        error = float(((f - exact) / problem.epsilon).expm1().abs().mean())
        if error <= problem.tolerance:
            break
        f = (f + exact) / 2
    else:
        raise _not_converged(error)
    gradient = torch.zeros_like(x)
    for rows, cost in costs:
        plan = ((exact[rows].unsqueeze(1) + f - cost) / problem.epsilon).exp_().div_(len(x) ** 2)
        weights = _weights(plan, cost, problem.p)
        gradient[rows] = x[rows] * weights.sum(dim=1, keepdim=True) - weights @ x
    return exact.mean() + f.mean(), gradient


def _potentials(costs: RowBlocks, f: Tensor, g: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
    """Potentials f (M,) and g (N,) of the plan ``exp((f_i + g_j - C_ij) / epsilon) / MN``, exact in the columns.

    Steps in the domain of logarithms, which no range limits, and between them many cheap ones that multiply by a
    kernel which has the potentials so far in it (Schmitzer, SIAM J. Sci. Comput. 2019).
    """
    for epsilon in problem.annealed:
        f = _of_rows(costs, g, epsilon)
        g = _of_columns(costs, f, epsilon)
    error = math.inf
    for _ in range(_ROUNDS):
        f = _of_rows(costs, g, problem.epsilon)
        g = _of_columns(costs, f, problem.epsilon)
        u, v, error = _scaled(costs, f, g, problem)
        f, g = f + problem.epsilon * u.log(), g + problem.epsilon * v.log()
        if error <= problem.tolerance:
            return f, g
    raise _not_converged(error)


def _scaled(costs: RowBlocks, f: Tensor, g: Tensor, problem: _Problem) -> tuple[Tensor, Tensor, float]:
    """Scalings u (M,) and v (N,) of a plan's rows and columns after some iterations, and the rows' error with them."""
    epsilon = problem.epsilon
    kernel = RowBlocks(lambda rows: ((f[rows].unsqueeze(1) + g - costs.at(rows)) / epsilon).exp_(), len(f), len(g))
    u, v = torch.ones_like(f), torch.ones_like(g)
    for _ in range(_SCALINGS):
        wanted = len(g) / kernel.times(v)
        error = float((u / wanted - 1).abs().mean())
        if not error > problem.tolerance:
            break
        columns = len(f) / kernel.transposed_times(wanted)
        if max(float(wanted.max()), float(columns.max()), 1 / float(wanted.min())) > _LARGEST_SCALING:
            break
        u, v = wanted, columns
    return u, v, error


def _of_rows(costs: RowBlocks, g: Tensor, epsilon: float) -> Tensor:
    """(M,) ``-epsilon log mean_j exp((g_j - C_ij) / epsilon)``."""
    found = g.new_empty(costs.rows)
    for rows, cost in costs:
        found[rows] = ((g - cost) / epsilon).logsumexp(dim=1)
    return (found - math.log(len(g))) * -epsilon


def _of_columns(costs: RowBlocks, f: Tensor, epsilon: float) -> Tensor:
    """(N,) ``-epsilon log mean_i exp((f_i - C_ij) / epsilon)``."""
    total = f.new_full((costs.columns,), -math.inf)
    for rows, cost in costs:
        total = torch.logaddexp(total, ((f[rows].unsqueeze(1) - cost) / epsilon).logsumexp(dim=0))
    return (total - math.log(len(f))) * -epsilon


def _costs(x: Tensor, y: Tensor, p: int, rows: slice) -> Tensor:
    """``||x_i - y_j||^p / p`` of some rows (B, N)."""
    half_squares = x[rows].square().sum(dim=1, keepdim=True) / 2 + y.square().sum(dim=1) / 2
    cost = half_squares.addmm_(x[rows], y.T, alpha=-1).clamp_(min=0)
    if x is y:
        cost[:, rows].fill_diagonal_(0)
    return cost if p == 2 else cost.mul_(2).sqrt_()


def _weights(plan: Tensor, cost: Tensor, p: int) -> Tensor:
    """What multiplies x_i - y_j in the gradient of the costs under a plan; rows that coincide have none for p = 1."""
    return plan if p == 2 else torch.where(cost > 0, plan / cost, 0.0)


def _diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around all rows: at least the largest distance between two of them."""
    pooled = torch.cat([x, y]).detach()
    return float((pooled.amax(dim=0) - pooled.amin(dim=0)).norm())


def _not_converged(error: float) -> NotConvergedError:
    return NotConvergedError(
        f"sinkhorn: the plan's marginals are still off by {error:.2g} after {_ROUNDS} rounds of iterations",
        "A larger blur converges in fewer steps; or raise tolerance.",
    )
