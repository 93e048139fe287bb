"""Several processes on one command: who does what, and how tensors and decisions reach them all.

A batch is a function of the step, so every rank loads and embeds its own share of it, all ranks get all embeddings,
each takes the loss of the whole batch (by tiles, in linear memory), and sends its own rows' gradient back through its
own graph. The parameters' gradients, summed over the ranks, are then exactly those of one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from cs_aligner_cli.common.errors import AlreadyReportedError, CsalignError, InputError
from cs_aligner_cli.common.torchrun_env import local_rank, world_size
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.recipe.distributed import Distributed

T = TypeVar("T")
# Gradients travel in blocks of so many values: one small message per parameter would wait for the network.
_BUCKET = 1 << 23
# How long a rank waits for work that another does alone: validation, writing, computing a whole evaluation.
_PATIENCE = timedelta(days=30)


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


class Ranks:
    """The processes of one command, seen from one of them; this class is the case of one process alone."""

    rank, size = 0, 1

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

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Every rank's rows (counts[rank], d), by rank (sum(counts), d); of several ranks without graph."""
        return rows

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks rank 0's values, in place."""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks, which all have gradients of the same parameters."""


class _Group(Ranks):
    """Several processes, joined by torch.distributed."""

    def __init__(self, spec: Distributed) -> None:
        with _among_ranks():
            self._store, self.rank, self.size = next(rendezvous("env://"))
            timeout = timedelta(minutes=spec.timeout_minutes)
            dist.init_process_group(
                _backend(spec), store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
            )
            patient = dist.new_group(timeout=_PATIENCE, backend="gloo")
        assert isinstance(patient, dist.ProcessGroup)  # and no stranger to its own group
        self._patient = patient

    def barrier(self) -> None:
        with _among_ranks():
            dist.barrier(self._patient)

    def broadcast(self, function: Callable[[], T]) -> T:
        found: list[Any] = self.all_gather(function() if self.main else None)
        return found[0]  # type: ignore[no-any-return]

    def all_gather(self, value: T) -> list[T]:
        text = torch.frombuffer(bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _among_ranks():
            dist.all_gather(lengths, torch.tensor([len(text)]), self._patient)
            counts = [int(length) for length in lengths]
            texts = _all_gather(text, counts, self._patient)
        found: list[T] = [json.loads(bytes(part.numpy())) for part in texts]
        found[self.rank] = value  # as it was, not as JSON gives it back
        return found

    def any(self, flag: bool) -> bool:
        up = torch.tensor([float(flag)])
        with _among_ranks():
            dist.all_reduce(up, dist.ReduceOp.MAX)
        return bool(up)

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        with _among_ranks():
            return torch.cat(_all_gather(rows.detach(), counts))

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        with _among_ranks():
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        with _among_ranks():
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                dist.all_reduce(flat)
                for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))

    def already_reported(self) -> bool:
        """Whether another rank has already said why the command ends; if not, this one is now to say it."""
        try:
            return int(self._store.add("csalign/reported", 1)) > 1
        except RuntimeError:  # the launcher, which keeps the store, has gone
            return not self.main


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
    group = _Group(spec)
    try:
        yield group
    except BaseException as error:
        if group.already_reported():
            raise AlreadyReportedError(_exit_code(error)) from None
        error.add_note(f"(rank {group.rank} of {group.size})")
        raise
    else:
        dist.destroy_process_group()


@contextmanager
def building(artifact: Artifact, ranks: Ranks, sources: str = "") -> Iterator[Build]:
    """``artifact.building`` by rank 0; the other ranks work in the same folder, and all leave when it is in place."""
    if ranks.main:
        with artifact.building(sources) as build:
            ranks.barrier()
            yield build
            ranks.barrier()
    else:
        ranks.barrier()
        yield Build(artifact.work, resumed=True)
        ranks.barrier()
    ranks.barrier()


@contextmanager
def _among_ranks() -> Iterator[None]:
    """Raise a failure to reach the other ranks as one; torch.distributed's errors are RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankLostError(
            f"another rank of this job ended, or did not answer within distributed.timeout_minutes ({reason})\n"
            "What it had finished is kept: the same command goes on from there, also with another number of ranks."
        ) from error


def _exit_code(error: BaseException) -> int:
    if isinstance(error, CsalignError):
        return error.exit_code
    return RankLostError.exit_code if isinstance(error, KeyboardInterrupt) else CsalignError.exit_code


def _backend(spec: Distributed) -> str:
    """Which backend carries the tensors of which device; this rank's GPU becomes its current one."""
    if spec.backend == "gloo" or (spec.backend == "auto" and not torch.cuda.is_available()):
        return "gloo"
    gpus = torch.cuda.device_count()
    if local_rank() >= gpus:
        raise InputError(
            f"distributed: local rank {local_rank()} has no GPU of its own: this machine has {gpus}",
            "Start as many processes as there are GPUs (torchrun --nproc-per-node), or set distributed.backend: gloo.",
        )
    torch.cuda.set_device(local_rank())
    return "cpu:gloo,cuda:nccl"


def _all_gather(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Every rank's rows; padded on the way, since the backends want equal shapes."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype in blocks of about ``_BUCKET`` values."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in (g for g in gradients if g.dtype == dtype):
            bucket.append(gradient)
            if sum(g.numel() for g in bucket) >= _BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
