"""Odd surroundings of a process: standard streams that are closed or written to by libraries, and locales that cannot
write every path."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TextIO

_ONE_AT_A_TIME = Lock()


def open_closed() -> None:
    """Open the null device where stdin, stdout or stderr is closed (`csalign run >&-`).

    Otherwise the next file that is opened takes its number, and whatever a library prints goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        stream: TextIO = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a caption that a terminal's encoding lacks is shown as escapes
            stream.reconfigure(errors="backslashreplace")


def use_utf8_paths() -> None:
    """Begin again in Python's UTF-8 mode where the locale's encoding is another one: a recipe may name any path.

    What is printed stays in the encoding of the terminal.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or sys.flags.ignore_environment:
        return
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what C++ libraries write to stdout, which carries our data, nowhere; one thread of the process at a time,
    since the last one to leave would put back what another had put there."""
    with _ONE_AT_A_TIME:
        sys.stdout.flush()
        kept = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)
