"""The objective of pair sums on a GPU: exact, in chunks of rows, without one scalar coming back to the host.

The first pass takes every product once, for the softmax and kernel sums; the second takes it again and turns it into
the weights of the gradient, a chunk of rows at a time, which cuBLAS multiplies back. A cloud with itself takes one pass
over half of its pairs. Exponentials, sums and weights are in ``triton_kernels`` and ``triton_rows``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.objectives.fused_plan import Memory, Plan, add_product, kernel_constants
from cs_aligner_cli.objectives.fused_sums import KernelSum, Softmax
from cs_aligner_cli.objectives.kernels import Kernel

# Rows per program of the kernels that go once over rows, and what they read of a row at a time.
_ROWS, _WIDTH, _LINE = 16, 128, 1024
# What stands for the maxima and shares of logits where there are none.
_NOTHING: Sequence[Tensor | None] = [None] * 4


class _Cloud(NamedTuple):
    """Rows (N, d) in float32, as multiplied, as pulled, and half their squared norms (N,) as multiplied."""

    exact: Tensor
    rows: Tensor
    pulled: Tensor
    half_squares: Tensor

    @classmethod
    def of(cls, x: Tensor, plan: Plan, other: Tensor | None = None, paired: Tensor | None = None) -> _Cloud:
        """Prepare x (N, d); the dot products of its rows with those of ``other`` (N, d) go to ``paired`` (N,)."""
        from cs_aligner_cli.objectives.triton_rows import prepare_rows

        rows = x if plan.rows == x.dtype else torch.empty_like(x, dtype=plan.rows)
        half_squares = x.new_empty(len(x))
        prepare_rows[(-(-len(x) // _ROWS),)](
            x, None if rows is x else rows, half_squares, other, paired, *x.shape, WIDTH=_WIDTH, ROWS=_ROWS
        )
        return cls(x, rows, rows if rows.dtype == plan.weights else x.to(plan.weights), half_squares)


class FusedPairs:
    """InfoNCE's softmax sums and a kernel's sums over two clouds, and their gradients.

    ``image`` (M, d) and ``text`` (N, d) are float32; with ``logit_scale``, a 0-d tensor, M = N and rows are pairs, of
    which those that share one of the (N,) ``groups`` have no logit but their own.
    """

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | None,
        groups: Tensor | None,
        kernel: Kernel | None,
        plan: Plan,
    ) -> None:
        from cs_aligner_cli.objectives import triton_kernels, triton_rows

        self._kernels, self._plan = triton_kernels, plan
        self._scale, self._groups = logit_scale, groups
        self._constants, self._sigmas = kernel_constants(kernel, image.device)
        image, text = image.contiguous(), text.contiguous()
        self._paired = image.new_empty(len(image)) if logit_scale is not None else None
        self.image = _Cloud.of(image, plan, None if self._paired is None else text, self._paired)
        self.text = _Cloud.of(text, plan)
        # Logits per dot product and their reference in base 2, whether one reference serves, whether distances are far.
        self._references = image.new_empty(4)
        triton_rows.choose_references[(1,)](
            self.image.half_squares,
            self.text.half_squares,
            self._paired,
            logit_scale,
            self._constants,
            self._references,
            len(image),
            len(text),
            BLOCK=_LINE,
        )
        self._memory = Memory(image.device)

    def within(self, cloud: _Cloud, diagonal: bool, gradient: bool) -> tuple[KernelSum, Tensor | None]:
        """The kernel's sum over the pairs of one cloud, with or without i = j, and the gradient of the total (N, d)."""
        size = len(cloud.rows)
        pairs = size * size if diagonal else size * (size - 1)
        zero = cloud.half_squares.new_zeros(())
        # With the pairs (i, i) the sum is never below their number; without, it may need a reference first.
        referenced = not diagonal and self._sigmas > 0
        found = KernelSum(zero.double(), zero.double(), pairs)
        if referenced or not gradient:
            found = self._summed(cloud, cloud, within=True, diagonal=diagonal)[1]
            if not gradient:
                return found, None
        grad = torch.zeros_like(cloud.rows, dtype=torch.float32)
        slopes = cloud.half_squares.new_zeros(size)
        factors = torch.stack([zero, zero + 1, found.reference.float()])
        totals = []
        for chunk in self._plan.chunks(len(cloud.rows), len(cloud.rows), within=True):
            weights, rows, columns, sums = self._weighed(cloud, cloud, chunk, factors, _NOTHING, diagonal)
            totals.append(sums[1].sum(dtype=torch.float64))
            i0, i1 = chunk.start, chunk.stop
            add_product(grad[i0:i1], weights, cloud.pulled[i0:])
            slopes[i0:i1] += rows.sum(0)
            if i1 < size:
                add_product(grad[i1:], weights[:, i1 - i0 :].T, cloud.pulled[i0:i1])
                slopes[i1:] += columns[:, i1 - i0 :].sum(0)
        grad.addcmul_(slopes.unsqueeze(1), cloud.pulled, value=-1).mul_(2)
        if not referenced:
            found = KernelSum(torch.stack(totals).sum(), found.reference, pairs)
        return found, grad

    def cross(self) -> tuple[Softmax | None, KernelSum]:
        """The softmax sums, where there are logits, and the kernel's sum over all pairs of image and text."""
        return self._summed(self.image, self.text, within=False, diagonal=True)

    def add_cross_gradients(
        self, dx: Tensor, dy: Tensor, softmax: Softmax | None, found: KernelSum, weights: tuple[Tensor, Tensor | None]
    ) -> Tensor | None:
        """Add the gradient of ``weights[0] * softmax.loss + weights[1] * found.total``; return that of the logit scale.

        dx is (M, d) and dy (N, d), float32; weights are 0-d tensors, the second None where there is no kernel.
        """
        image, text = self.image, self.text
        x_slopes, y_slopes = dx.new_zeros(len(dx)), dy.new_zeros(len(dy))
        zero = dx.new_zeros(())
        per_logit = zero if self._scale is None else (self._scale * weights[0] / (2 * len(dx))).float()
        per_slope = zero if weights[1] is None else weights[1].float()
        factors = torch.stack([per_logit, per_slope, found.reference.float()])
        shares = _NOTHING if softmax is None else softmax.shares()
        scale_sums = []
        for chunk in self._plan.chunks(len(image.rows), len(text.rows), within=False):
            pull, rows, columns, sums = self._weighed(image, text, chunk, factors, shares)
            add_product(dx[chunk.start : chunk.stop], pull, text.pulled)
            add_product(dy, pull.T, image.pulled[chunk.start : chunk.stop])
            if self._sigmas >= 0:
                x_slopes[chunk.start : chunk.stop] = rows.sum(0)
                y_slopes += columns.sum(0)
            scale_sums.append(sums[0].sum(dtype=torch.float64))
        if self._sigmas >= 0:
            dx.addcmul_(x_slopes.unsqueeze(1), image.pulled, value=-1)
            dy.addcmul_(y_slopes.unsqueeze(1), text.pulled, value=-1)
        if softmax is None or self._scale is None:
            return None
        own = softmax.own_pulls() * per_logit
        dx.addcmul_(own.float().unsqueeze(1), text.exact)
        dy.addcmul_(own.float().unsqueeze(1), image.exact)
        scale_sums.append((own * softmax.own.double()).sum() / self._references[0])
        return torch.stack(scale_sums).sum() / self._scale

    def _summed(self, x: _Cloud, y: _Cloud, *, within: bool, diagonal: bool) -> tuple[Softmax | None, KernelSum]:
        softmax = Softmax.empty(self._paired) if self._paired is not None and not within else None
        sums, tops = [], []
        for chunk in self._plan.chunks(len(x.rows), len(y.rows), within):
            tiles = self._plan.tiles(chunk, len(y.rows), within)
            columns = len(y.rows) - tiles.first_column
            parts = softmax.parts(chunk.stop - chunk.start, columns, tiles) if softmax is not None else []
            partial = x.half_squares.new_zeros(2, tiles.sums)
            self._kernels.sum_pairs[(tiles.programs,)](
                x.rows,
                y.rows,
                *self._memory.products(x.rows[chunk], y.rows[tiles.first_column :], self._plan),
                x.half_squares,
                y.half_squares,
                self._groups,
                self._references,
                self._constants,
                *(parts or _NOTHING),
                softmax.own if softmax is not None else None,
                *partial,
                *tiles.extents(chunk, x.rows.shape, len(y.rows)),
                LOGITS=softmax is not None,
                GROUPED=self._groups is not None,
                SIGMAS=self._sigmas,
                WITHIN=within,
                DIAGONAL=diagonal,
                **self._plan.options(x.rows.shape[1]),
            )
            if softmax is not None:
                softmax.merge(chunk, parts)
            sums.append(partial[0])
            tops.append(partial[1])
        pairs = len(x.rows) * len(y.rows) if diagonal else len(x.rows) * (len(x.rows) - 1)
        return softmax, KernelSum.of(torch.cat(sums), torch.cat(tops), pairs)

    def _weighed(
        self,
        x: _Cloud,
        y: _Cloud,
        chunk: slice,
        factors: Tensor,
        shares: Sequence[Tensor | None],
        diagonal: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of a chunk's pairs, sums of slopes of its rows and columns by tile, and other sums by tile."""
        within = x is y
        tiles = self._plan.tiles(chunk, len(y.rows), within)
        rows, columns = chunk.stop - chunk.start, len(y.rows) - tiles.first_column
        products = self._memory.products(x.rows[chunk], y.rows[tiles.first_column :], self._plan)
        weights = products[0]
        if weights is None or weights.dtype != self._plan.weights:
            weights = self._memory.take("weights", rows, columns, self._plan.weights, self._plan.tile)
        new = x.half_squares.new_empty
        row_slopes, column_slopes = new(tiles.across, rows), new(tiles.down, columns)
        sums = new(2, tiles.sums)
        self._kernels.weigh_pairs[(tiles.programs,)](
            x.rows,
            y.rows,
            *products,
            weights,
            weights.stride(0),
            x.half_squares,
            y.half_squares,
            self._groups,
            self._references,
            self._constants,
            factors,
            *shares,
            row_slopes,
            column_slopes,
            *sums,
            *tiles.extents(chunk, x.rows.shape, len(y.rows)),
            LOGITS=shares[0] is not None,
            GROUPED=self._groups is not None,
            SIGMAS=self._sigmas,
            WITHIN=within,
            DIAGONAL=diagonal,
            **self._plan.options(x.rows.shape[1]),
        )
        return weights, row_slopes, column_slopes, sums
