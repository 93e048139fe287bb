"""What the first pass of the fused objective leaves on the device, and the losses that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.row_exchange import RowExchange
from cs_aligner_cli.objectives.fused_plan import LOG2, Tiles

# Sums that one program of the merging kernel adds up, and parts of each at a time.
_BLOCK, _LINES = 32, 32


class KernelSum(NamedTuple):
    """A sum of kernel values over ``pairs`` pairs in units of ``2^reference``: 0-d float64 tensors on the device."""

    total: Tensor
    reference: Tensor
    pairs: int

    @classmethod
    def of(cls, sums: Tensor, references: Tensor, pairs: int, exchange: RowExchange) -> KernelSum:
        """The sum of all ranks' parts (float32, any number), each in units of 2^its reference."""
        references = references.double()
        top = exchange.all_reduce(references.max(), "max")
        return cls(exchange.all_reduce((sums.double() * torch.exp2(references - top)).sum(), "sum"), top, pairs)

    def mean(self, logarithm: bool) -> Tensor:
        """The mean kernel value, or its natural logarithm."""
        if logarithm:
            return self.total.log() + (self.reference * LOG2 - math.log(self.pairs))
        return self.total * self.unit / self.pairs

    def slope(self, logarithm: bool) -> Tensor:
        """The derivative of ``mean`` with respect to ``total``."""
        return 1 / self.total if logarithm else self.unit / self.pairs

    @property
    def unit(self) -> Tensor:
        """What ``total`` counts in."""
        return torch.exp2(self.reference)


class Softmax(NamedTuple):
    """Maxima (float32) and sums (float64) of 2^logit by row and by column, and the pairs' own logits.

    Of rows that several ranks hold, rows and logits (M,) are this one's, and columns (N,) all, ``at`` its own of them.
    """

    row_maxima: Tensor
    row_sums: Tensor
    column_maxima: Tensor
    column_sums: Tensor
    own: Tensor
    at: slice

    @classmethod
    def empty(cls, paired: Tensor, pairs: int, at: slice) -> Softmax:
        """Sums of nothing yet, of this rank's pairs, in number and on the device of ``paired`` (M,), and of all."""
        maxima = [paired.new_full((size,), -math.inf) for size in (len(paired), pairs)]
        sums = [torch.zeros_like(part, dtype=torch.float64) for part in maxima]
        return cls(maxima[0], sums[0], maxima[1], sums[1], torch.empty_like(paired), at)

    def parts(self, rows: int, columns: int, tiles: Tiles) -> list[Tensor]:
        """Room for the maxima and sums of a chunk: of its rows by tile across, of all columns by tile down."""
        new = self.own.new_empty
        by_row, by_column = (tiles.across, rows), (tiles.down, columns)
        return [new(by_row), new(by_row), new(by_column), new(by_column)]

    def merge(self, chunk: slice, block: slice, parts: Sequence[Tensor]) -> None:
        """Add what ``parts`` hold now to the sums of a chunk's rows and of a block's columns."""
        from cs_aligner_cli.objectives.triton_rows import merge_sums

        rows = self.row_maxima[chunk], self.row_sums[chunk], *parts[:2]
        columns = self.column_maxima[block], self.column_sums[block], *parts[2:]
        for maxima, sums, part_maxima, part_sums in (rows, columns):
            count, size = part_sums.shape
            merge_sums[(-(-size // _BLOCK),)](
                maxima, sums, part_maxima, part_sums, size, count, BLOCK=_BLOCK, LINES=_LINES
            )

    def over_ranks(self, exchange: RowExchange) -> Softmax:
        """With the sums of columns over all ranks' rows: of its own rows each rank has all."""
        if exchange.size == 1:
            return self
        maxima = exchange.all_reduce(self.column_maxima, "max")
        sums = self.column_sums * torch.exp2((self.column_maxima - maxima).double())
        return self._replace(column_maxima=maxima, column_sums=exchange.all_reduce(sums, "sum"))

    def shares(self, block: slice) -> list[Tensor]:
        """Maxima and reciprocal sums in float32, of rows, then of a block's columns: what the second pass reads."""
        by_row, by_column = (1 / self.row_sums).float(), (1 / self.column_sums[block]).float()
        return [self.row_maxima, by_row, self.column_maxima[block], by_column]

    def own_pulls(self) -> Tensor:
        """What each pair's own logit is pulled by, (M,) float64: its shares of its row and its column less 2.

        It is most of a softmax's gradient: among the weights nearly solved pairs would lose their digits.
        """
        own, (maxima, sums) = self.own.double(), self._own_columns
        of_row = torch.exp2(own - self.row_maxima.double()) / self.row_sums
        return of_row + torch.exp2(own - maxima) / sums - 2

    @property
    def loss(self) -> Tensor:
        """This rank's part of the mean cross-entropy of rows and columns of all pairs, a 0-d float64 tensor."""
        own, (maxima, sums) = self.own.double(), self._own_columns
        rows = self.row_maxima.double() - own + self.row_sums.log2()
        columns = maxima - own + sums.log2()
        return (rows + columns).sum() * (LOG2 / 2 / len(self.column_sums))

    @property
    def _own_columns(self) -> tuple[Tensor, Tensor]:
        return self.column_maxima[self.at].double(), self.column_sums[self.at]
