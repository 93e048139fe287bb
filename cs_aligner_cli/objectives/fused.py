"""The objective of pair sums on a GPU: exact, in chunks of rows, without one scalar coming back to the host.

The first pass takes every product once, for the softmax and kernel sums; the second takes it again and turns it into
the weights of the gradient, a chunk of rows at a time, which cuBLAS multiplies back. A cloud with itself takes one pass
over half of its pairs. Exponentials, sums and weights are in ``triton_kernels``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.objectives.fused_plan import Memory, Plan, add_product, kernel_constants
from cs_aligner_cli.objectives.fused_sums import KernelSum, Softmax
from cs_aligner_cli.objectives.kernels import Kernel

# Rows per program of the kernels that go once over rows, and what they read of a row at a time.
_ROWS, _WIDTH, _LINE = 16, 128, 1024
# What stands for the maxima and shares of logits where there are none.
_NOTHING: list[Tensor | None] = [None] * 4


class _Cloud(NamedTuple):
    """Rows (N, d) in float32, as multiplied, as pulled, and half their squared norms (N,) as multiplied."""

    exact: Tensor
    rows: Tensor
    pulled: Tensor
    half_squares: Tensor


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
        from cs_aligner_cli.objectives import triton_kernels

        self._kernels, self._plan = triton_kernels, plan
        self._scale, self._groups = logit_scale, groups
        self._constants, self._sigmas = kernel_constants(kernel, image.device)
        image, text = image.contiguous(), text.contiguous()
        paired = text if logit_scale is not None else None
        self._paired = image.new_empty(len(image)) if paired is not None else None
        self.image, self.text = self._prepared(image, paired), self._prepared(text, None)
        # Logits per dot product and their reference in base 2, whether one reference serves, whether distances are far.
        self._references = image.new_empty(4)
        triton_kernels.choose_references[(1,)](
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

    def _prepared(self, x: Tensor, other: Tensor | None) -> _Cloud:
        rows = x if self._plan.rows == x.dtype else torch.empty_like(x, dtype=self._plan.rows)
        half_squares = x.new_empty(len(x))
        self._kernels.prepare_rows[(-(-len(x) // _ROWS),)](
            x,
            None if rows is x else rows,
            half_squares,
            other,
            self._paired if other is not None else None,
            *x.shape,
            WIDTH=_WIDTH,
            ROWS=_ROWS,
        )
        return _Cloud(x, rows, rows if rows.dtype == self._plan.weights else x.to(self._plan.weights), half_squares)

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
        for chunk in self._chunks(cloud, cloud, within=True):
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
        shares = _NOTHING
        if softmax is not None:
            by_row, by_column = (1 / softmax.row_sums).float(), (1 / softmax.column_sums).float()
            shares = [softmax.row_maxima, by_row, softmax.column_maxima, by_column]
        own = None if softmax is None else x_slopes.new_empty(len(dx))
        scale_sums = []
        for chunk in self._chunks(image, text, within=False):
            pull, rows, columns, sums = self._weighed(image, text, chunk, factors, shares, own=own)
            add_product(dx[chunk.start : chunk.stop], pull, text.pulled)
            add_product(dy, pull.T, image.pulled[chunk.start : chunk.stop])
            if self._sigmas >= 0:
                x_slopes[chunk.start : chunk.stop] = rows.sum(0)
                y_slopes += columns.sum(0)
            scale_sums.append(sums[0].sum(dtype=torch.float64))
        if self._sigmas >= 0:
            dx.addcmul_(x_slopes.unsqueeze(1), image.pulled, value=-1)
            dy.addcmul_(y_slopes.unsqueeze(1), text.pulled, value=-1)
        if own is not None:
            dx.addcmul_(own.unsqueeze(1), text.exact)
            dy.addcmul_(own.unsqueeze(1), image.exact)
        return None if self._scale is None else torch.stack(scale_sums).sum() / self._scale

    def _chunks(self, x: _Cloud, y: _Cloud, within: bool) -> Iterator[slice]:
        """Rows of x, as many at a time as the budget holds the weights of: WITHIN one cloud later rows have fewer."""
        start, size = 0, len(x.rows)
        step = self._plan.tile.i
        while start < size:
            line = (len(y.rows) - (start if within else 0)) * self._plan.weights.itemsize
            rows = max(step, self._plan.chunk_bytes // line // step * step)
            if within:  # squares on the diagonal are taken whole: eight, so that they are small
                rows = min(rows, max(1024 // step * step, -(-size // 8) // step * step))
            yield slice(start, min(start + rows, size))
            start += rows

    def _summed(self, x: _Cloud, y: _Cloud, *, within: bool, diagonal: bool) -> tuple[Softmax | None, KernelSum]:
        softmax = self._empty_softmax() if self._scale is not None and not within else None
        sums, tops = [], []
        for chunk in self._chunks(x, y, within):
            tiles = self._tiles(chunk, y, within)
            columns = len(y.rows) - tiles.first_column
            parts: list[Tensor] = []
            if softmax is not None:
                new = x.half_squares.new_empty
                rows = chunk.stop - chunk.start
                parts = [new(tiles.j, rows), new(tiles.j, rows), new(tiles.i, columns), new(tiles.i, columns)]
            partial = x.half_squares.new_zeros(2, tiles.i * tiles.j)
            self._kernels.sum_pairs[(tiles.i * tiles.j,)](
                x.rows,
                y.rows,
                *self._products(x, y, chunk, tiles.first_column),
                x.half_squares,
                y.half_squares,
                self._groups,
                self._references,
                self._constants,
                *(parts or _NOTHING),
                softmax.own if softmax is not None else None,
                *partial,
                *self._extents(x, y, chunk, tiles),
                LOGITS=softmax is not None,
                GROUPED=self._groups is not None,
                SIGMAS=self._sigmas,
                WITHIN=within,
                DIAGONAL=diagonal,
                **self._options(x),
            )
            if softmax is not None:
                self._merge(softmax.row_maxima[chunk], softmax.row_sums[chunk], parts[0], parts[1])
                self._merge(softmax.column_maxima, softmax.column_sums, parts[2], parts[3])
            sums.append(partial[0])
            tops.append(partial[1])
        pairs = len(x.rows) * len(y.rows) if diagonal else len(x.rows) * (len(x.rows) - 1)
        top = torch.cat(tops).double()
        reference = top.max()
        total = (torch.cat(sums).double() * torch.exp2(top - reference)).sum()
        return softmax, KernelSum(total, reference, pairs)

    def _empty_softmax(self) -> Softmax:
        assert self._paired is not None
        new, size = self._paired.new_full, (len(self._paired),)
        maxima = [new(size, -math.inf) for _ in range(2)]
        sums = [new(size, 0.0, dtype=torch.float64) for _ in range(2)]
        return Softmax(maxima[0], sums[0], maxima[1], sums[1], torch.empty_like(self._paired))

    def _merge(self, maxima: Tensor, sums: Tensor, part_maxima: Tensor, part_sums: Tensor) -> None:
        parts, size = part_sums.shape
        grid = (-(-size // _WIDTH),)
        self._kernels.merge_sums[grid](maxima, sums, part_maxima, part_sums, size, parts, BLOCK=_WIDTH)

    def _weighed(
        self,
        x: _Cloud,
        y: _Cloud,
        chunk: slice,
        factors: Tensor,
        shares: list[Tensor | None],
        diagonal: bool = True,
        own: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of a chunk's pairs, sums of slopes of its rows and columns by tile, and other sums by tile.

        What a pair's own logit pulls goes to ``own`` (N,).
        """
        within = x is y
        tiles = self._tiles(chunk, y, within)
        rows, columns = chunk.stop - chunk.start, len(y.rows) - tiles.first_column
        products = self._products(x, y, chunk, tiles.first_column)
        weights = self._memory.take("weights", rows, columns, self._plan.weights, self._plan.tile)
        if products[0] is not None and products[0].dtype == self._plan.weights:
            weights = products[0]
        new = x.half_squares.new_empty
        row_slopes, column_slopes = new(tiles.j, rows), new(tiles.i, columns)
        sums = new(2, tiles.i * tiles.j)
        self._kernels.weigh_pairs[(tiles.i * tiles.j,)](
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
            own,
            *self._extents(x, y, chunk, tiles),
            LOGITS=shares[0] is not None,
            GROUPED=self._groups is not None,
            SIGMAS=self._sigmas,
            WITHIN=within,
            DIAGONAL=diagonal,
            **self._options(x),
        )
        return weights, row_slopes, column_slopes, sums

    def _products(self, x: _Cloud, y: _Cloud, chunk: slice, first: int) -> tuple[Tensor | None, int]:
        """A chunk's products by cuBLAS and the stride of their rows; none where the kernels take them."""
        if self._plan.inside:
            return None, 0
        rows, columns = chunk.stop - chunk.start, len(y.rows) - first
        buffer = self._memory.take("products", rows, columns, torch.float32, self._plan.tile)
        left, right = x.rows[chunk], y.rows[first:].T
        if left.dtype == buffer.dtype:
            torch.mm(left, right, out=buffer)
        elif left.is_cuda:
            torch.mm(left, right, out_dtype=buffer.dtype, out=buffer)
        else:
            torch.mm(left.to(buffer.dtype), right.to(buffer.dtype), out=buffer)
        return buffer, buffer.stride(0)

    def _tiles(self, chunk: slice, y: _Cloud, within: bool) -> _Tiles:
        first, tile = chunk.start if within else 0, self._plan.tile
        return _Tiles(-(-(chunk.stop - chunk.start) // tile.i), -(-(len(y.rows) - first) // tile.j), first)

    def _extents(self, x: _Cloud, y: _Cloud, chunk: slice, tiles: _Tiles) -> tuple[int, ...]:
        (m, d), n = x.rows.shape, len(y.rows)
        return chunk.start, chunk.stop, tiles.first_column, m, n, d, tiles.i, tiles.j

    def _options(self, x: _Cloud) -> dict[str, Any]:
        tile = self._plan.tile
        return {
            "ROWS": tile.i,
            "COLUMNS": tile.j,
            "K": tile.k,
            "EVEN": x.rows.shape[1] % tile.k == 0,
            "PRECISION": self._plan.precision,
            "GROUP": tile.group,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            **({"maxnreg": tile.registers} if tile.registers else {}),
        }


class _Tiles(NamedTuple):
    """Rows and columns of tiles that cover a chunk, and its first column."""

    i: int
    j: int
    first_column: int
