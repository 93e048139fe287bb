"""Towards a teacher's transport plan: a divergence between entropic plans, without a gradient through Sinkhorn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.tiles import slices

# exp((cosine - 1) / epsilon) must stay a number in float64.
SMALLEST_EPSILON = 0.005
# Rows of a block of the kernel; as many blocks are kept for the next iteration as fit into a constant budget.
_BLOCK, _KEPT_BYTES = 512, 224 * 2**20


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

    Memory is linear in M + N beside a constant of 448 MB (blocks of both kernels that are kept between iterations).
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

    kernel: _Kernel
    u: Tensor
    v: Tensor

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of the plan (B, N) with their logarithm, block by block."""
        for block, similarities in self.kernel.similarities():
            logarithm = (similarities - 1) / self.kernel.epsilon + self.u[block].log().unsqueeze(1) + self.v.log()
            yield block, logarithm.exp(), logarithm


class _Kernel:
    """``exp((x_i . y_j - 1) / epsilon)`` of two clouds as a linear map; what fits into the budget is kept."""

    def __init__(self, x: Tensor, y: Tensor, epsilon: float) -> None:
        self.x, self.y, self.epsilon = x, y, epsilon
        blocks = _KEPT_BYTES // (len(y) * x.element_size() * _BLOCK)
        kept = slices(0, min(len(x), blocks * _BLOCK), _BLOCK)
        self._kept = {block.start: self._block(block) for block in kept}

    def similarities(self) -> Iterator[tuple[slice, Tensor]]:
        for block in slices(0, len(self.x), _BLOCK):
            yield block, self.x[block] @ self.y.T

    def times(self, v: Tensor) -> Tensor:
        """(M,) the kernel times v (N,)."""
        return torch.cat([self._at(block) @ v for block in slices(0, len(self.x), _BLOCK)])

    def transposed_times(self, u: Tensor) -> Tensor:
        """(N,) the transposed kernel times u (M,)."""
        total = torch.zeros_like(self.y[:, 0])
        for block in slices(0, len(self.x), _BLOCK):
            total += self._at(block).T @ u[block]
        return total

    def _at(self, block: slice) -> Tensor:
        kept = self._kept.get(block.start)
        return self._block(block) if kept is None else kept

    def _block(self, block: slice) -> Tensor:
        return (self.x[block] @ self.y.T).sub_(1).div_(self.epsilon).exp_()


def transport_plan(x: Tensor, y: Tensor, epsilon: float, iterations: int, tolerance: float) -> Plan:
    """Sinkhorn's iterations between unit rows x (M, d) and y (N, d), float64, with uniform marginals (Cuturi 2013).

    Columns are exact at the end, rows to ``tolerance`` in sum of absolute differences, or as ``iterations`` leave them.
    """
    kernel = _Kernel(x, y, epsilon)
    reached = kernel.times(torch.full_like(y[:, 0], 1 / len(y)))
    for _ in range(iterations):
        u = 1 / (len(x) * reached)
        v = 1 / (len(y) * kernel.transposed_times(u))
        reached = kernel.times(v)
        if float((u * reached - 1 / len(x)).abs().sum()) <= tolerance:
            break
    return Plan(kernel, u, v)


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
