"""Processes that decode pictures beside an encoder: each into memory of its own that it shares with this one."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data import decode_worker
from cs_aligner_cli.data.crops import Crop
from cs_aligner_cli.data.images import BadImageError

Pixels = npt.NDArray[np.uint8]
# Pictures per job: enough that a message costs nothing beside it, few enough that no process waits long for the last.
_JOB = 16
# What a process writes to: the crops of a job, of encoders that see up to 512 x 512 pixels; of larger ones fewer a job.
# Memory that nothing is written to is not taken.
_MEMORY = _JOB * 512 * 512 * 3
# What a process ends after when its input is closed; it is at most in the middle of a job.
_PATIENCE = 10


class BadPictureError(BadImageError):
    """A picture that is not whole, and its path."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path


def can_share() -> bool:
    """Whether this system gives processes memory by descriptor alone (Linux): /dev/shm is small in containers."""
    return hasattr(os, "memfd_create")


class _Worker:
    """One process, and the memory that it writes crops to."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("csalign-decode")
        try:
            os.ftruncate(descriptor, _MEMORY)
            self.memory = mmap.mmap(descriptor, _MEMORY)
            # It imports from where this process does: -P leaves the current folder out, whose json.py is data. What is
            # no text, as a Path that a program put there, Python passes over.
            places = [place for place in sys.path if isinstance(place, str)]
            program = f"import sys; sys.path[:] = {places!r}; from {decode_worker.__name__} import main"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{program}; main({descriptor}, {_MEMORY})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[descriptor],
            )
        finally:
            os.close(descriptor)

    def crop(self, paths: Sequence[str], crop: Crop, into: Pixels) -> None:
        """Fill ``into`` (len(paths), height, width, 3)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"paths": list(paths), "crop": asdict(crop)}) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait(_PATIENCE)
            raise InputError(
                f"a process that decodes photos ended with code {code}; was it killed for want of memory?",
                "A smaller embed.decoders takes less; with 0 threads of this process decode.",
            )
        if answer != "\n":
            found = json.loads(answer)
            raise BadPictureError(found["path"], found["why"])
        into[...] = np.frombuffer(self.memory, np.uint8, into.size).reshape(into.shape)

    def close(self) -> None:
        """End the process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with suppress(BrokenPipeError):
            stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()


class DecodePool:
    """``count`` processes that crop pictures, for any number of threads that ask. They end with the pool."""

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count, "decode")
        self._workers = [_Worker() for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)
        self._finalize = weakref.finalize(self, _end, self._threads, self._workers)

    def read(self, paths: Sequence[Path], crop: Crop, into: Pixels) -> None:
        """Fill ``into`` (len(paths), height, width, 3); raise BadPictureError for the first picture that is not whole.

        Jobs of several callers go to whichever process is idle, in the order in which they came.
        """
        size = min(_JOB, _MEMORY // (crop.height * crop.width * 3))
        jobs = [
            self._threads.submit(self._crop, [str(path) for path in paths[i : i + size]], crop, into[i : i + size])
            for i in range(0, len(paths), size)
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()

    def close(self) -> None:
        """End the processes; nothing can be read after it."""
        self._finalize()

    def _crop(self, paths: list[str], crop: Crop, into: Pixels) -> None:
        with self._worker() as worker:
            worker.crop(paths, crop, into)

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)


def _end(threads: ThreadPoolExecutor, workers: Sequence[_Worker]) -> None:
    threads.shutdown(cancel_futures=True)
    for worker in workers:
        worker.close()
