"""Feature files of other programs, memory-mapped: npy and safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.npy import ArrayFile, Concatenation, open_npy
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.images import digest

SUFFIXES = (".npy", ".safetensors")
# Formats that hold features by id, or ids beside them; see keyed_features.
KEYED = (".npz", ".pt", ".pth", ".parquet", ".h5", ".hdf5")
_BLOCK_ROWS, _BLOCK_VALUES = 8192, 2**24
_AXES = {2: "(rows, dimensions)", 3: "(rows, tokens, dimensions)"}
# numpy has no bfloat16: its bits are the upper half of a float32's.
_TENSOR_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class FeatureFile:
    """A (rows, d) floating-point array on disk, or (rows, L, d) of ``ndim`` 3, of which only wanted rows are read.

    Raises InputError if the file is missing, of an unknown format, damaged, empty, of other dimensions or
    not of a floating-point type.
    """

    def __init__(self, path: Path, tensor: str | None = None, ndim: int = 2) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path}: unknown feature format {path.suffix!r}; expected one of: {', '.join((*SUFFIXES, *KEYED))}"
            )
        self.path = path
        self._bfloat16 = False
        self._array = open_npy(path) if path.suffix.lower() == ".npy" else self._open_tensor(tensor)
        if not (np.issubdtype(self._array.dtype, np.floating) or self._bfloat16):
            raise InputError(f"{path}: expected floating-point features, found {self._array.dtype}")
        self.shape = self._array.shape
        if len(self.shape) != ndim or 0 in self.shape:
            raise InputError(f"{path}: expected features of shape {_AXES[ndim]}, found {self.shape}")

    def read(self, rows: Ints | slice) -> npt.NDArray[np.float32]:
        """Some rows in the given order, as float32 (len(rows), ...); too large values become infinite."""
        return self._widened(self._array.take(rows))

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All rows in order, a block at a time."""
        size = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], size):
            yield self.read(slice(start, min(start + size, self.shape[0])))

    def _widened(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if self._bfloat16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def _open_tensor(self, tensor: str | None) -> ArrayFile:
        """One tensor where it lies; safetensors checks the file, but would read the tensor whole."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                names = sorted(file.keys())
                name = tensor or (names[0] if len(names) == 1 else None)
                if name is None:
                    listed = ", ".join(names) or "none"
                    raise InputError(f"{self.path}: name one of its tensors with the manifest's key tensor: {listed}")
                if name not in names:
                    raise InputError(f"{self.path}: holds no tensor {name!r}{did_you_mean(name, names)}")
                entry = file.get_slice(name)
                shape, dtype, offset = (
                    tuple(entry.get_shape()),
                    entry.get_dtype(),
                    _tensor_offset(self.path, name),
                )
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: cannot be read as safetensors: {error}") from None
        if dtype not in _TENSOR_TYPES:
            raise InputError(f"{self.path}: expected floating-point features, found {dtype}")
        self._bfloat16 = dtype == "BF16"
        return ArrayFile(self.path, shape, np.dtype(_TENSOR_TYPES[dtype]), offset)


class FeatureParts:
    """Feature files one after the other as one (rows, d) array; InputError if they differ in dimensions."""

    def __init__(self, paths: Sequence[Path], tensor: str | None = None) -> None:
        self.parts = [FeatureFile(path, tensor) for path in paths]
        first = self.parts[0]
        for part in self.parts:
            if part.shape[1] != first.shape[1]:
                raise InputError(f"{part.path}: has {part.shape[1]} dimensions, but {first.path} has {first.shape[1]}")
        self._order = Concatenation([part.shape[0] for part in self.parts])
        self.shape: tuple[int, int] = (len(self._order), first.shape[1])
        self.name = first.path.name if len(self.parts) == 1 else f"{first.path.name} and {len(self.parts) - 1} more"

    def read(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Some rows in the given order, as float32 (len(rows), d)."""
        if len(self.parts) == 1:
            return self.parts[0].read(rows)
        result = np.empty((len(rows), self.shape[1]), np.float32)
        for piece in self._order.pieces(rows):
            result[piece.places] = self.parts[piece.part].read(piece.rows)
        return result


def checked_rows(file: FeatureFile, with_digests: bool, advance: Callable[..., None]) -> list[int]:
    """See that all rows are finite; return their digests where asked."""
    digests: list[int] = []
    row = 0
    for block in file.blocks():
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise InputError(f"{file.path}: row {row + finite.argmin()} (counted from 0) holds NaN or infinity")
        if (zero := ~block.any(axis=1)).any():
            raise InputError(
                f"{file.path}: row {row + zero.argmax()} (counted from 0) is all zeros, and so has no direction",
                "Leave the item out of its table, or put right what made its features.",
            )
        if with_digests:
            digests += [digest(values.tobytes()) for values in block]
        row += len(block)
        advance(len(block))
    return digests


def _tensor_offset(path: Path, name: str) -> int:
    """Where a tensor's bytes begin: after 8 bytes with the header's length and the header (JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return 8 + length + int(header[name]["data_offsets"][0])
