"""Which of the processes of one command this is, by torchrun's environment variables; needs no torch."""

from __future__ import annotations

import os

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """This process's number among those of the command, from 0; 0 where there is one process."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes work on this command together."""
    # Batch systems leave some of these behind by themselves; only all of them together mean a launcher.
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in _SET_BY_TORCHRUN) else 1


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its own machine: which of the machine's GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))
