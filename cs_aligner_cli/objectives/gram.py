"""Objectives that are sums over pairs of rows: InfoNCE, divergences of kernel sums, and both over shared tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.row_exchange import Shares
from cs_aligner_cli.objectives.fused import FusedPairs
from cs_aligner_cli.objectives.fused_plan import (
    PLANS,
    Plan,
    can_fuse,
    count_sigmas,
    float32_products,
    kernel_constants,
)
from cs_aligner_cli.objectives.kernels import Gaussian, Kernel
from cs_aligner_cli.objectives.pairsums import Cross, PairSum, within
from cs_aligner_cli.objectives.replays import Replays
from cs_aligner_cli.objectives.tiles import Products, TiledRows

# Up to so many pairs launches take longer than the kernels do: 8,192 rows by 8,192 on an H200.
REPLAYED_PAIRS = 2**26
_REPLAYS = Replays()


@dataclass(frozen=True)
class GramDivergence:
    """``m_xx + m_yy - 2 m_xy``, m being the mean of ``kernel`` over pairs or, with ``logarithm``, the log of it.

    ``diagonal`` says whether the pairs (i, i) count within a cloud.
    """

    kernel: Kernel
    logarithm: bool
    diagonal: bool = True
    products: Products = "fp32"

    def value(self, xx: PairSum, yy: PairSum, xy: PairSum) -> Tensor:
        """The divergence from its three sums, as a 0-d float64 tensor."""
        if self.logarithm:
            return xx.log_mean + yy.log_mean - 2 * xy.log_mean
        return xx.mean + yy.mean - 2 * xy.mean

    def slope(self, pair_sum: PairSum) -> float:
        """The derivative of m with respect to the sum's ``total``."""
        return float(1 / pair_sum.total) if self.logarithm else pair_sum.unit / pair_sum.pairs


class InfoNce(NamedTuple):
    """InfoNCE's part of an objective: its logit scale, a 0-d tensor, and which pairs are no negatives of each other."""

    logit_scale: Tensor
    groups: Tensor | None = None


class PairValues(NamedTuple):
    """What an objective is worth: its parts (None where it has none) and the gradients of their weighted sum.

    ``x_grad`` (M, d), ``y_grad`` (N, d) and the 0-d ``scale_grad`` are None where no gradient was asked for.
    """

    infonce: Tensor | None
    divergence: Tensor | None
    x_grad: Tensor | None
    y_grad: Tensor | None
    scale_grad: Tensor | None


@torch.no_grad()
def evaluate_pairs(
    x: Tensor,
    y: Tensor,
    infonce: InfoNce | None,
    divergence: GramDivergence | None,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    gradient: bool = True,
    shares: Shares | None = None,
) -> PairValues:
    """Value InfoNCE, a divergence or both on x (M, d) and y (N, d), with the gradient of their weighted sum.

    The products x_i . y_j are computed once for both. Rows are float32 or float64, and so are products, exponents
    and gradients; sums are taken in float64. Nothing of size M x N is held (see ``tiles``). On CUDA float32 rows go
    through the kernels of ``fused``, which send no scalar to the host.

    ``shares`` says who holds the clouds' rows where several ranks do: x and y are this rank's (of pairs the same of
    both), groups those of all pairs, the values and ``scale_grad`` those of the whole, the other gradients of x and y.
    Rows of other ranks pass by block by block, the next while one is computed with.
    """
    shares = shares or Shares.alone(len(x), len(y))
    exchange, size = shares.exchange, sum(shares.rows)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if infonce is None:
            # Distances do not see a common shift, and far from the origin their expansion would cancel.
            centre = exchange.all_reduce(x.sum(dim=0) / size + y.sum(dim=0) / sum(shares.columns), "sum") / 2
            x, y = x - centre, y - centre
        products = divergence.products if divergence else "fp32"
        if can_fuse(x):
            # Triton launches on the current device, wherever its arguments lie.
            with float32_products(products), torch.cuda.device(x.device):
                return _replayed(x, y, infonce, divergence, weights, gradient, PLANS[products], shares)
        image, text = TiledRows(x, products), TiledRows(y, products)
        own: list[PairSum] = []
        if divergence:
            own = [
                within(rows, divergence.kernel, divergence.diagonal, gradient, exchange, counts)
                for rows, counts in ((image, shares.rows), (text, shares.columns))
            ]
        cross = Cross(
            image,
            text,
            scale=float(infonce.logit_scale) if infonce else None,
            groups=_shared_groups(infonce),
            kernel=divergence.kernel if divergence else None,
            keep=gradient,
            shares=shares,
        )
        infonce_value = exchange.all_reduce(cross.cross_entropies.sum(), "sum") / (2 * size) if infonce else None
        divergence_value = divergence.value(own[0], own[1], cross.kernel_sum) if divergence else None
        if not gradient:
            return PairValues(infonce_value, divergence_value, None, None, None)
        cross_weight = 0.0
        if divergence:
            cross_weight = -2 * weights[1] * divergence.slope(cross.kernel_sum)
            x_grad, y_grad = (_scaled(pair_sum, weights[1] * divergence.slope(pair_sum)) for pair_sum in own)
        else:
            x_grad, y_grad = torch.zeros_like(x), torch.zeros_like(y)
        scale_grad = cross.add_gradients(x_grad, y_grad, weights[0] / (2 * size), cross_weight)
        return PairValues(infonce_value, divergence_value, x_grad, y_grad, scale_grad)


def _replayed(
    x: Tensor,
    y: Tensor,
    infonce: InfoNce | None,
    divergence: GramDivergence | None,
    weights: tuple[float, float],
    gradient: bool,
    plan: Plan,
    shares: Shares,
) -> PairValues:
    """``evaluate_fused``; small clouds of a form seen before as one recorded graph, in place of a hundred launches."""
    # Weights and bandwidths may change with every step, and a graph holds the numbers that it was recorded with.
    placed = tuple(torch.full((), weight, dtype=torch.float64, device=x.device) for weight in weights)
    scale, groups = infonce or (None, None)
    kernel = divergence.kernel if divergence else None

    def call(inputs: Sequence[Tensor | None]) -> PairValues:
        rows, columns, at, scale, groups, constants = inputs[0], inputs[1], inputs[2:4], *inputs[4:]
        assert rows is not None and columns is not None and at[0] is not None and at[1] is not None
        pairs = None if scale is None else InfoNce(scale, groups)
        return evaluate_fused(rows, columns, pairs, divergence, (at[0], at[1]), gradient, plan, shares, constants)

    inputs = [x, y, *placed, scale, groups, kernel_constants(kernel, x.device)]
    among_ranks = shares.exchange.size > 1  # no graph holds what waits for another process
    if among_ranks or len(x) * len(y) > REPLAYED_PAIRS or torch.cuda.is_current_stream_capturing():
        return call(inputs)
    form = divergence and (divergence.logarithm, divergence.diagonal)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    return PairValues(*_REPLAYS.run((form, count_sigmas(kernel), gradient, plan, stream), call, inputs))


@torch.no_grad()
def evaluate_fused(
    x: Tensor,
    y: Tensor,
    infonce: InfoNce | None,
    divergence: GramDivergence | None,
    weights: tuple[Tensor, Tensor],
    gradient: bool,
    plan: Plan,
    shares: Shares | None = None,
    constants: Tensor | None = None,
) -> PairValues:
    """``evaluate_pairs`` by the kernels of ``fused``, weights being 0-d float64 tensors beside the rows.

    ``constants``: the ``kernel_constants`` of the divergence, where they lie in a place of the caller's.
    """
    shares = shares or Shares.alone(len(x), len(y))
    scale, groups = infonce or (None, None)
    kernel = divergence.kernel if divergence else None
    constants = kernel_constants(kernel, x.device) if constants is None else constants
    pairs = FusedPairs(x, y, scale, groups, (constants, count_sigmas(kernel)), plan, shares)
    own = []
    log = divergence is not None and divergence.logarithm
    if divergence:
        weigh = (lambda found: weights[1] * found.slope(log)) if gradient else None
        own = [pairs.within(cloud, divergence.diagonal, weigh) for cloud in (pairs.image, pairs.text)]
    softmax, cross = pairs.cross()
    divergence_value = None
    if divergence:
        divergence_value = own[0][0].mean(log) + own[1][0].mean(log) - 2 * cross.mean(log)
    infonce_value = None if softmax is None else shares.exchange.all_reduce(softmax.loss, "sum")
    if not gradient:
        return PairValues(infonce_value, divergence_value, None, None, None)
    grads = [grad for _, grad in own if grad is not None]
    grads = grads or [torch.zeros_like(rows, memory_format=torch.contiguous_format) for rows in (x, y)]
    slope = -2 * weights[1] * cross.slope(log) if divergence else None
    scale_grad = pairs.add_cross_gradients(grads[0], grads[1], softmax, cross, (weights[0], slope))
    return PairValues(infonce_value, divergence_value, grads[0], grads[1], scale_grad)


def _scaled(pair_sum: PairSum, weight: float) -> Tensor:
    """The gradient of ``weight * pair_sum.total``, in the memory of that of the total."""
    assert pair_sum.grad is not None
    return pair_sum.grad.mul_(weight)


def _shared_groups(infonce: InfoNce | None) -> Tensor | None:
    """The groups, or None if no two rows share one: then no logit has to be masked."""
    if infonce is None or infonce.groups is None or len(torch.unique(infonce.groups)) == len(infonce.groups):
        return None
    return infonce.groups


class InfoNceLoss(torch.autograd.Function):
    """InfoNCE of row-paired x, y (N, d) and a 0-d logit scale; groups and shares as in ``evaluate_pairs``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, logit_scale: Tensor, groups: Tensor | None, shares: Shares | None = None
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        found = evaluate_pairs(x, y, InfoNce(logit_scale, groups), None, gradient=wanted, shares=shares)
        ctx.grads = found.x_grad, found.y_grad, found.scale_grad
        ctx.scale_dtype = logit_scale.dtype
        assert found.infonce is not None
        return found.infonce.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, d_scale = ctx.grads
        return upstream * dx, upstream * dy, (upstream * d_scale).to(ctx.scale_dtype), None, None


class GramLoss(torch.autograd.Function):
    """A divergence of kernel sums between x (M, d) and y (N, d); shares as in ``evaluate_pairs``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, divergence: GramDivergence, shares: Shares | None = None) -> Tensor:
        found = evaluate_pairs(x, y, None, divergence, gradient=any(ctx.needs_input_grad), shares=shares)
        ctx.grads = found.x_grad, found.y_grad
        assert found.divergence is not None
        return found.divergence.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.grads
        return upstream * dx, upstream * dy, None, None


class LogMeanKernel(torch.autograd.Function):
    """``log mean_{i != j} k(x_i, x_j)`` of one sample x (N, d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Gaussian) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            rows = TiledRows(x - x.mean(dim=0), "fp32")
            found = within(rows, kernel, diagonal=False, gradient=ctx.needs_input_grad[0])
        ctx.grad = None if found.grad is None else found.grad / float(found.total)
        return found.log_mean.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.grad, None
