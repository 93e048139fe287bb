"""What a process does that decodes pictures into memory it shares with its parent.

Each line of its input is a job in JSON, {"paths": [...], "crop": {...}}; it answers with an empty line once the crops
lie one after another from the start of the memory, or with {"path", "why"} of the first picture that is not whole.
"""

from __future__ import annotations

import json
import mmap
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cs_aligner_cli.data.crops import Crop
from cs_aligner_cli.data.images import BadImageError


def crop_all(paths: list[str], crop: Crop, memory: mmap.mmap) -> dict[str, str]:
    """Write the crops of some files; return what is wrong with the first that is no picture."""
    size = crop.height * crop.width * 3
    for number, path in enumerate(paths):
        try:
            pixels = crop.read(Path(path))
        except BadImageError as error:
            return {"path": path, "why": str(error)}
        memory[number * size : (number + 1) * size] = np.ascontiguousarray(pixels).data.cast("B")
    return {}


def main(descriptor: int, size: int) -> None:
    """Serve jobs until the parent closes this process's input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, too, and ends this process
    with mmap.mmap(descriptor, size) as memory:
        for line in sys.stdin:
            job: dict[str, Any] = json.loads(line)
            crop = Crop(**{**job["crop"], "resize": tuple(job["crop"]["resize"])})
            found = crop_all(job["paths"], crop, memory)
            sys.stdout.write((json.dumps(found) if found else "") + "\n")
            sys.stdout.flush()
