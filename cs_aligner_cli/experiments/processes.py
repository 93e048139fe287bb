"""Several processes of one machine that do one thing together: they divide the cores, and have a GPU each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cs_aligner_cli.common.cores import usable_cores
from cs_aligner_cli.common.errors import InputError

_POLL_SECONDS = 0.5


def side_by_side(
    jobs: int, target: Callable[..., None], arguments: tuple[Any, ...], poll: Callable[[], bool] = lambda: False
) -> None:
    """Call ``target(*arguments)`` in ``jobs`` processes, and wait for all of them.

    ``poll`` is called now and then and at the end; it says whether the work is at its end, whatever became of the
    processes. Raises InputError if one of them died and it is not.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, usable_cores() // jobs)
    workers = []
    for number in range(jobs):
        # A child reads its environment when it starts, and torch its threads from there.
        with _environment({"OMP_NUM_THREADS": str(threads), **_one_gpu(number)}):
            worker = context.Process(target=target, args=arguments, daemon=True)
            worker.start()
        workers.append(worker)
    try:
        while any(worker.is_alive() for worker in workers):
            poll()
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    if not poll() and any(worker.exitcode not in (0, -15) for worker in workers):
        raise InputError(
            f"a process of the sweep ended early (exit codes {dict(Counter(w.exitcode for w in workers))})",
            "The same command goes on with the runs that are left; --jobs 1 shows what is wrong.",
        )


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    former = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in former.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


def _one_gpu(number: int) -> dict[str, str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [part for part in given.split(",") if part]
    else:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}
