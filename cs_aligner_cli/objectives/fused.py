"""The objective of pair sums on a GPU: exact, in chunks of rows, without one scalar coming back to the host.

The first pass takes every product once, for the softmax and kernel sums; the second takes it again and turns it into
the weights of the gradient, a chunk of rows at a time, which cuBLAS multiplies back. A cloud with itself takes one pass
over half of its pairs. Exponentials, sums and weights are in ``triton_kernels`` and ``triton_rows``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.row_exchange import Shares, own_slice
from cs_aligner_cli.objectives.fused_plan import Memory, Plan, add_product
from cs_aligner_cli.objectives.fused_sums import KernelSum, Softmax
from cs_aligner_cli.objectives.tiles import SMALLEST_SCALE

# Rows per program of the kernels that go once over rows, and what they read of a row at a time.
_ROWS, _WIDTH, _LINE = 16, 128, 1024
# What stands for the maxima and shares of logits where there are none.
_NOTHING: Sequence[Tensor | None] = [None] * 4
_ALL = slice(None)


class _Cloud(NamedTuple):
    """Rows (N, d) in float32, as multiplied, as pulled, and half their squared norms (N,) as multiplied.

    ``left`` and ``right``: the rows of a tile's height and of its width, as the kernels read them.
    """

    exact: Tensor
    rows: Tensor
    pulled: Tensor
    half_squares: Tensor
    left: Any
    right: Any

    @classmethod
    def of(cls, x: Tensor, plan: Plan, other: Tensor | None = None, paired: Tensor | None = None) -> _Cloud:
        """Prepare x (N, d); the dot products of its rows with those of ``other`` (N, d) go to ``paired`` (N,)."""
        from cs_aligner_cli.objectives.triton_rows import prepare_rows

        rows = x if plan.rows == x.dtype else torch.empty_like(x, dtype=plan.rows)
        half_squares = x.new_empty(len(x))
        prepare_rows[(-(-len(x) // _ROWS),)](
            x, None if rows is x else rows, half_squares, other, paired, *x.shape, WIDTH=_WIDTH, ROWS=_ROWS
        )
        pulled = rows if rows.dtype == plan.weights else x.to(plan.weights)
        return cls(x, rows, pulled, half_squares, plan.operand(rows, plan.tile.i), plan.operand(rows, plan.tile.j))


class _PairKernels:
    """The kernels over the pairs of this rank's rows with blocks of others, chunk by chunk, and what they all read."""

    def __init__(
        self,
        plan: Plan,
        references: Tensor,
        kernel: tuple[Tensor | None, int],
        groups: Tensor | None,
        own: slice,
    ) -> None:
        from cs_aligner_cli.objectives import triton_kernels

        self._kernels, self._plan, self._references = triton_kernels, plan, references
        self._constants, self._sigmas = kernel
        self._groups, self._at = None if groups is None else groups.contiguous(), own
        self._memory = Memory(references.device)

    def summed(self, x: _Cloud, y: _Cloud, softmax: Softmax | None, block: slice = _ALL, *, diagonal: bool) -> Tensor:
        """Add the logits' sums to the softmax, y being a block of all columns; the kernel's sums and references."""
        within, found = x is y, []
        for chunk in self._plan.chunks(len(x.rows), len(y.rows), within):
            tiles = self._plan.tiles(chunk, len(y.rows), within)
            columns = len(y.rows) - tiles.first_column
            parts = softmax.parts(chunk.stop - chunk.start, columns, tiles) if softmax is not None else []
            partial = x.half_squares.new_zeros(2, tiles.sums)
            self._kernels.sum_pairs[(tiles.programs,)](
                x.left,
                y.right,
                *self._memory.products(x.rows[chunk], y.rows[tiles.first_column :], self._plan),
                x.half_squares,
                y.half_squares,
                *self._groups_of(softmax is not None, block),
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
                **self._plan.options(x.rows.shape[1], x.left is not x.rows),
            )
            if softmax is not None:
                softmax.merge(chunk, block, parts)
            found.append(partial)
        return torch.cat(found, dim=1)

    def _groups_of(self, wanted: bool, block: slice) -> tuple[Tensor | None, Tensor | None]:
        """The groups of this rank's rows and of a block's columns."""
        if self._groups is None or not wanted:
            return None, None
        return self._groups[self._at], self._groups[block]

    def weighed(
        self,
        x: _Cloud,
        y: _Cloud,
        chunk: slice,
        factors: Tensor,
        shares: Sequence[Tensor | None],
        diagonal: bool,
        block: slice = _ALL,
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
            x.left,
            y.right,
            *products,
            weights,
            weights.stride(0),
            x.half_squares,
            y.half_squares,
            *self._groups_of(shares[0] is not None, block),
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
            **self._plan.options(x.rows.shape[1], x.left is not x.rows),
        )
        return weights, row_slopes, column_slopes, sums


class FusedPairs:
    """InfoNCE's softmax sums and a kernel's sums over two clouds, and their gradients.

    ``image`` (M, d) and ``text`` (N, d) are float32; with ``logit_scale``, a 0-d tensor, M = N and rows are pairs, of
    which those that share one of the (N,) ``groups`` have no logit but their own. ``kernel``: what ``kernel_constants``
    and ``count_sigmas`` give. Of clouds that several ranks hold (``shares``) they are this rank's rows, and so are
    gradients; groups and sums are of all.
    """

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | None,
        groups: Tensor | None,
        kernel: tuple[Tensor | None, int],
        plan: Plan,
        shares: Shares,
    ) -> None:
        from cs_aligner_cli.objectives.triton_rows import choose_references

        self._plan, self._shares, self._exchange = plan, shares, shares.exchange
        self._at = own_slice(shares.rows, shares.exchange.rank)
        self._scale, self._sigmas = logit_scale, kernel[1]
        image, text = image.contiguous(), text.contiguous()
        self._paired = image.new_empty(len(image)) if logit_scale is not None else None
        self.image = _Cloud.of(image, plan, None if self._paired is None else text, self._paired)
        self.text = _Cloud.of(text, plan)
        # Logits per dot product and their reference in base 2, whether one reference serves, whether distances are far.
        self._references = image.new_empty(4)
        of_all = self._exchange.all_gather_rows
        choose_references[(1,)](
            of_all(self.image.half_squares, shares.rows),
            of_all(self.text.half_squares, shares.columns),
            None if self._paired is None else of_all(self._paired, shares.rows),
            logit_scale,
            kernel[0],
            self._references,
            sum(shares.rows),
            sum(shares.columns),
            BLOCK=_LINE,
        )
        self._pairs = _PairKernels(plan, self._references, kernel, groups, self._at)

    def _blocks(
        self, cloud: _Cloud, counts: Sequence[int], grads: Tensor | None = None
    ) -> Iterator[tuple[slice, _Cloud, Tensor | None]]:
        """A cloud as every rank's rows, where they stand among all, and a place for their gradients."""
        for rank, rows, grad in self._exchange.blocks(cloud.exact, counts, grads):
            own = rank == self._exchange.rank
            yield own_slice(counts, rank), cloud if own else _Cloud.of(rows, self._plan), grad

    def within(
        self, cloud: _Cloud, diagonal: bool, weigh: Callable[[KernelSum], Tensor] | None
    ) -> tuple[KernelSum, Tensor | None]:
        """The kernel's sum over the pairs of one cloud, with or without i = j, and its gradient (N, d).

        ``weigh``: by what the gradient of the sum's total is multiplied, a 0-d tensor; None if none is wanted.
        """
        counts = self._shares.rows if cloud is self.image else self._shares.columns
        size = sum(counts)
        pairs = size * size if diagonal else size * (size - 1)
        zero = cloud.half_squares.new_zeros(())
        # With the pairs (i, i) the sum is never below their number; without, it may need a reference first.
        referenced = not diagonal and self._sigmas > 0
        found = KernelSum(zero.double(), zero.double(), pairs)
        if referenced or weigh is None:
            parts = [
                self._pairs.summed(cloud, other, None, diagonal=diagonal) for _, other, _ in self._blocks(cloud, counts)
            ]
            found = self._kernel_sum(parts, pairs)
            if weigh is None:
                return found, None
        grad = torch.zeros_like(cloud.rows, dtype=torch.float32)
        slopes = cloud.half_squares.new_zeros(len(grad))
        factors = torch.stack([zero, zero + 1, found.reference.float()])
        totals = []
        for _, other, _ in self._blocks(cloud, counts):
            own = other is cloud
            for chunk in self._plan.chunks(len(cloud.rows), len(other.rows), within=own):
                weights, rows, columns, sums = self._pairs.weighed(cloud, other, chunk, factors, _NOTHING, diagonal)
                totals.append(sums[1])
                i0, i1 = chunk.start, chunk.stop
                add_product(grad[i0:i1], weights, other.pulled[i0:] if own else other.pulled)
                slopes[i0:i1].add_(rows.sum(0))
                if own and i1 < len(grad):  # what the others' rows are pulled by is theirs to take
                    add_product(grad[i1:], weights[:, i1 - i0 :].T, cloud.pulled[i0:i1])
                    slopes[i1:].add_(columns[:, i1 - i0 :].sum(0))
        if not referenced:
            total = self._exchange.all_reduce(torch.cat(totals).sum(dtype=torch.float64), "sum")
            found = KernelSum(total, found.reference, pairs)
        _pull_rows(grad, 2 * weigh(found), slopes, cloud)
        return found, grad

    def cross(self) -> tuple[Softmax | None, KernelSum]:
        """The softmax sums, where there are logits, and the kernel's sum over all pairs of image and text."""
        pairs = sum(self._shares.rows) * sum(self._shares.columns)
        softmax = None if self._paired is None else Softmax.empty(self._paired, sum(self._shares.columns), self._at)
        parts = [
            self._pairs.summed(self.image, other, softmax, block, diagonal=other is self.text)
            for block, other, _ in self._blocks(self.text, self._shares.columns)
        ]
        return softmax and softmax.over_ranks(self._exchange), self._kernel_sum(parts, pairs)

    def _kernel_sum(self, parts: Sequence[Tensor], pairs: int) -> KernelSum:
        """What sums and references (2, tiles) of blocks come to, over all ranks."""
        sums, references = torch.cat(list(parts), dim=1)
        return KernelSum.of(sums, references, pairs, self._exchange)

    def add_cross_gradients(
        self, dx: Tensor, dy: Tensor, softmax: Softmax | None, found: KernelSum, weights: tuple[Tensor, Tensor | None]
    ) -> Tensor | None:
        """Add the gradient of ``weights[0] * loss + weights[1] * found.total``; return that of the logit scale.

        The loss is the softmax's. dx is (M, d) and dy (N, d), float32; weights are 0-d tensors, the second None where
        there is no kernel.
        """
        image, text = self.image, self.text
        x_slopes = dx.new_zeros(len(dx))
        zero = dx.new_zeros(())
        # Weights hold the scale as a factor, which its own gradient takes out again: so it is never 0 there, and rows
        # that nothing pulls are pulled by a 1e-20th.
        scale = None if self._scale is None else self._scale + SMALLEST_SCALE * (self._scale.abs() < SMALLEST_SCALE)
        per_logit = zero if scale is None else (scale * weights[0] / (2 * sum(self._shares.rows))).float()
        per_slope = zero if weights[1] is None else weights[1].float()
        factors = torch.stack([per_logit, per_slope, found.reference.float()])
        pulls = None if softmax is None else softmax.own_pulls() * per_logit
        scale_sums = []
        for block, other, grad in self._blocks(text, self._shares.columns, dy):
            assert grad is not None
            own = other is text
            y_slopes = dx.new_zeros(len(grad))
            shares = _NOTHING if softmax is None else softmax.shares(block)
            for chunk in self._plan.chunks(len(image.rows), len(other.rows), within=False):
                pull, rows, columns, sums = self._pairs.weighed(image, other, chunk, factors, shares, own, block)
                add_product(dx[chunk], pull, other.pulled)
                add_product(grad, pull.T, image.pulled[chunk])
                if self._sigmas >= 0:
                    x_slopes[chunk].add_(rows.sum(0))
                    y_slopes.add_(columns.sum(0))
                scale_sums.append(sums[0])
            if self._sigmas >= 0 or own:
                _pull_rows(grad, zero + 1, y_slopes, other, (pulls, image) if own else None)
        _pull_rows(dx, zero + 1, x_slopes, image, (pulls, text))
        if softmax is None or pulls is None or scale is None or self._scale is None or self._paired is None:
            return None
        dots = torch.where(scale == self._scale, softmax.own.double() / self._references[0], self._paired.double())
        scale_sum = torch.cat(scale_sums).sum(dtype=torch.float64) + (pulls * dots).sum()
        return self._exchange.all_reduce(scale_sum / scale, "sum")


def _pull_rows(
    grad: Tensor, factor: Tensor, slopes: Tensor, cloud: _Cloud, paired: tuple[Tensor | None, _Cloud] | None = None
) -> None:
    """``grad`` (N, d) becomes ``factor * (grad - slopes * rows)``; ``paired`` adds its pulls (N,) times their pairs."""
    from cs_aligner_cli.objectives.triton_rows import pull_rows

    pulls, other = paired or (None, cloud)
    pull_rows[(-(-len(grad) // _ROWS),)](
        grad,
        factor,
        slopes,
        cloud.pulled,
        pulls,
        None if pulls is None else other.exact,
        *grad.shape,
        WIDTH=_WIDTH,
        ROWS=_ROWS,
    )
