"""Several processes on one command: who does what, and how tensors and decisions reach them all.

A batch is a function of the step, so every rank loads and embeds its own share of it, takes the pairs of its own
embeddings with those of all, which pass by while it computes, and sends its own rows' gradient back through its own
graph. The parameters' gradients, summed over the ranks, are then exactly those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

from cs_aligner_cli.common.errors import AlreadyReportedError, CsalignError, InputError
from cs_aligner_cli.common.row_exchange import RowExchange
from cs_aligner_cli.common.torchrun_env import world_size
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.recipe.distributed import Distributed

if TYPE_CHECKING:  # one process that has nothing to do needs no torch
    from torch import Tensor, nn

T = TypeVar("T")


class RankLostError(CsalignError):
    """Another rank died or hung; everything it had finished is on disk, so the same command goes on."""

    exit_code = 130


@dataclass(frozen=True)
class Share:
    """One rank's share of a batch.

    ``rows``: its rows among those of the batch. ``parts``: the number that each of its micro-batches has in the whole
    batch, and its positions among the share's rows. ``counts``: how many rows every rank has.
    """

    rows: slice
    parts: list[tuple[int, slice]]
    counts: list[int]


def share_of_batch(size: int, micro: int | None, rank: int = 0, ranks: int = 1) -> Share:
    """Split a batch of ``size`` rows over ranks, in order, as evenly as its micro-batches allow.

    Micro-batches stay what they are in one process, and so do the random draws of each, as long as there is one for
    every rank; where there is not, each rank's share is one. Raises InputError if there are more ranks than rows.
    """
    if size < ranks:
        raise InputError(f"a batch of {size} pairs cannot be split over {ranks} ranks", "Start fewer processes.")
    whole = -(-size // micro) if micro else 1
    if micro and whole >= ranks:
        ends = [min(i * micro, size) for i in range(whole + 1)]
    else:
        whole = ranks
        ends = [size * i // ranks for i in range(ranks + 1)]
    first = [whole * i // ranks for i in range(ranks + 1)]  # the first part of every rank
    start = ends[first[rank]]
    own = range(first[rank], first[rank + 1])
    return Share(
        slice(start, ends[first[rank + 1]]),
        [(i, slice(ends[i] - start, ends[i + 1] - start)) for i in own],
        [ends[after] - ends[before] for before, after in pairwise(first)],
    )


class Ranks(RowExchange):
    """The processes of one command, seen from one of them; this class is the case of one process alone."""

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which alone writes, logs and talks."""
        return self.rank == 0

    def share_of_batch(self, size: int, micro: int | None) -> Share:
        """This rank's share of a batch."""
        return share_of_batch(size, micro, self.rank, self.size)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this rank's to do: every ``size``-th one."""
        return items[self.rank :: self.size]

    def barrier(self) -> None:
        """Wait until all ranks are here, however long one of them works alone."""

    def broadcast(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on rank 0, for all ranks; anything that JSON can hold."""
        return function()

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value (anything that JSON can hold), by rank."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return flag

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks rank 0's values, in place."""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks, which all have gradients of the same parameters."""


# The case of one process.
ALONE: Final = Ranks()


@contextmanager
def together(spec: Distributed) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did.

    Whatever ends the command on several ranks is reported by the first of them; the others raise AlreadyReportedError.
    """
    if world_size() == 1:
        yield ALONE
        return
    from cs_aligner_cli.runs.process_group import ProcessGroup

    group = ProcessGroup()
    try:
        group.join(spec)
        yield group
    except BaseException as error:
        if group.already_reported():
            raise AlreadyReportedError(_exit_code(error)) from None
        error.add_note(f"(rank {group.rank} of {group.size})")
        raise
    else:
        group.leave()


@contextmanager
def building(
    artifact: Artifact, ranks: Ranks, sources: str = "", keep_earlier: bool = False, continues: str = ""
) -> Iterator[Build]:
    """``artifact.building`` by rank 0; the other ranks work in the same folder, and all leave when it is in place."""
    if ranks.main:
        with artifact.building(sources, keep_earlier, continues) as build:
            ranks.barrier()
            yield build
            ranks.barrier()
    else:
        ranks.barrier()
        yield Build(artifact.work, resumed=True)
        ranks.barrier()
    ranks.barrier()


def _exit_code(error: BaseException) -> int:
    if isinstance(error, CsalignError):
        return error.exit_code
    return RankLostError.exit_code if isinstance(error, KeyboardInterrupt) else CsalignError.exit_code
