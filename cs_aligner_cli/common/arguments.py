"""What Python programs pass, checked at the door: InputError names the argument and what was given for it."""

from __future__ import annotations

import os
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short

from cs_aligner_cli.common.errors import InputError


def as_path(value: object, name: str) -> Path:
    """A path, given as text or as whatever ``open`` takes for one."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}: expected a path, got {short(value)}")
    return Path(value)


def as_whole(value: object, name: str, least: int | None = None) -> int:
    """A whole number, Python's or numpy's, of at least ``least``."""
    wanted = "a whole number" if least is None else f"a whole number of at least {least}"
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        raise InputError(f"{name}: expected {wanted}, got {short(value)}")
    return int(value)


def as_number(value: object, name: str, wanted: str = "a number") -> float:
    """A number, Python's or numpy's."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name}: expected {wanted}, got {short(value)}")
    return float(value)
