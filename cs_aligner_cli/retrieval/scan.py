"""One exact pass over all scores of two sets of rows, tile by tile: ranks of the true pairs, and the k best, both ways.

Every tile of the score matrix is a float32 matrix product that serves both directions and is then forgotten. What
float32 cannot tell apart, within its rounding bound, is scored again in float64; so the results are those of the rule
in ``scores``, whatever the tiles, the threads and the device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.errors import InputError
from cs_aligner_cli.retrieval.rows import Ints, Part, Rows
from cs_aligner_cli.retrieval.scores import (
    MARGIN,
    Scores,
    exact_tile,
    pair_scores,
    query_blocks,
    rounding_bound,
    settle,
)

# The columns are a multiple of 1024 and a strip is no more than 255 rows, see _packed_count; a strip of float32 scores
# (512 kB) stays in a core's cache, a tile (16 MB) in a large shared one.
_TILE_ROWS, _TILE_COLUMNS, _STRIP = 1024, 4096, 32
# Items whose maximum decides whether any of them is looked at; where more than this share of blocks must be, all are.
_BLOCK, _SPARSE_SHARE = 32, 1 / 16
# More near-ties than this share of a tile (collapsed embeddings) are scored as a whole, not one by one.
_DENSE_SHARE = 1 / 256


@dataclass(frozen=True, eq=False)
class Pairs:
    """True pairs of one direction: ``query`` and ``item`` (P,) int64, sorted by query, then item."""

    query: Ints
    item: Ints

    @classmethod
    def of(cls, query: Ints, item: Ints) -> Pairs:
        """Pairs in any order."""
        order = np.lexsort((item, query))
        return cls(query[order].astype(np.int64), item[order].astype(np.int64))

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True, eq=False)
class Found:
    """What a pass found in one direction.

    ``ranks`` (P,) int64: the place of each true pair's item in the order of all items, 1 for the top; ``scores`` (P,)
    float32; ``top_ids`` (Q, k) int64: the best items of every query, in order; ``gallery``: how many items there are.
    """

    pairs: Pairs
    ranks: Ints
    scores: Scores
    top_ids: Ints
    gallery: int


def scan(
    x: Rows,
    y: Rows,
    x_to_y: Pairs | None,
    y_to_x: Pairs | None,
    k: int = 0,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[Found | None, Found | None]:
    """Score every row of x (M, d) with every row of y (N, d); return what was found from x to y and from y to x.

    A direction whose pairs are None is not looked at. ``k`` is how many best items are listed per query (at most the
    items there are; 0: none). ``device`` is where the products are computed. ``advance`` is told how many rows of x
    are done. Raises InputError if the dimensions differ, or where inner products would overflow float32.
    """
    if x.dim != y.dim:
        raise InputError(f"image and text rows differ in dimension: {x.dim} against {y.dim}")
    ways = [
        _Way(x, y, x_to_y, min(k, len(y)), 1) if x_to_y is not None else None,
        _Way(y, x, y_to_x, min(k, len(x)), 0) if y_to_x is not None else None,
    ]
    place = torch.device(device)
    tools = _TOOLS.get(place.type, _TorchTools)(len(x), len(y), place)
    for rows in _slices(len(x), tools.rows):
        left = x.take(rows).to(tools.device)
        for columns in _slices(len(y), tools.columns):
            tile = _Tile(tools, left, y.take(columns).to(tools.device), rows, columns)
            for way in ways:
                if way is not None:
                    way.see(tile)
        advance(len(left))
    forth, back = (None if way is None else way.found() for way in ways)
    return forth, back


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class _TorchTools:
    """What all tiles share, and the two questions that are asked of a tile, in torch on any device."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.device = device
        self.rows = min(_TILE_ROWS, rows)
        self.columns = min(_TILE_COLUMNS, -(-columns // 1024) * 1024)
        self.scores = torch.empty(self.rows * self.columns, device=device)

    def count_above(self, scores: Tensor, limits: Scores, axis: int) -> Ints:
        """How many of the scores (B, C) along ``axis`` lie above each limit (T, places on the other axis)."""
        given = torch.from_numpy(limits).to(self.device).unsqueeze(axis + 1)
        return np.stack([(scores > limit).sum(dim=axis).cpu().numpy() for limit in given])

    def where_above(self, scores: Tensor, limits: Scores, axis: int) -> tuple[Ints, Ints]:
        """The rows and columns of the scores (B, C) that lie above the limit of their place on the other axis."""
        rows, columns = (scores > torch.from_numpy(limits).to(self.device).unsqueeze(axis)).nonzero(as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy()


class _NumpyTools(_TorchTools):
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

        found = list(self.pool.map(count, _slices(height, _STRIP)))
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

        found = list(self.pool.map(where, _slices(len(whole), _STRIP)))
        return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])


_TOOLS: dict[str, type[_TorchTools]] = {"cpu": _NumpyTools}


def _packed_count(flags: np.ndarray[tuple[int, int], np.dtype[np.bool_]], axis: int) -> Ints:
    """The sums of flags (B, C) along an axis: eight flags are added as one integer, too few times for a carry."""
    lanes = flags.view(np.int64)
    if axis == 0:
        return np.asarray(lanes.sum(axis=0).view(np.uint8), np.int64)
    bytes_ = lanes.reshape(len(flags), -1, 128).sum(axis=2).view(np.uint8)
    return np.asarray(bytes_.sum(axis=1), np.int64)


class _Tile:
    """The scores of some rows of x with some rows of y."""

    def __init__(self, tools: _TorchTools, left: Tensor, right: Tensor, rows: slice, columns: slice) -> None:
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
        short = -self.scores.shape[axis] % _BLOCK
        if short and axis not in self._padded:
            sides = (0, short) if axis == 1 else (0, 0, 0, short)
            self._padded[axis] = torch.nn.functional.pad(self.scores, sides, value=-torch.inf)
        whole = self._padded.get(axis, self.scores)
        return whole.view(len(whole), -1, _BLOCK) if axis == 1 else whole.view(-1, _BLOCK, whole.shape[1])


class _Way:
    """One direction of the pass: per query how many items come before each true one, and its best items so far.

    ``axis`` is the one of a tile along which this direction's items lie: 1 from x to y, 0 from y to x.
    """

    def __init__(self, queries: Rows, items: Rows, pairs: Pairs, k: int, axis: int) -> None:
        self.queries, self.items, self.pairs, self.k, self.axis = queries, items, pairs, k, axis
        self.scores = pair_scores(queries, items, pairs.query, pairs.item)
        first = np.searchsorted(pairs.query, pairs.query)  # pairs are sorted by query
        slot = np.arange(len(pairs)) - first
        self.before = np.zeros(len(pairs), np.int64)
        # Slot s holds the s-th true pair of every query, -1 where it has fewer.
        self.slots = np.full((int(slot.max(initial=-1)) + 1, len(queries)), -1, np.int64)
        self.slots[slot, pairs.query] = np.arange(len(pairs))
        self.bound = rounding_bound(queries.longest, items.longest, items.dim)
        self.listed = min(k + MARGIN, len(items)) if k else 0
        self.best = np.full((len(queries), self.listed), -np.inf, np.float32)
        self.best_ids = np.full((len(queries), self.listed), -1, np.int64)

    def see(self, tile: _Tile) -> None:
        mine, other = tile.slices if self.axis == 1 else tile.slices[::-1]
        slots = self.slots[:, mine]
        slots = slots[(slots >= 0).any(axis=1)]
        if len(slots):
            self._count(tile, slots, mine.start, other)
        if self.listed:
            self._keep_best(tile, mine, other.start)

    def _count(self, tile: _Tile, slots: Ints, query0: int, other: slice) -> None:
        """Add to ``before`` the items of the tile that come before the true items (slots, queries) of the queries.

        Few items of a tile reach the true scores of a good model: most blocks are dismissed by their maximum.
        """
        there, true_items = slots >= 0, self.pairs.item[slots]
        true_scores = np.where(there, self.scores[slots], np.inf).astype(np.float32)
        low, high = true_scores - self.bound, true_scores + self.bound
        maxima = tile.maxima(self.axis)
        reached = [np.nonzero(maxima > limit[:, None]) for limit in low]
        if sum(len(query) for query, _ in reached) > _SPARSE_SHARE * maxima.size * len(slots):
            self._count_all(tile, slots, true_items, true_scores, query0, other)
            return
        for slot, (query, block), least, most in zip(slots, reached, low, high, strict=True):
            values = tile.values_of(self.axis, query, block)
            np.add.at(self.before, slot[query], (values > most[query, None]).sum(axis=1))
            which, offset = np.nonzero((values > least[query, None]) & (values <= most[query, None]))
            self._break_ties(slot[query[which]], query[which] + query0, block[which] * _BLOCK + offset + other.start)

    def _count_all(
        self, tile: _Tile, slots: Ints, true_items: Ints, true_scores: Scores, query0: int, other: slice
    ) -> None:
        there, low, high = slots >= 0, true_scores - self.bound, true_scores + self.bound
        counts = tile.tools.count_above(tile.scores, np.concatenate([high, low]), self.axis)
        above, near = counts[: len(slots)], counts[len(slots) :] - counts[: len(slots)]
        near -= there & (true_items >= other.start) & (true_items < other.stop)  # the true item itself
        if near.sum() > _DENSE_SHARE * tile.scores.numel():
            above = self._count_exactly(tile, true_items, true_scores, other)
            near[:] = 0
        self.before[slots[there]] += above[there]
        turned = self._turned(tile.scores)
        for i in np.flatnonzero(near.any(axis=1)):
            chosen = np.flatnonzero(near[i])
            few = turned[torch.from_numpy(chosen).to(turned.device)].cpu().numpy()
            which, item = np.nonzero((few > low[i, chosen, None]) & (few <= high[i, chosen, None]))
            self._break_ties(slots[i, chosen[which]], chosen[which] + query0, item + other.start)

    def _break_ties(self, pair: Ints, query: Ints, item: Ints) -> None:
        """Score what float32 cannot tell from the true item of a pair, and count what comes before it."""
        others = item != self.pairs.item[pair]
        pair, query, item = pair[others], query[others], item[others]
        scores, limit = pair_scores(self.queries, self.items, query, item), self.scores[pair]
        wins = (scores > limit) | ((scores == limit) & (item < self.pairs.item[pair]))
        np.add.at(self.before, pair[wins], 1)

    def _count_exactly(self, tile: _Tile, true_items: Ints, true_scores: Scores, other: slice) -> Ints:
        exact, ids = self._turned(tile.exact), torch.arange(other.start, other.stop)
        counts = []
        for limit, item in zip(torch.from_numpy(true_scores), torch.from_numpy(true_items), strict=True):
            first = (exact == limit[:, None]) & (ids < item[:, None])
            counts.append(((exact > limit[:, None]) | first).sum(dim=1).numpy())
        return np.stack(counts)

    def _turned(self, scores: Tensor) -> Tensor:
        """A tile with this direction's queries as rows."""
        return scores if self.axis == 1 else scores.T

    def _keep_best(self, tile: _Tile, mine: slice, item0: int) -> None:
        """Merge the tile's best items into the lists, by their float32 products."""
        if item0 == 0 and self.listed <= self._turned(tile.scores).shape[1]:
            best, places = self._turned(tile.scores).topk(self.listed, dim=1)
            self.best[mine], self.best_ids[mine] = best.cpu().numpy(), places.cpu().numpy()
            return
        query, item, values = self._above(tile, self.best[mine, -1])
        if len(query) == 0:
            return
        order = np.argsort(query.astype(np.int16), kind="stable")  # a radix sort; tiles are no longer than 4096
        query, item, values = query[order], item[order] + item0, values[order]
        hit, first, count = np.unique(query, return_index=True, return_counts=True)
        place = np.arange(len(query)) - np.repeat(first, count) + self.listed
        row = np.repeat(np.arange(len(hit)), count)
        rows = hit + mine.start
        # Beside each list its new items, as many columns as the longest needs.
        scores = np.full((len(hit), self.listed + int(count.max())), -np.inf, np.float32)
        ids = np.zeros(scores.shape, np.int64)
        scores[:, : self.listed], ids[:, : self.listed] = self.best[rows], self.best_ids[rows]
        scores[row, place], ids[row, place] = values, item
        kept_scores, kept = torch.from_numpy(scores).topk(self.listed, dim=1)
        self.best[rows], self.best_ids[rows] = kept_scores.numpy(), np.take_along_axis(ids, kept.numpy(), axis=1)

    def _above(self, tile: _Tile, limits: Scores) -> tuple[Ints, Ints, Scores]:
        """Queries, items and scores of the tile that lie above the limit of their query."""
        maxima = tile.maxima(self.axis)
        reached, block = np.nonzero(maxima > limits[:, None])
        if len(reached) <= _SPARSE_SHARE * maxima.size:
            values = tile.values_of(self.axis, reached, block)
            which, offset = np.nonzero(values > limits[reached, None])
            return reached[which], block[which] * _BLOCK + offset, values[which, offset]
        found = tile.tools.where_above(tile.scores, limits, self.axis)
        values = tile.scores[tuple(torch.from_numpy(index).to(tile.scores.device) for index in found)].cpu().numpy()
        query, item = found if self.axis == 1 else found[::-1]
        return query, item, values

    def found(self) -> Found:
        ids = np.empty((len(self.queries), self.k), np.int64)
        for block in query_blocks(len(self.queries) if self.k else 0, self.listed):
            part = Part(self.queries, np.arange(block.start, block.stop))
            ids[block] = settle(part, self.items, self.best_ids[block], self.best[block], self.bound, self.k)
        return Found(self.pairs, self.before + 1, self.scores, ids, len(self.items))
