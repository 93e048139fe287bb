"""Which items each training step sees: a pure function of seed and step, so resumed runs see the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.data.prepared import Split

Rows = npt.NDArray[np.int64]
S = TypeVar("S")
T = TypeVar("T")


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Image rows (training, held out): images that have captions, a random ``fraction`` of them held out."""
    with_captions = np.unique(split.image_of_caption[split.image_of_caption >= 0])
    shuffled = np.random.default_rng([seed, 1]).permutation(with_captions)
    count = max(1, round(fraction * len(shuffled)))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def captions_of(split: Split, image_rows: Rows) -> Rows:
    """Rows of all captions of the given images, in table order."""
    return np.flatnonzero(np.isin(split.image_of_caption, image_rows))


class PairBatches:
    """Batches of image-caption pairs: every epoch a new order of the images and a random caption for each.

    The last images of an epoch that do not fill a batch are left out of it; the order changes every epoch.
    """

    def __init__(self, split: Split, image_rows: Rows, batch_size: int, seed: int) -> None:
        self._image_rows, self._seed = image_rows, seed
        self.images = len(image_rows)
        self.batch_size = min(batch_size, len(image_rows))
        self.steps_per_epoch = len(image_rows) // self.batch_size
        order = np.argsort(split.image_of_caption, kind="stable")
        self._captions_by_image = order
        self._start = np.searchsorted(split.image_of_caption[order], image_rows, side="left")
        self._end = np.searchsorted(split.image_of_caption[order], image_rows, side="right")
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> tuple[Rows, Rows]:
        rng = np.random.default_rng([self._seed, 2, epoch])
        order = rng.permutation(len(self._image_rows))
        chosen = self._captions_by_image[rng.integers(self._start, self._end)]
        return self._image_rows[order], chosen[order]

    def pairs(self, step: int) -> tuple[Rows, Rows]:
        """(image rows, caption rows) of one step, each (batch_size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        images, captions = self._epoch(epoch)
        part = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return images[part], captions[part]


def prefetched(load: Callable[[S], T], steps: Iterable[S]) -> Iterator[T]:
    """``load(step)`` for every step, in order, the next one being loaded while the present one is used."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        waiting = None
        for step in steps:
            upcoming = worker.submit(load, step)
            if waiting is not None:
                yield waiting.result()
            waiting = upcoming
        if waiting is not None:
            yield waiting.result()
