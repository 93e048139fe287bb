"""A tile of the score matrix: the product, the maxima of its blocks, and what is asked of all of it.

On the CPU the counting is done in numpy, strip by strip, elsewhere in torch; both give the same answers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.scores import Scores, exact_tile

# The columns are a multiple of 1024 and a strip is no more than 255 rows, see _packed_count; a strip of float32 scores
# (512 kB) stays in a core's cache, a tile (16 MB) in a large shared one.
TILE_ROWS, TILE_COLUMNS, _STRIP = 1024, 4096, 32
# Items whose maximum decides whether any of them is looked at.
BLOCK = 32


class TorchTools:
    """What all tiles share, and the two questions that are asked of a tile, in torch on any device."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.device = device
        self.rows = min(TILE_ROWS, rows)
        self.columns = min(TILE_COLUMNS, -(-columns // 1024) * 1024)
        self.scores = torch.empty(self.rows * self.columns, device=device)

    def count_above(self, scores: Tensor, limits: Scores, axis: int) -> Ints:
        """How many of the scores (B, C) along ``axis`` lie above each limit (T, places on the other axis)."""
        given = torch.from_numpy(limits).to(self.device).unsqueeze(axis + 1)
        return np.stack([(scores > limit).sum(dim=axis).cpu().numpy() for limit in given])

    def where_above(self, scores: Tensor, limits: Scores, axis: int) -> tuple[Ints, Ints]:
        """The rows and columns of the scores (B, C) that lie above the limit of their place on the other axis."""
        rows, columns = (scores > torch.from_numpy(limits).to(self.device).unsqueeze(axis)).nonzero(as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy()


class _NumpyTools(TorchTools):
    """The same on the CPU: numpy's comparison is two to three times as fast as torch's, its flags are counted eight
    at a time, and all limits are asked of a strip of the tile while it is in a core's own cache."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        super().__init__(rows, columns, device)
        self.pool = ThreadPoolExecutor(torch.get_num_threads())

    def count_above(self, scores: Tensor, limits: Scores, axis: int) -> Ints:
        height, width = scores.shape
        whole, given = scores.numpy(), limits[:, :, None] if axis == 1 else limits[:, None]

        def count(part: slice) -> Ints:
            flags = np.zeros((_STRIP, self.columns), bool)
            inside = flags[: part.stop - part.start, :width]
            found = np.empty((len(given), _STRIP if axis == 1 else self.columns), np.int64)
            for i, limit in enumerate(given):
                np.greater(whole[part], limit[part] if axis == 1 else limit, out=inside)
                found[i] = _packed_count(flags, axis)
            return found

        found = list(self.pool.map(count, slices(height, _STRIP)))
        if axis == 1:
            return np.concatenate(found, axis=1)[:, :height]
        counts: Ints = np.stack(found).sum(axis=0)
        return counts[:, :width]

    def where_above(self, scores: Tensor, limits: Scores, axis: int) -> tuple[Ints, Ints]:
        whole, given = scores.numpy(), np.expand_dims(limits, axis)

        def where(part: slice) -> tuple[Ints, Ints]:
            above = whole[part] > (given[part] if axis == 1 else given)
            rows, columns = np.divmod(np.flatnonzero(above), above.shape[1])
            return rows + part.start, columns

        found = list(self.pool.map(where, slices(len(whole), _STRIP)))
        return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])


_TOOLS: dict[str, type[TorchTools]] = {"cpu": _NumpyTools}


def _packed_count(flags: np.ndarray[tuple[int, int], np.dtype[np.bool_]], axis: int) -> Ints:
    """The sums of flags (B, C) along an axis: eight flags are added as one integer, too few times for a carry."""
    lanes = flags.view(np.int64)
    if axis == 0:
        return np.asarray(lanes.sum(axis=0).view(np.uint8), np.int64)
    bytes_ = lanes.reshape(len(flags), -1, 128).sum(axis=2).view(np.uint8)
    return np.asarray(bytes_.sum(axis=1), np.int64)


class Tile:
    """The scores of some rows of x with some rows of y."""

    def __init__(self, tools: TorchTools, left: Tensor, right: Tensor, rows: slice, columns: slice) -> None:
        self.tools, self.left, self.right, self.slices = tools, left, right, (rows, columns)
        self.scores = tools.scores[: len(left) * len(right)].view(len(left), len(right))
        torch.mm(left, right.T, out=self.scores)
        self._maxima: dict[int, Scores] = {}
        self._padded: dict[int, Tensor] = {}

    @cached_property
    def exact(self) -> Tensor:
        """The scores as the rule has them, where float32 is too coarse for most."""
        return exact_tile(self.left.cpu(), self.right.cpu())

    def maxima(self, axis: int) -> Scores:
        """The largest score of every query with every block of items, (queries, blocks); items lie along ``axis``."""
        if axis not in self._maxima:
            largest = self._blocks(axis).amax(dim=2 if axis == 1 else 1).cpu().numpy()
            self._maxima[axis] = largest if axis == 1 else largest.T
        return self._maxima[axis]

    def values_of(self, axis: int, query: Ints, block: Ints) -> Scores:
        """The scores (n, items of a block) of some queries with a block of items each; -inf beyond the last item."""
        places = torch.from_numpy(query).to(self.scores.device), torch.from_numpy(block).to(self.scores.device)
        blocks = self._blocks(axis)
        values = blocks[places] if axis == 1 else blocks[places[1], :, places[0]]
        return np.asarray(values.cpu().numpy(), np.float32)

    def _blocks(self, axis: int) -> Tensor:
        """The scores with ``axis`` cut into blocks; the last tile of a row or column may need padding for that."""
        short = -self.scores.shape[axis] % BLOCK
        if short and axis not in self._padded:
            sides = (0, short) if axis == 1 else (0, 0, 0, short)
            self._padded[axis] = torch.nn.functional.pad(self.scores, sides, value=-torch.inf)
        whole = self._padded.get(axis, self.scores)
        return whole.view(len(whole), -1, BLOCK) if axis == 1 else whole.view(-1, BLOCK, whole.shape[1])


def tools_for(rows: int, columns: int, device: str) -> TorchTools:
    """The tools for a score matrix (rows, columns) on a device."""
    place = torch.device(device)
    return _TOOLS.get(place.type, TorchTools)(rows, columns, place)


def slices(total: int, step: int) -> list[slice]:
    """Cut ``total`` rows into slices of at most ``step``."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
