"""Rows read block by block, from an array or from a store on disk, so that no second copy of them is ever held."""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeGuard, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, in_range, l2_normalize, refuse_not_finite
from cs_aligner_cli.common.types import Ints

_CHECKED = 8192


@runtime_checkable
class Shards(Protocol):
    """What a store on disk offers: its shape, and any of its rows as float32."""

    shape: tuple[int, int]

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """The rows asked for, (len(rows), d)."""
        ...


RowsLike: TypeAlias = "ArrayLike | Shards | Rows"


def is_stored(rows: ArrayLike | Shards) -> TypeGuard[Shards]:
    """Whether rows are a store's, and no array: arrays, and tables of pandas, have a shape and can take rows, too."""
    return isinstance(rows, Shards) and not hasattr(rows, "__array__")


class Rows:
    """(N, d) rows as finite float32 on the CPU, scaled to unit L2 norm unless ``normalize`` is off.

    ``array`` is a floating-point numpy array or torch tensor, or a store's array (``Shards``); it is read when rows
    are taken, and never copied whole. Raises InputError if it is empty or of another form, or if a row is not finite
    as float32.
    """

    def __init__(self, array: ArrayLike | Shards, name: str, normalize: bool = True) -> None:
        if not is_stored(array):
            array = as_rows(cast(ArrayLike, array), name).detach()
        self._array = array
        self._normalize = normalize
        self.count, self.dim = (int(n) for n in self._array.shape)
        longest, self._any_outside = 0.0, False
        for start in range(0, self.count, _CHECKED):
            raw = self._raw(slice(start, start + _CHECKED))
            block = raw.float()
            refuse_not_finite(block, name, start)
            self._any_outside = self._any_outside or (normalize and in_range(raw) is not raw)
            longest = max(longest, float(torch.linalg.vector_norm(block, dim=1).max()))
        # Normalised rows may be a rounding error longer than 1, a zero row stays zero.
        self.longest = 1.0001 if normalize else longest

    def __len__(self) -> int:
        return self.count

    def take(self, rows: slice | Ints) -> Tensor:
        """Rows as a float32 (n, d) tensor."""
        block = self._raw(rows)
        if self._normalize:
            block = l2_normalize(in_range(block) if self._any_outside else block)
        return block.float()

    def all(self) -> Tensor:
        """All rows: the one place where a whole copy is made."""
        return self.take(slice(0, self.count))

    def _raw(self, rows: slice | Ints) -> Tensor:
        if isinstance(self._array, Tensor):
            return self._array[rows if isinstance(rows, slice) else torch.from_numpy(rows)].cpu()
        ids = np.arange(self.count)[rows] if isinstance(rows, slice) else rows
        return torch.from_numpy(self._array.take(ids))


class Part(Rows):
    """Some rows of others, by their numbers (n,)."""

    def __init__(self, rows: Rows, numbers: Ints) -> None:
        self._of, self._numbers = rows, numbers
        self.count, self.dim, self.longest = len(numbers), rows.dim, rows.longest

    def take(self, rows: slice | Ints) -> Tensor:
        """Rows as a float32 (n, d) tensor."""
        return self._of.take(self._numbers[rows])


def as_searched(array: RowsLike, name: str) -> Rows:
    """``array`` as unit rows; Rows stay as they are."""
    return array if isinstance(array, Rows) else Rows(array, name)
