"""Which items each training step sees: a pure function of seed and step, so resumed runs see the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split


class DrawnPairs(NamedTuple):
    """The pairs of one step: image rows (M,), caption rows (N,), and a row of every further modality per image.

    ``owner`` (N,) is the position in ``images`` of each caption's image; None: row by row a pair.
    """

    images: Ints
    captions: Ints
    owner: Ints | None = None
    further: Mapping[str, Ints] = {}


class _ByImage:
    """The items of one modality by the image that they belong to."""

    def __init__(self, owners: Ints, image_rows: Ints) -> None:
        self.order = np.argsort(owners, kind="stable")
        self.start = np.searchsorted(owners[self.order], image_rows, side="left")
        self.end = np.searchsorted(owners[self.order], image_rows, side="right")


class PairBatches:
    """Batches of images with their captions: every epoch a new order of the images.

    ``captions`` says which of an image's captions go along: ``one_random``, the ``first``, ``all``, or one drawn with
    a list of weights by position, of which the last one counts for all further captions. Of every modality in
    ``further`` one random item goes along.

    The last images of an epoch that do not fill a batch are a smaller one where they are at least ``least``, else they
    are left out of it (None: always); the order changes every epoch.
    """

    def __init__(
        self,
        split: Split,
        image_rows: Ints,
        batch_size: int,
        seed: int,
        captions: str | Sequence[float] = "one_random",
        further: Sequence[str] = (),
        least: int | None = None,
    ) -> None:
        self._image_rows, self._seed, self._mode = image_rows, seed, captions
        self.images = len(image_rows)
        self.batch_size = min(batch_size, len(image_rows))
        self.steps_per_epoch, rest = divmod(len(image_rows), self.batch_size)
        if rest and least is not None and rest >= least:
            self.steps_per_epoch, rest = self.steps_per_epoch + 1, 0
        self.left_out = rest
        self._captions = _ByImage(split.image_of_caption, image_rows)
        self._further = {modality: _ByImage(split.image_of(modality), image_rows) for modality in further}
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> tuple[Ints, Ints, dict[str, Ints]]:
        """The order of the images, the first of each one's places among the captions by image, and further rows."""
        rng = np.random.default_rng([self._seed, 2, epoch])
        order = rng.permutation(len(self._image_rows))
        places = self._drawn(rng)[order]
        rows = {m: items.order[rng.integers(items.start, items.end)][order] for m, items in self._further.items()}
        return order, places, rows

    def _drawn(self, rng: np.random.Generator) -> Ints:
        start, end = self._captions.start, self._captions.end
        if self._mode in ("first", "all"):
            return start
        if self._mode == "one_random":
            return np.asarray(rng.integers(start, end), np.int64)
        counts = end - start
        weights = np.asarray(self._mode, np.float64)
        padded = np.concatenate([weights, np.full(max(0, counts.max() - len(weights)), weights[-1])])
        ends = np.cumsum(padded)
        drawn = np.searchsorted(ends, rng.random(len(counts)) * ends[counts - 1], side="right")
        return np.asarray(start + np.minimum(drawn, counts - 1), np.int64)

    def pairs(self, step: int) -> DrawnPairs:
        """The images and captions of one step, which has ``batch_size`` images, an epoch's last one perhaps fewer."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, places, further = self._epoch(epoch)
        part = slice(position * self.batch_size, (position + 1) * self.batch_size)
        images, own = self._image_rows[order[part]], {m: rows[part] for m, rows in further.items()}
        if self._mode != "all":
            return DrawnPairs(images, self._captions.order[places[part]], None, own)
        counts = (self._captions.end - self._captions.start)[order[part]]
        owner = np.repeat(np.arange(len(images)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return DrawnPairs(images, self._captions.order[places[part][owner] + within], owner, own)


class Pool:
    """Items that are in no pair, ``per_step`` of them at every step: each once a round, each round in a new order.

    ``parts`` are rows of several splits, since unpaired items may come from other data sets.
    """

    def __init__(self, parts: Sequence[tuple[Split, Ints]], per_step: int, seed: int) -> None:
        self._parts, self._seed = parts, seed
        self._ends = np.cumsum([len(rows) for _, rows in parts])
        self.items = int(self._ends[-1]) if parts else 0
        self.per_step = min(per_step, self.items)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, round_: int) -> Ints:
        return np.random.default_rng([self._seed, round_]).permutation(self.items)

    def part(self, most: int) -> list[tuple[Split, Ints]]:
        """``most`` of all items or fewer, at even distances in the order of the parts, by split."""
        return self._by_split(np.linspace(0, self.items - 1, min(self.items, most)).astype(np.int64))

    def rows(self, step: int) -> list[tuple[Split, Ints]]:
        """The rows of one step by split, in the order of the parts."""
        if not self.per_step:
            return []
        rounds, places = np.divmod(np.arange(step * self.per_step, (step + 1) * self.per_step), self.items)
        drawn = np.concatenate([self._order(int(r))[places[rounds == r]] for r in np.unique(rounds)])
        return self._by_split(drawn)

    def _by_split(self, drawn: Ints) -> list[tuple[Split, Ints]]:
        part_of = np.searchsorted(self._ends, drawn, side="right")
        starts = self._ends - [len(rows) for _, rows in self._parts]
        return [
            (split, rows[drawn[part_of == i] - starts[i]])
            for i, (split, rows) in enumerate(self._parts)
            if (part_of == i).any()
        ]
