"""Feature files of other programs, memory-mapped: npy and safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from cs_aligner_cli.errors import InputError, did_you_mean

_BLOCK_ROWS = 8192


class FeatureFile:
    """A (rows, d) floating-point array on disk, read a few rows at a time.

    Raises InputError if the file is missing, of an unknown format, not two-dimensional or not of a floating-point type.
    """

    def __init__(self, path: Path, tensor: str | None = None) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.suffix not in (".npy", ".safetensors"):
            raise InputError(f"{path}: unknown feature format {path.suffix!r}; expected .npy or .safetensors")
        self.path = path
        self._array: Any = _map_npy(path) if path.suffix == ".npy" else _open_tensor(path, tensor)
        self.shape = tuple(self._array.shape if path.suffix == ".npy" else self._array.get_shape())
        if len(self.shape) != 2:
            raise InputError(f"{path}: expected features of shape (rows, dimensions), found shape {self.shape}")
        if not np.issubdtype(self.read(np.arange(1)).dtype, np.floating):
            raise InputError(f"{path}: expected floating-point features")

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        """The rows asked for, in that order; (len(rows), d), float32 or as stored."""
        if isinstance(self._array, np.ndarray):
            return np.asarray(self._array[rows])
        low, high = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        block = self._array[low:high]
        # numpy has no bfloat16, so that every floating-point tensor is widened.
        return np.asarray((block.float() if block.is_floating_point() else block).numpy()[rows - low])

    def blocks(self) -> Iterator[npt.NDArray[np.floating[Any]]]:
        """All rows in order, a block at a time."""
        for start in range(0, self.shape[0], _BLOCK_ROWS):
            yield self.read(np.arange(start, min(start + _BLOCK_ROWS, self.shape[0])))


def _map_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as an npy array: {error}") from None
    return array


def _open_tensor(path: Path, tensor: str | None) -> Any:
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from None
    names = list(file.keys())
    name = tensor or (names[0] if len(names) == 1 else None)
    if name is None:
        raise InputError(f"{path}: holds several tensors; name one with `tensor`: {', '.join(sorted(names))}")
    if name not in names:
        raise InputError(f"{path}: holds no tensor {name!r}{did_you_mean(name, names)}")
    return file.get_slice(name)
