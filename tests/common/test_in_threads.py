"""Several things at once: in order, a share of the threads each, and no further once one has failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from threading import Barrier, Event

import pytest
import torch

from cs_aligner_cli.common.in_threads import in_threads


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


def test_results_come_in_order_whoever_is_ready_first() -> None:
    def work(seconds: float, go_on: Callable[[], None]) -> float:
        time.sleep(seconds)
        return 2 * seconds

    assert list(in_threads(work, [0.1, 0.0, 0.05], 4)) == [(0.1, 0.2), (0.0, 0.0), (0.05, 0.1)]


@pytest.mark.parametrize(("most", "workers", "share"), [(4, 4, 1), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_the_threads_are_shared_and_given_back(most: int, workers: int, share: int) -> None:
    together = Barrier(workers)  # breaks unless so many work at once

    def work(item: int, go_on: Callable[[], None]) -> int:
        together.wait(10)
        return torch.get_num_threads()

    assert [found for _, found in in_threads(work, range(workers), most)] == [share] * workers
    assert torch.get_num_threads() == 4


def _until_ended(go_on: Callable[[], None], stopped: Event) -> None:
    try:
        for _ in range(500):
            go_on()
            time.sleep(0.01)
    except CancelledError:
        stopped.set()
        raise


def test_one_failure_ends_the_others() -> None:
    begun, stopped = [], Event()
    both = Barrier(2)

    def work(item: int, go_on: Callable[[], None]) -> None:
        begun.append(item)
        if item < 2:
            both.wait(10)
        if item == 0:
            raise ValueError("the first")
        _until_ended(go_on, stopped)

    with pytest.raises(ValueError, match="the first"):
        list(in_threads(work, range(5), 2))
    assert stopped.is_set() and begun[:2] in ([0, 1], [1, 0]) and len(begun) < 5
    assert torch.get_num_threads() == 4


def test_an_item_that_cannot_be_had_ends_the_others() -> None:
    stopped = Event()

    def items() -> Iterator[int]:
        yield 0
        raise ValueError("no second")

    def work(item: int, go_on: Callable[[], None]) -> None:
        _until_ended(go_on, stopped)

    with pytest.raises(ValueError, match="no second"):
        list(in_threads(work, items(), 2))
    assert stopped.is_set()
