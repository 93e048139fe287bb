"""Loading ahead: the next batches are read while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetched(load: Callable[[S], T], steps: Iterable[S], ahead: int = 1) -> Iterator[T]:
    """``load(step)`` for every step, in order, the next ``ahead`` being loaded while the present one is used."""
    with ThreadPoolExecutor(max_workers=ahead) as workers:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(workers.submit(load, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
