"""Whoever runs a training may watch its validations, and end it by raising in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

# Called after every epoch with its number, from 1, and the validation R@1, the mean of both directions.
Watcher: TypeAlias = Callable[[int, float], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Let ``watcher`` hear of every validation of the trainings within."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def report(epoch: int, recall: float) -> None:
    """Tell whoever watches of a validation."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(epoch, recall)
