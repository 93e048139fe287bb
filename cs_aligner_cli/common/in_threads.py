"""Several things worked on at once, in threads that share the cores between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def in_threads(
    work: Callable[[S, Callable[[], None]], T],
    items: Iterable[S],
    most: int,
) -> Iterator[tuple[S, T]]:
    """Every item with what ``work(item, go_on)`` returns of it, in order, at most ``most`` of them worked on at once.

    For work that is done in torch and NumPy, which let go of Python's lock: two operations side by side use two cores
    better than one after the other on both. Each gets its share of torch's threads: ``most`` is to be no more than
    there are items. These are taken in this thread meanwhile. Once somebody fails or is interrupted nobody wants the
    other results: ``go_on()``, to be called often, then raises, and what has not begun does not begin.
    """
    ended = Event()

    def go_on() -> None:
        if ended.is_set():
            raise CancelledError

    threads = torch.get_num_threads()
    workers = min(most, threads)
    # New threads begin with the number that was set last, in whichever thread.
    torch.set_num_threads(threads // workers)
    with ThreadPoolExecutor(workers, "side by side") as pool:
        try:
            running = [(item, pool.submit(work, item, go_on)) for item in items]
            for item, future in running:
                yield item, future.result()
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(threads)
