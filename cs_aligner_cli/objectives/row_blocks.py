"""Losses that are sums over rows, each against all columns: taken block by block, in memory linear in the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.objectives.pairsums import wide
from cs_aligner_cli.objectives.tiles import slices

# Entries of one block of rows against all columns: a constant, so memory stays linear in the rows.
_ENTRIES = 2**22

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
