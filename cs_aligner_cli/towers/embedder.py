"""Embedding at the encoder's own speed: data loaded beside it, texts of one length together, each text once."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.prefetch import prefetched
from cs_aligner_cli.common.token_sequences import Ragged
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.encoders.inputs import PADDING, ImageLoader, decoders

Values: TypeAlias = npt.NDArray[np.float32]
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Items per pass where the recipe leaves it open. Two cores are no faster with more than this, and accelerators
# are; what does not fit their memory is halved until it does.
_CPU_BATCH, _ACCELERATOR_BATCH = 32, 512
# Captions tokenised at a time to learn their lengths, and how many show whether lengths differ at all.
_COUNTED, _SAMPLED = 1024, 64


@dataclass
class Throughput:
    """How fast a tower went: items computed, seconds, and the seconds it stood still waiting for data."""

    items: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def busy(self) -> float:
        """Share of the time in which the encoder had something to do."""
        return 1 - self.waited / self.seconds if self.seconds else 1.0

    def summary(self) -> str:
        """For the progress line."""
        return f"{self.items / self.seconds:.0f}/s, encoder busy {self.busy:.0%}" if self.seconds else ""

    def record(self) -> dict[str, Any]:
        """For the run's record."""
        rate = self.items / self.seconds if self.seconds else 0.0
        return {"computed": self.items, "per_second": round(rate, 1), "encoder_busy": round(self.busy, 3)}


class Embedder:
    """One tower over the rows of one table.

    ``forward`` maps inputs on ``device`` to (B, d); ``load(rows)`` gives the inputs of some rows (CPU, first axis the
    rows). ``texts`` are the captions of all rows where the tower reads captions: equal ones are computed once, and
    batches hold captions of similar length, so that little is computed on padding. ``batch_size`` None: chosen here.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        load: Callable[[Ints], Tensor],
        device: torch.device,
        batch_size: int | None = None,
        texts: Sequence[str] | None = None,
        loader: object = None,
    ) -> None:
        self.forward, self.load, self.device = forward, load, device
        self.batch_size = batch_size or (_CPU_BATCH if device.type == "cpu" else _ACCELERATOR_BATCH)
        self.first = None if texts is None else first_of_equal(texts)
        self.throughput = Throughput()
        self._images = loader if isinstance(loader, ImageLoader) else None
        if self._images and device.type == "cpu":
            self._images.workers = 1  # until the first batches have shown how many it takes
        self._ahead = 1
        if self._images:
            self._images.pinned = device.type == "cuda"
            self._ahead = 2 if self._images.processes else 1  # so that none waits for the last pictures of a batch

    def all(self, rows: Ints) -> Values:
        """Embeddings (len(rows), d) of some rows, in their order; equal captions among them are computed once."""
        owner = rows if self.first is None else self.first[rows]
        computed, position = np.unique(owner, return_inverse=True)
        values = next(self.shards([(0, computed)]))[1]
        return values[position]

    def shards(
        self, parts: Sequence[tuple[int, Ints]], advance: Callable[..., None] = lambda count=1, note="": None
    ) -> Iterator[tuple[int, Values, Ints]]:
        """(number, values (len(rows), d), copies) of every part (number, rows), loading ahead across their borders.

        ``copies`` are the positions in ``values`` that the caller fills in: captions that equal that of an earlier
        row, which ``self.first`` names.
        """
        plans: deque[list[Ints]] = deque()  # the positions of every batch of a part, a part or two ahead

        def batches() -> Iterator[Ints]:
            for _, rows in parts:
                plans.append(self._batches(rows))
                yield from (rows[positions] for positions in plans[-1])

        blocks = self._blocks(batches())
        for number, rows in parts:
            block = next(blocks)
            plan = plans.popleft()
            values = np.zeros((len(rows), block.shape[1]), np.float32)
            for i, positions in enumerate(plan):
                values[positions] = next(blocks) if i else block
                advance(len(positions), self.throughput.summary())
            advance(len(rows) - sum(map(len, plan)))
            copies = np.flatnonzero(self.first[rows] != rows) if self.first is not None else np.arange(0)
            yield number, values, copies

    def token_shards(
        self, parts: Sequence[tuple[int, Ints]], advance: Callable[..., None] = lambda count=1, note="": None
    ) -> Iterator[tuple[int, Ragged]]:
        """(number, tokens) of every part (number, rows), for a ``forward`` that gives padded tokens (B, L, d).

        Captions that are equal within a part are computed once.
        """
        plans: deque[tuple[list[Ints], Ints]] = deque()

        def batches() -> Iterator[Ints]:
            for _, rows in parts:
                owner = rows if self.first is None else self.first[rows]
                computed, position = np.unique(owner, return_inverse=True)
                plans.append((self._batches(computed), position))
                yield from (computed[positions] for positions in plans[-1][0])

        blocks = self._blocks(batches())
        for number, rows in parts:
            block = next(blocks)
            plan, position = plans.popleft()
            found = []
            for i, positions in enumerate(plan):
                found.append(Ragged.from_padded(next(blocks) if i else block))
                advance(len(positions), self.throughput.summary())
            place = np.argsort(np.concatenate(plan))
            advance(len(rows) - len(place))
            yield number, Ragged.joined(found).take(place[position])

    def _batches(self, rows: Ints) -> list[Ints]:
        """Positions in ``rows`` to compute, batch by batch, the longest captions first, so that memory fails early."""
        positions = np.arange(len(rows))
        if self.first is not None:
            own = np.flatnonzero(self.first[rows] == rows)
            positions = own if len(own) else np.arange(1)  # a part of copies alone: one batch tells the dimension
            positions = positions[np.argsort(-self._lengths(rows[positions]), kind="stable")]
        return [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]

    def _lengths(self, rows: Ints) -> Ints:
        """Tokens of every row's caption, 0 where the tower reads padding like any other token.

        Counting them costs a hundredth of what computing the padding would.
        """
        if not (self.load(rows[:_SAMPLED]) == PADDING).any():
            return np.zeros(len(rows), np.int64)
        chunks = (rows[i : i + _COUNTED] for i in range(0, len(rows), _COUNTED))
        return np.concatenate([(self.load(chunk) != PADDING).sum(1).numpy() for chunk in chunks])

    @torch.inference_mode()
    def _blocks(self, batches: Iterable[Ints]) -> Iterator[Values]:
        """The values of every batch; on an accelerator the next one is launched before this one is fetched."""
        started = time.perf_counter()
        past = self.throughput
        ahead = 0 if self.device.type == "cpu" else 1
        launched: deque[tuple[Tensor, Sequence[torch.cuda.Event]]] = deque()
        waited, computed = 0.0, 0.0

        def fetched() -> Values:
            nonlocal waited, computed
            output, marks = launched.popleft()
            values: Values = output.float().cpu().numpy()
            if marks:  # what a GPU did is known only now
                computed += marks[0].elapsed_time(marks[1]) / 1e3
                waited = time.perf_counter() - started - computed
            now = Throughput(self.throughput.items + len(values), time.perf_counter() - started, waited)
            self.throughput = Throughput(now.items, past.seconds + now.seconds, past.waited + now.waited)
            return values

        loaded = prefetched(self._timed_load, batches, self._ahead)
        idle_since = time.perf_counter()
        for number, (inputs, load_seconds) in enumerate(loaded):
            ready = time.perf_counter()
            waited += ready - idle_since if number else 0.0  # the first batch could not be loaded ahead
            marks = self._marks()
            for mark in marks[:1]:
                mark.record()
            launched.append((self._run(inputs), marks))
            for mark in marks[1:]:
                mark.record()
            if self._images and number < 2 and self.device.type == "cpu":
                self._choose_workers(load_seconds, ready)
            while len(launched) > ahead:
                yield fetched()
            idle_since = time.perf_counter()
        while launched:
            yield fetched()

    def _marks(self) -> list[torch.cuda.Event]:
        """Two events of a GPU, between which a batch is computed; none elsewhere."""
        if self.device.type != "cuda":
            return []
        return [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]

    def _timed_load(self, rows: Ints) -> tuple[Tensor, float]:
        started = time.perf_counter()
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # a thread of its own begins with the first GPU
                loaded = self.load(rows)
                return loaded if loaded.is_cuda else loaded.pin_memory(), time.perf_counter() - started
        return self.load(rows), time.perf_counter() - started

    def _choose_workers(self, load_seconds: float, started: float) -> None:
        """As many decoding threads as keep up with an encoder on the same cores, a quarter more for safety."""
        assert self._images is not None
        work = load_seconds * self._images.workers
        wanted = math.ceil(1.25 * work / max(time.perf_counter() - started, 1e-6))
        self._images.workers = min(max(wanted, 1), decoders())

    def _run(self, inputs: Tensor) -> Tensor:
        """One batch through the tower, in smaller pieces where memory does not hold it whole."""
        try:
            parts = torch.split(self._on_device(inputs), self.batch_size)
            finished = self._images.finished if self._images else lambda part: part
            return torch.cat([self.forward(finished(part)) for part in parts])
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch_size == 1 or len(inputs) == 1:
            raise InputError(
                f"{self.device.type} memory does not hold a single item {tuple(inputs.shape[1:])} with this model",
                "Use embed.precision: bf16, a smaller model, embed.device: cpu, or a device with more memory.",
            )
        self.batch_size = max(1, min(self.batch_size, len(inputs)) // 2)
        return self._run(inputs)

    def _on_device(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.device, non_blocking=True)


def first_of_equal(texts: Sequence[str]) -> Ints:
    """(len(texts),) for every row the first row with the same text."""
    codes, _ = pd.factorize(np.asarray(texts, dtype=object))
    _, first = np.unique(codes, return_index=True)
    return np.asarray(first[codes], np.int64)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: by its type, or by the text of the CPU's and MPS's allocators."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in said for text in _OUT_OF_MEMORY)


@contextmanager
def out_of_memory_explained(what: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error inside into an InputError that says what was too large and what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"{what}: memory does not hold it", remedy) from None


def warm_up(device: torch.device) -> None:
    """Let a GPU's libraries load, which takes seconds, beside whatever else is to be done before its first batch."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1, 3, 32, 32, device=device, dtype=dtype)
        torch.nn.functional.conv2d(x, x) @ x.new_ones(1, 1)


def under(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a precision (fp32: none)."""
    dtype = _DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def pick_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; "auto" is what the device gains by: bf16 on CUDA from Ampere on, fp16 before, else fp32.

    Raises InputError if the device cannot do what is asked for.
    """
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if ampere else "fp16"
    if wanted == "bf16" and device.type == "cuda" and not ampere:
        name = torch.cuda.get_device_name(device)
        raise InputError(f"precision: bf16: {name} computes bf16 only in emulation", "Use precision: fp16.")
    return wanted
