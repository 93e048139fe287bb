"""Array files in numpy's own format, mapped rather than read, and never unpickled."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.errors import InputError


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Map an npy file, never unpickling; raise InputError if it is no whole npy array of plain numbers."""
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError, OverflowError, TokenError) as error:
        raise InputError(f"{path}: cannot be read as an npy array: {error}") from None
    return array
