"""Loading ahead: the next batch is read while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetched(load: Callable[[S], T], steps: Iterable[S]) -> Iterator[T]:
    """``load(step)`` for every step, in order, the next one being loaded while the present one is used."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        waiting = None
        for step in steps:
            upcoming = worker.submit(load, step)
            if waiting is not None:
                yield waiting.result()
            waiting = upcoming
        if waiting is not None:
            yield waiting.result()
