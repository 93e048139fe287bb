"""Arrays in files, read a few rows at a time: numpy's own format, never unpickled, few files open at once."""

from __future__ import annotations

import io
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from tokenize import TokenError
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints

# Python's maps keep a file descriptor each, so that a process holds few of them beside the usual limit of 1,024 files;
# torch's keep none, but count as memory that might be written, so that they are for small files. Systems bound the
# number of all maps, too (Linux: 65,530).
_LARGE_MAPS, _SMALL_MAPS, _SMALL_BYTES = 64, 4096, 4 * 2**20
# What holds the header of all but odd files.
_HEAD_BYTES = 4096

Array: TypeAlias = npt.NDArray[Any]


class ArrayFile:
    """An array in a file from some offset on. The file is open while it is read, and while a large one is mapped.

    Safe to use from several threads: a map that is let go of stays valid for whoever holds it.
    """

    __slots__ = ("__weakref__", "_fortran", "_map", "_offset", "dtype", "path", "shape")

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, fortran: bool = False
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._offset, self._fortran = offset, fortran
        self._map: Array | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """How much memory the whole array would take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def _small(self) -> bool:
        return self.nbytes <= _SMALL_BYTES

    def mapped(self) -> Array:
        """The array, mapped and read-only."""
        found = self._map
        if found is None:
            whole = (_small_map if self._small else _map)(self.path, self._offset + self.nbytes)
            order: Literal["F", "C"] = "F" if self._fortran else "C"
            found = np.ndarray(self.shape, self.dtype, whole, self._offset, order=order)
            found.flags.writeable = False
            self._map = found
        (_SMALL if self._small else _LARGE).keep(self)
        return found

    def unmap(self) -> None:
        """Let go of the map; the next ``mapped`` makes another."""
        self._map = None

    def read_into(self, result: Array, start: int = 0) -> None:
        """Fill ``result`` (n, ...) with the rows from ``start`` on, cast to its type."""
        if self._fortran:
            result[...] = self.mapped()[start : start + len(result)]
            return
        same = result.dtype == self.dtype and result.flags.c_contiguous
        rows = result if same else np.empty(result.shape, self.dtype)
        wanted = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._offset + start * self.dtype.itemsize * math.prod(self.shape[1:]))
            while wanted:  # one read gives at most two gigabytes
                count = file.readinto(wanted)
                if not count:
                    raise InputError(f"{self.path}: was cut short while it was read")
                wanted = wanted[count:]
        if not same:
            result[...] = rows

    def take(self, rows: Ints | slice) -> Array:
        """Some rows as they are stored; a slice (of positive steps of one) is read without a map."""
        if not isinstance(rows, slice):
            return self.mapped()[rows]
        result = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        self.read_into(result, rows.start)
        return result


class _Recent:
    """The files whose maps are held, at most ``limit`` of them: which was used longest ago is let go of first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: WeakKeyDictionary[ArrayFile, None] = WeakKeyDictionary()  # the one used last at the end
        self._lock = Lock()

    def keep(self, file: ArrayFile) -> None:
        """Hold the map of a file that is used now."""
        with self._lock:
            self._files.pop(file, None)
            self._files[file] = None
            if len(self._files) > self._limit:
                oldest = next(iter(self._files))
                del self._files[oldest]
                oldest.unmap()


_LARGE, _SMALL = _Recent(_LARGE_MAPS), _Recent(_SMALL_MAPS)


def _map(path: Path, size: int) -> memoryview | mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


def _small_map(path: Path, size: int) -> memoryview | mmap.mmap:
    import torch  # takes a second, and what reads ranges alone goes without

    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy().data


def open_npy(path: Path) -> ArrayFile:
    """The array of an npy file, of which only the header is read.

    Raises InputError if it is no whole npy array of plain numbers.
    """
    try:
        with path.open("rb", buffering=0) as file:
            head, size = file.read(_HEAD_BYTES), file.seek(0, io.SEEK_END)
        width = 2 if head[6:7] == b"\x01" else 4
        offset = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
        shape, fortran, dtype = _header(head[:offset])
        array = ArrayFile(path, shape, dtype, offset, fortran)
        if (missing := offset + array.nbytes - size) > 0:
            raise ValueError(f"it is {counted(missing, 'bytes')} short")
    except (ValueError, OSError, EOFError, OverflowError, TokenError) as error:
        raise InputError(f"{path}: cannot be read as an npy array: {error}") from None
    return array


@lru_cache  # shards have equal headers, and Python literals are slow to read
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its version {version} is not one of plain numbers")
    if dtype.hasobject:
        raise ValueError(f"Python objects in dtype {dtype} are never unpickled")
    return shape, fortran, dtype


@dataclass(frozen=True)
class Piece:
    """What one part contributes to the rows taken: its ``rows`` go to the ``places`` of the result."""

    part: int
    places: slice | Ints
    rows: slice | Ints


class Concatenation:
    """Parts of the given lengths, their rows counted through from the first to the last."""

    def __init__(self, lengths: list[int]) -> None:
        self._ends: Ints = np.cumsum(lengths, dtype=np.int64)
        self._starts = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def pieces(self, rows: Ints) -> Iterator[Piece]:
        """Every part's share of some rows, in any order: slices where they are a range, else sorted within a part.

        Costs O(n log n) for n rows, whatever the number of parts. Raises IndexError if a row is out of range.
        """
        if not len(rows):
            return
        first, last = int(rows.min()), int(rows.max())
        if not 0 <= first <= last < len(self):
            raise IndexError(f"rows {first} to {last} wanted, but there are {len(self)}")
        if last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
            yield from self._of_range(first, last + 1)
            return
        if last < self._ends[part := self._part_of(first)]:
            yield Piece(part, slice(0, len(rows)), rows - self._starts[part])
            return
        order = np.argsort(rows)
        ordered = rows[order]
        part_of = np.searchsorted(self._ends, ordered, side="right")
        cuts = np.flatnonzero(np.diff(part_of, prepend=-1, append=len(self._ends)))
        for begin, end in pairwise(cuts):
            part = int(part_of[begin])
            yield Piece(part, order[begin:end], ordered[begin:end] - self._starts[part])

    def _of_range(self, first: int, stop: int) -> Iterator[Piece]:
        reached = first
        while reached < stop:
            part = self._part_of(reached)
            start, end = int(self._starts[part]), min(int(self._ends[part]), stop)
            yield Piece(part, slice(reached - first, end - first), slice(reached - start, end - start))
            reached = end

    def _part_of(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))
