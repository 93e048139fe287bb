"""Rows of which every process of a job holds some: how a sum over all of them reaches the others' rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:  # one process that has nothing to do needs no torch
    from torch import Tensor


class RowExchange:
    """The processes that hold rows, seen from one of them; this class is one process that holds them all.

    Every rank calls the same methods in the same order.
    """

    rank, size = 0, 1

    def blocks(
        self, rows: Tensor, counts: Sequence[int], grads: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Every rank's rows (counts[rank], d) with the rank: this one's first, then those that came meanwhile.

        With ``grads``, this rank's (counts[rank], d), a place to add gradients of each block to comes along: of its own
        rows that is ``grads``; what it adds for others is added to theirs, and by the end of the iteration what others
        added for it to its own, always in the same order.
        """
        yield 0, rows, grads

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Every rank's rows (counts[rank], ...), by rank (sum(counts), ...); of several ranks without graph."""
        return rows

    def all_reduce(self, values: Tensor, by: Literal["sum", "max"]) -> Tensor:
        """The sum or maximum over ranks of tensors of one shape, equal on all of them bit by bit."""
        return values


ONE_PROCESS: Final = RowExchange()


class Shares(NamedTuple):
    """How many rows every rank holds of two clouds: ``rows`` of the first, ``columns`` of the second, by rank."""

    exchange: RowExchange
    rows: Sequence[int]
    columns: Sequence[int]

    @classmethod
    def alone(cls, rows: int, columns: int) -> Shares:
        """One process that holds both clouds."""
        return cls(ONE_PROCESS, [rows], [columns])


def own_slice(counts: Sequence[int], rank: int) -> slice:
    """Where a rank's rows stand among those of all ranks."""
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def even_counts(size: int, ranks: int) -> list[int]:
    """``size`` rows over ranks, in order and as evenly as can be."""
    ends = [size * i // ranks for i in range(ranks + 1)]
    return [after - before for before, after in pairwise(ends)]
