"""Towards a teacher's transport plan: a divergence between entropic plans, without a gradient through Sinkhorn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.row_blocks import RowBlocks

# exp((cosine - 1) / epsilon) must stay a number in float64.
SMALLEST_EPSILON = 0.005


def plan_divergence(
    image: ArrayLike,
    text: ArrayLike,
    teacher_image: ArrayLike,
    teacher_text: ArrayLike,
    epsilon: float = 0.05,
    iterations: int = 200,
    tolerance: float = 1e-3,
) -> Tensor:
    """Return KL(P* || P) in nats between two entropic transport plans as a scalar tensor (KLOT, SOTAlign, 2602.23353).

    P is the plan of image (M, d) and text (N, d) with uniform marginals, ``argmax <P, K> + epsilon H(P)`` over the
    similarities K = image text^T; P* that of the teacher's rows, teacher_image (M, k) and teacher_text (N, k), which
    are scaled to unit length and get no gradient. Neither says which rows are pairs: all rows, paired and unpaired,
    take part. 0 where both have the same similarities, up to what is constant along a row or a column of them.

    The plan's logarithm is (K + potentials) / epsilon and the potentials are a maximum, so the gradient with respect to
    K is exactly ``(P - P*) / epsilon`` once Sinkhorn's iterations have converged: nothing is sent back through them.
    They end when the rows' marginals are within ``tolerance`` (sum of absolute differences), or after ``iterations``.

    Memory is linear in M + N beside a constant of 224 MB (blocks of the kernel that are kept between iterations).
    Computed in float64 whatever the autocast; returned in float32, or in float64 where image or text is. image and text
    are expected to have unit rows. Raises InputError for rows that do not fit together and an epsilon below 0.005.
    """
    x, y = as_rows(image, "image"), as_rows(text, "text")
    same_width(x, y)
    teacher = as_rows(teacher_image, "teacher_image"), as_rows(teacher_text, "teacher_text")
    same_width(*teacher)
    for name, rows, taught in zip(("image", "text"), (x, y), teacher, strict=True):
        if len(rows) != len(taught):
            raise InputError(f"{name} and its teacher differ in rows: {len(rows)} against {len(taught)}")
    if not SMALLEST_EPSILON <= epsilon < float("inf"):
        raise InputError(f"epsilon: expected a number of at least {SMALLEST_EPSILON}, got {epsilon:g}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    unit = [l2_normalize(double(rows.detach())) for rows in teacher]
    value: Tensor = _PlanDivergence.apply(x, y, *unit, epsilon, iterations, tolerance)
    return value.to(dtype)


class Plan(NamedTuple):
    """The entropic plan between two clouds of unit rows: ``log P = log_u_i + log_v_j + (x_i . y_j - 1) / epsilon``."""

    x: Tensor
    y: Tensor
    epsilon: float
    u: Tensor
    v: Tensor

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of the plan (B, N) with their logarithm, block by block."""
        logarithms = partial(_log_kernel, self.x, self.y, self.epsilon)
        for block, logarithm in RowBlocks(logarithms, len(self.x), len(self.y), keep=False):
            logarithm = logarithm + self.u[block].log().unsqueeze(1) + self.v.log()
            yield block, logarithm.exp(), logarithm


def _log_kernel(x: Tensor, y: Tensor, epsilon: float, rows: slice) -> Tensor:
    """``(x_i . y_j - 1) / epsilon`` of some rows (B, N)."""
    return (x[rows] @ y.T).sub_(1).div_(epsilon)


def transport_plan(x: Tensor, y: Tensor, epsilon: float, iterations: int, tolerance: float) -> Plan:
    """Sinkhorn's iterations between unit rows x (M, d) and y (N, d), float64, with uniform marginals (Cuturi 2013).

    Columns are exact at the end, rows to ``tolerance`` in sum of absolute differences, or as ``iterations`` leave them.
    """
    kernel = RowBlocks(lambda rows: _log_kernel(x, y, epsilon, rows).exp_(), len(x), len(y))
    reached = kernel.times(torch.full_like(y[:, 0], 1 / len(y)))
    for _ in range(iterations):
        u = 1 / (len(x) * reached)
        v = 1 / (len(y) * kernel.transposed_times(u))
        reached = kernel.times(v)
        if float((u * reached - 1 / len(x)).abs().sum()) <= tolerance:
            break
    return Plan(x, y, epsilon, u, v)


class _PlanDivergence(torch.autograd.Function):
    """Value and gradients in one pass over blocks of both plans."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        epsilon: float,
        iterations: int,
        tolerance: float,
    ) -> Tensor:
        with torch.autocast(device_type=image.device.type, enabled=False):
            x, y = double(image), double(text)
            plan = transport_plan(x, y, epsilon, iterations, tolerance)
            taught = transport_plan(teacher_image, teacher_text, epsilon, iterations, tolerance)
            value, dx, dy = x.new_zeros(()), torch.zeros_like(x), torch.zeros_like(y)
            for (block, p, log_p), (_, wanted, log_wanted) in zip(plan.blocks(), taught.blocks(), strict=True):
                value += (wanted * (log_wanted - log_p)).sum()
                difference = (p - wanted).div_(epsilon)
                dx[block] = difference @ y
                dy += difference.T @ x[block]
        ctx.grads = dx.to(image), dy.to(text)
        return value.to(image.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.grads
        return upstream.to(dx) * dx, upstream.to(dy) * dy, None, None, None, None, None
