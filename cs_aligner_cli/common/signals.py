"""SIGINT and SIGTERM while something must not be cut in half: heard at once, answered at the next good place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """Whether somebody asked this process to stop."""

    wanted: bool = False


@contextmanager
def noticed_interrupts() -> Iterator[Interrupts]:
    """Note the first SIGINT or SIGTERM in ``wanted``, for the caller to act on; a second one raises KeyboardInterrupt.

    Outside the main thread, where signals cannot be caught, nothing changes.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def notice(signum: int, frame: FrameType | None) -> None:
        if interrupts.wanted:
            raise KeyboardInterrupt
        interrupts.wanted = True

    former = {number: signal.signal(number, notice) for number in _SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
