"""One exact pass over all scores of two sets of rows, tile by tile: ranks of the true pairs, and the k best, both ways.

Every tile of the score matrix is a float32 matrix product that serves both directions and is then forgotten. What
float32 cannot tell apart, within its rounding bound, is scored again in float64; so the results are those of the rule
in ``scores``, whatever the tiles, the threads and the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.rows import Part, Rows
from cs_aligner_cli.retrieval.score_tiles import BLOCK, Tile, slices, tools_for
from cs_aligner_cli.retrieval.scores import MARGIN, Scores, pair_scores, query_blocks, rounding_bound, settle

# Where more than this share of a tile's blocks may hold a better item, all of the tile is looked at.
_SPARSE_SHARE = 1 / 16
# More near-ties than this share of a tile (collapsed embeddings) are scored as a whole, not one by one.
_DENSE_SHARE = 1 / 256


@dataclass(frozen=True, eq=False)
class TruePairs:
    """True pairs of one direction: ``query`` and ``item`` (P,) int64, sorted by query, then item."""

    query: Ints
    item: Ints

    @classmethod
    def of(cls, query: Ints, item: Ints) -> TruePairs:
        """Pairs in any order."""
        order = np.lexsort((item, query))
        return cls(query[order].astype(np.int64), item[order].astype(np.int64))

    @classmethod
    def none(cls) -> TruePairs:
        """No pairs: for lists of the nearest alone."""
        return cls(*np.zeros((2, 0), np.int64))

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True, eq=False)
class Found:
    """What a pass found in one direction.

    ``ranks`` (P,) int64: the place of each true pair's item in the order of all items, 1 for the top; ``scores`` (P,)
    float32; ``top_ids`` (Q, k) int64: the best items of every query, in order; ``gallery``: how many items there are.
    """

    pairs: TruePairs
    ranks: Ints
    scores: Scores
    top_ids: Ints
    gallery: int


def scan(
    x: Rows,
    y: Rows,
    x_to_y: TruePairs | None,
    y_to_x: TruePairs | None,
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
    tools = tools_for(len(x), len(y), device)
    for rows in slices(len(x), tools.rows):
        left = x.take(rows).to(tools.device)
        for columns in slices(len(y), tools.columns):
            tile = Tile(tools, left, y.take(columns).to(tools.device), rows, columns)
            for way in ways:
                if way is not None:
                    way.see(tile)
        advance(len(left))
    forth, back = (None if way is None else way.found() for way in ways)
    return forth, back


class _Way:
    """One direction of the pass: per query how many items come before each true one, and its best items so far.

    ``axis`` is the one of a tile along which this direction's items lie: 1 from x to y, 0 from y to x.
    """

    def __init__(self, queries: Rows, items: Rows, pairs: TruePairs, k: int, axis: int) -> None:
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

    def see(self, tile: Tile) -> None:
        mine, other = tile.slices if self.axis == 1 else tile.slices[::-1]
        slots = self.slots[:, mine]
        slots = slots[(slots >= 0).any(axis=1)]
        if len(slots):
            self._count(tile, slots, mine.start, other)
        if self.listed:
            self._keep_best(tile, mine, other.start)

    def _count(self, tile: Tile, slots: Ints, query0: int, other: slice) -> None:
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
            self._break_ties(slot[query[which]], query[which] + query0, block[which] * BLOCK + offset + other.start)

    def _count_all(
        self, tile: Tile, slots: Ints, true_items: Ints, true_scores: Scores, query0: int, other: slice
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

    def _count_exactly(self, tile: Tile, true_items: Ints, true_scores: Scores, other: slice) -> Ints:
        exact, ids = self._turned(tile.exact), torch.arange(other.start, other.stop)
        counts = []
        for limit, item in zip(torch.from_numpy(true_scores), torch.from_numpy(true_items), strict=True):
            first = (exact == limit[:, None]) & (ids < item[:, None])
            counts.append(((exact > limit[:, None]) | first).sum(dim=1).numpy())
        return np.stack(counts)

    def _turned(self, scores: Tensor) -> Tensor:
        """A tile with this direction's queries as rows."""
        return scores if self.axis == 1 else scores.T

    def _keep_best(self, tile: Tile, mine: slice, item0: int) -> None:
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

    def _above(self, tile: Tile, limits: Scores) -> tuple[Ints, Ints, Scores]:
        """Queries, items and scores of the tile that lie above the limit of their query."""
        maxima = tile.maxima(self.axis)
        reached, block = np.nonzero(maxima > limits[:, None])
        if len(reached) <= _SPARSE_SHARE * maxima.size:
            values = tile.values_of(self.axis, reached, block)
            which, offset = np.nonzero(values > limits[reached, None])
            return reached[which], block[which] * BLOCK + offset, values[which, offset]
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
