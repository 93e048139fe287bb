"""The ranks of one command, joined by torch.distributed: what ``distributed.Ranks`` does among several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.torchrun_env import local_rank, local_world_size
from cs_aligner_cli.recipe.distributed import Distributed
from cs_aligner_cli.runs.distributed import RankLostError, Ranks

T = TypeVar("T")
# Gradients travel in blocks of so many values: one small message per parameter would wait for the network.
_BUCKET = 1 << 23
# How long a rank waits for work that another does alone: validation, writing, computing a whole evaluation.
_PATIENCE = timedelta(days=30)
# What tells blocks of rows that pass by from gradients that return to their owners.
_PASSING, _RETURNED = 1, 2


class ProcessGroup(Ranks):
    """Several processes, joined by torch.distributed once ``join`` has been called."""

    def __init__(self) -> None:
        self._speaks = False  # for all ranks, of how the command ends
        with _among_ranks():
            self._store, self.rank, self.size = next(rendezvous("env://"))

    def join(self, spec: Distributed) -> None:
        """Wait for all ranks; raise InputError if they cannot work as the recipe says."""
        with _among_ranks():
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

    def all_reduce(self, values: Tensor, by: Literal["sum", "max"]) -> Tensor:
        found = values.detach().clone(memory_format=torch.contiguous_format)
        with _among_ranks():
            dist.all_reduce(found, dist.ReduceOp.SUM if by == "sum" else dist.ReduceOp.MAX)
        return found

    def blocks(
        self, rows: Tensor, counts: Sequence[int], grads: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        # Every rank sends its rows to each other one in turn: while a block is worked on, the next is on its way.
        coming = self._shifted(rows, 1, counts)
        yield self.rank, rows, grads
        returning: _Transfer | None = None
        for shift in range(1, self.size):
            block = coming.wait()
            if shift + 1 < self.size:
                coming = self._shifted(rows, shift + 1, counts)
            part = None if grads is None else torch.zeros_like(block)
            owner = (self.rank + shift) % self.size
            yield owner, block, part
            if part is not None and grads is not None:
                if returning is not None:
                    grads += returning.wait()
                returning = _Transfer(part, owner, (self.rank - shift) % self.size, len(grads), _RETURNED)
        if returning is not None and grads is not None:
            grads += returning.wait()

    def _shifted(self, rows: Tensor, shift: int, counts: Sequence[int]) -> _Transfer:
        """This rank's rows on their way to the rank ``shift`` before it, and those of the one as far after it."""
        source = (self.rank + shift) % self.size
        return _Transfer(rows, (self.rank - shift) % self.size, source, counts[source], _PASSING)

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

    def leave(self) -> None:
        """The command ends well: no rank needs the others any more."""
        dist.destroy_process_group()

    def already_reported(self) -> bool:
        """Whether another rank has already said why the command ends; if not, this one is now to say it."""
        if self._speaks:  # a signal came before it could say so
            return False
        try:
            self._speaks = int(self._store.add("csalign/reported", 1)) == 1
        except RuntimeError:  # the launcher, which keeps the store, has gone
            self._speaks = self.main
        return not self._speaks


class _Transfer:
    """Rows on their way to one rank, and ``count`` rows of another on theirs to this one."""

    def __init__(self, rows: Tensor, target: int, source: int, count: int, tag: int) -> None:
        self._device = rows.device
        # Only nccl sends from a GPU's own memory.
        through_host = rows.is_cuda and "nccl" not in dist.get_backend_config()
        self._sent = rows.detach().to("cpu" if through_host else rows.device).contiguous()
        self._received = self._sent.new_empty((count, *rows.shape[1:]))
        with _among_ranks():
            self._works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, self._sent, target, tag=tag),
                    dist.P2POp(dist.irecv, self._received, source, tag=tag),
                ]
            )

    def wait(self) -> Tensor:
        """The rows that came."""
        with _among_ranks():
            for work in self._works:
                work.wait()
        return self._received.to(self._device)


@contextmanager
def _among_ranks() -> Iterator[None]:
    """Tell a failure to reach the other ranks as one; torch.distributed's errors are RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankLostError(
            f"another rank of this job ended, or did not answer within distributed.timeout_minutes ({reason})\n"
            "What it had finished is kept: the same command goes on from there, also with another number of ranks."
        ) from error


def _backend(spec: Distributed) -> str:
    """Which backend carries the tensors of which device; this rank's GPU becomes its current one."""
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank() % gpus)
    if spec.backend == "gloo" or (spec.backend == "auto" and not gpus):
        return "gloo"
    refuse_shared_gpus(local_world_size(), gpus)
    return "cpu:gloo,cuda:nccl"


def refuse_shared_gpus(processes: int, gpus: int) -> None:
    """Raise InputError, on all ranks of a machine alike so that none waits for another, if nccl lacks a GPU."""
    if processes > gpus:
        raise InputError(
            f"distributed: nccl wants a GPU for each of this machine's {processes} processes, and it has {gpus}",
            "Start as many processes as there are GPUs (torchrun --nproc-per-node), or set distributed.backend: gloo.",
        )


def _all_gather(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Every rank's rows; padded on the way, since the backends want equal shapes."""
    if not max(counts):
        return [rows]
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
