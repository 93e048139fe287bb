"""Rows against all columns, block by block, in memory linear in the rows: losses that are such sums, and matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.objectives.pairsums import wide
from cs_aligner_cli.objectives.tiles import slices

# Entries of one block of rows against all columns: a constant, so memory stays linear in the rows.
_ENTRIES = 2**22
# The same of a block of a matrix that is gone through many times, and how much of such a matrix is kept.
_BLOCK_ENTRIES, _KEPT_BYTES = 2**20, 224 * 2**20

# The loss of some rows, a scalar, as a function of their place and of all tensors.
BlockLoss: TypeAlias = Callable[..., Tensor]


def sum_over_blocks(loss: BlockLoss, rows: int, columns: int, *tensors: Tensor, entries: int = _ENTRIES) -> Tensor:
    """Return ``sum of loss(block, *tensors)`` over blocks (slices) of ``rows`` rows as a scalar tensor.

    ``loss`` may use matrices (rows of the block, ``columns``); a block has at most ``entries`` entries, or one row. The
    gradient with respect to the tensors is taken with the value, block after block, so no graph of more than one block
    exists. Tensors are taken in their own dtype whatever the autocast, and values are summed in float64.
    """
    size = max(1, entries // max(1, columns))
    return _SumOverBlocks.apply(loss, rows, size, *tensors)  # type: ignore[no-any-return]


class _SumOverBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: BlockLoss, rows: int, size: int, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        differentiated = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [torch.zeros_like(leaf) for leaf in differentiated]
        total = tensors[0].new_zeros((), dtype=wide(tensors[0]))
        with torch.autocast(device_type=tensors[0].device.type, enabled=False):
            for block in slices(0, rows, size):
                with torch.set_grad_enabled(bool(differentiated)):
                    value = loss(block, *leaves)
                total += value.detach()
                if differentiated:
                    found = torch.autograd.grad(value, differentiated, allow_unused=True)
                    for grad, part in zip(grads, found, strict=True):
                        if part is not None:
                            grad += part
        remaining = iter(grads)
        ctx.grads = [next(remaining) if want else None for want in wanted]
        return total.to(tensors[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if grad is None else upstream * grad for grad in ctx.grads)


class RowBlocks:
    """An (M, N) float64 matrix as blocks of rows from a function; what fits into a constant budget is kept.

    Iterates over (slice of rows, block), which must not be written to. For matrices that are gone through many times.
    """

    def __init__(self, block: Callable[[slice], Tensor], rows: int, columns: int, *, keep: bool = True) -> None:
        self._block, self.rows, self.columns = block, rows, columns
        self._budget = _KEPT_BYTES if keep else 0
        self._size = max(1, min(rows, _BLOCK_ENTRIES // columns))
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in slices(0, self.rows, self._size):
            yield rows, self.at(rows)

    def at(self, rows: slice) -> Tensor:
        """One of the blocks."""
        block = self._kept.get(rows.start)
        if block is None:
            block = self._block(rows)
            if block.nbytes <= self._budget:
                self._budget -= block.nbytes
                self._kept[rows.start] = block
        return block

    def times(self, v: Tensor) -> Tensor:
        """(M,) the matrix times v (N,)."""
        # Written in place: small results that are kept between large blocks would leave holes in memory.
        total = v.new_empty(self.rows)
        for rows, block in self:
            total[rows] = block @ v
        return total

    def transposed_times(self, u: Tensor) -> Tensor:
        """(N,) the transposed matrix times u (M,)."""
        total = u.new_zeros(self.columns)
        for rows, block in self:
            total += block.T @ u[rows]
        return total
