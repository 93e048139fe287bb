"""The tiles that sums over all pairs of rows are taken over: their sizes, their products, their buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

# Tiles that stay in a processor's caches; a GPU wants fewer and larger ones.
_TILE = {"cpu": (512, 2048)}
_LARGE_TILE = (4096, 8192)
# Products that Dots keeps for its second iteration: a constant, so memory stays linear in the rows.
_KEPT_BYTES = 224 * 2**20

# TF32 is CUDA's, elsewhere float32. Weights reach far below float16's smallest number: there they are bfloat16.
Products: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16"]
# Below it a logit scale leaves too little of itself in float32 weights to divide them by it.
SMALLEST_SCALE = 1e-20
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TiledRows:
    """Rows (N, d) made ready for tiles: half their squared norms, and copies in the type that products are taken in."""

    def __init__(self, x: Tensor, products: Products) -> None:
        self.x, self.products = x, products
        self.half_squares = x.square().sum(dim=1) / 2
        self._factor = x.to(_TYPES.get(products, x.dtype))
        self._pulled = self._factor.bfloat16() if products == "fp16" else self._factor

    def __len__(self) -> int:
        return len(self.x)

    def dots(self, i: slice, other: TiledRows, j: slice, out: Tensor | None = None) -> Tensor:
        """``x_i . y_j`` as a tile, written into ``out`` where that is given."""
        left, right = self._factor[i], other._factor[j].T
        if left.dtype == self.x.dtype:
            return torch.mm(left, right, out=out) if out is not None else left @ right
        product = (left @ right).to(self.x.dtype)
        return product if out is None else out.copy_(product)

    def add_weighted(self, weights: Tensor, i: slice, into: Tensor) -> None:
        """``into += weights @ x_i`` for a tile of weights."""
        if self._pulled.dtype == self.x.dtype:
            into.addmm_(weights, self._pulled[i])
        else:
            into.add_(weights.to(self._pulled.dtype) @ self._pulled[i])


def nearness(x: TiledRows, i: slice, y: TiledRows, j: slice, dots: Tensor, scale: float, out: Tensor) -> Tensor:
    """``-scale ||x_i - y_j||^2 / 2`` from the dot products of a tile; up to rounding never above 0."""
    rows, columns = x.half_squares[i].unsqueeze(1) * -scale, y.half_squares[j] * scale
    return torch.add(rows, dots, alpha=scale, out=out).sub_(columns)


class Scratch:
    """One buffer for tiles of changing shape: memory that is allocated anew for every tile costs more than its use."""

    def __init__(self, x: Tensor, rows: int, columns: int) -> None:
        self._buffer = x.new_empty(rows * columns)

    def like(self, i: slice, j: slice) -> Tensor:
        """The buffer in the shape of the tile (i, j)."""
        shape = (i.stop - i.start, j.stop - j.start)
        return self._buffer[: shape[0] * shape[1]].view(shape)


def tile_of(x: TiledRows, size: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a cloud with another of ``size`` rows."""
    rows, columns = _TILE.get(x.x.device.type, _LARGE_TILE)
    return min(rows, len(x)), min(columns, size)


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """[start, stop) in parts of ``size``, the last one what is left."""
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))


def all_tiles(size: int, other: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that cover every pair of ``size`` rows with ``other`` ones."""
    for i in slices(0, size, rows):
        for j in slices(0, other, columns):
            yield i, j


def upper_tiles(size: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that cover every unordered pair once: the square ones on the diagonal, then what lies to their right."""
    for i in slices(0, size, rows):
        yield i, i
        for j in slices(i.stop, size, columns):
            yield i, j


def tiles(x: TiledRows, y: TiledRows, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every tile (i, j) of two clouds with its nearness, which may be used up: the next tile overwrites it."""
    rows, columns = tile_of(x, len(y))
    scratch = Scratch(x.x, rows, columns)
    for i, j in all_tiles(len(x), len(y), rows, columns):
        dots = x.dots(i, y, j, out=scratch.like(i, j))
        yield i, j, nearness(x, i, y, j, dots, scale, out=dots)


class Dots:
    """The tiles (i, j, x_i . y_j) of one cloud with others; what fits into a fixed budget is kept for a second time."""

    def __init__(self, x: TiledRows, keep: bool) -> None:
        self._x = x
        self._kept: dict[tuple[int, int, int], Tensor] = {}
        self._budget = _KEPT_BYTES if keep else 0

    def tiles(self, y: TiledRows, number: int = 0) -> Iterator[tuple[slice, slice, Tensor]]:
        """The tiles with the cloud of that number, which the next tile overwrites."""
        rows, columns = tile_of(self._x, len(y))
        scratch = Scratch(self._x.x, rows, columns)
        for i, j in all_tiles(len(self._x), len(y), rows, columns):
            yield i, j, self._tile(i, y, j, number, scratch)

    def _tile(self, i: slice, y: TiledRows, j: slice, number: int, scratch: Scratch) -> Tensor:
        place = (number, i.start, j.start)
        if place in self._kept:
            return self._kept[place]
        tile = scratch.like(i, j)
        if tile.nbytes > self._budget:
            return self._x.dots(i, y, j, out=tile)
        self._budget -= tile.nbytes
        self._kept[place] = self._x.dots(i, y, j)
        return self._kept[place]


def hide_same_group(tile: Tensor, groups: Tensor | None, i: slice, j: slice) -> Tensor:
    """Set the pairs i != j of one group to -inf in a tile of logits, in place; None: there are no groups."""
    if groups is None:
        return tile
    same = groups[i].unsqueeze(1) == groups[j]
    first = max(i.start, j.start)
    if first < min(i.stop, j.stop):  # the pairs (i, i) themselves stay
        same[first - i.start :, first - j.start :].fill_diagonal_(False)
    return tile.masked_fill_(same, -math.inf)
