"""One process at a time in a folder, on every system; whoever is refused learns who holds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.disk import writing

LOCK = ".lock"
# Apart from the lock: on Windows nobody but its holder can read a locked file.
HOLDER = ".lock-holder"
# What a process that is killed had just started (git, say) may hold its lock a moment longer than itself.
LINGERING_SECONDS = 1.0
_POLL_SECONDS = 0.02


@contextmanager
def lock(folder: Path, patience: float = LINGERING_SECONDS, beside: bool = False) -> Iterator[None]:
    """Hold a folder for this process; raise InputError if another one still holds it after ``patience`` seconds, or if
    it cannot be written.

    The lock lies in the folder, or ``beside`` it, where the folder as a whole is replaced by another.
    """
    place, prefix = (folder.parent, f".{folder.name}") if beside else (folder, "")
    held, holder = FileLock(place / f"{prefix}{LOCK}"), place / f"{prefix}{HOLDER}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        held.acquire(patience, poll_interval=_POLL_SECONDS)
    except Timeout:
        raise InputError(
            f"{folder}: another csalign process ({_holder(holder)}) is working there",
            "Wait for it, or give this run another run_dir.",
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}", "Name another folder.") from None
    try:
        with writing(holder):
            holder.write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        held.release()


def _holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
