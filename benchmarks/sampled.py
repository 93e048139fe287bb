"""Where a csalign command's time goes: python benchmarks/sampled.py embed recipe.yaml --force

Looks at the main thread fifty times a second, and prints for each function and each imported module the seconds in
which it was being run, itself or what it called: those of at least 2% of the whole, the longest first.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY, _LEAST, _LINES = 0.02, 0.02, 60


def _names(frame: FrameType | None) -> set[str]:
    """The functions and modules that are being run, down to ``frame``, without what importing them takes in between."""
    found = set()
    while frame is not None:
        code = frame.f_code
        where = "/".join(Path(code.co_filename).parts[-3:])
        if "importlib" not in where and "<frozen" not in where:
            found.add(f"{code.co_qualname} ({where})")
        frame = frame.f_back
    return found


def main() -> None:
    """Run the command of this process's arguments; print to stderr where it spent its time."""
    seconds: Counter[str] = Counter()
    watched, done, began = threading.get_ident(), threading.Event(), time.perf_counter()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(_EVERY):
            now = time.perf_counter()
            for name in _names(sys._current_frames().get(watched)):
                seconds[name] += now - last  # type: ignore[assignment]
            last = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        from cs_aligner_cli.cli.main import main as command

        command()
    finally:
        done.set()
        watcher.join()
        whole = time.perf_counter() - began
        print(f"{whole:.2f} s", file=sys.stderr)
        for name, took in seconds.most_common(_LINES):
            if took >= _LEAST * whole:
                print(f"{took:7.2f}  {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
