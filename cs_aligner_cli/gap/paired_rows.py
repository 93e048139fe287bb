"""What the gap's metrics take in: row-paired features, checked and scaled to unit length; bandwidths, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arguments import as_number, as_whole
from cs_aligner_cli.common.arrays import ArrayLike, as_rows
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval.rows import Shards, is_stored

RowsLike: TypeAlias = "ArrayLike | Shards"
DEFAULT_BANDWIDTHS = (0.5, 0.7071067811865476, 1.0)
MIN_PAIRS = 4
# Of an image with several captions: what fits a map takes all of them, what measures takes rows for independent.
_REPEATED, _ONCE = "repeat an image that has several captions", "of an image with several captions take one"
# Pairs that are read at a time, and rows that are scaled while they are in the processor's cache.
_BLOCK, _CACHED = 8192, 512


class PairedRows:
    """Row-paired image (N, d) and text (N, d), read as unit rows in float64 on the CPU: never all of them unasked.

    Both are floating-point arrays or tensors, or ``Shards``, as a store's arrays are. Raises InputError on
    unequal row counts or widths, fewer than 4 pairs, and rows that are not finite or of zero length.
    """

    def __init__(self, image: RowsLike, text: RowsLike, any_width: bool = False) -> None:
        self._sides = {name: _readable(rows, name) for name, rows in (("image", image), ("text", text))}
        (images, width), (texts, other_width) = (tuple(rows.shape) for rows in self._sides.values())
        if images == texts and width != other_width and not any_width:
            raise InputError(
                f"image and text rows differ in dimension: {width} against {other_width}",
                "Rows can be compared only in one space; train adapters into a shared one first.",
            )
        if images != texts:
            raise InputError(
                f"image and text are not row-paired: {images} image rows against {texts} text rows",
                f"Row i of one must belong to row i of the other; {_REPEATED if any_width else _ONCE}.",
            )
        if images < MIN_PAIRS:
            raise InputError(f"the gap needs at least {MIN_PAIRS} pairs, got {images}")
        self.count = images
        for name in self._sides:
            self._refuse_unusable(name)

    def __len__(self) -> int:
        return self.count

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The pairs asked for: unit rows (len(rows), d) of images and of texts."""
        image, text = (self._units(name, rows) for name in self._sides)
        return image, text

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """All pairs in order, at most 8,192 at a time: where they are, images, texts."""
        for rows in self._spans():
            yield rows, *self.take(np.arange(rows.start, rows.stop))

    def _units(self, name: str, rows: npt.NDArray[np.int64]) -> Tensor:
        found = torch.empty(len(rows), self._sides[name].shape[1], dtype=torch.float64)
        for start in range(0, len(rows), _CACHED):
            some = slice(start, start + _CACHED)
            found[some] = self._read(name, rows[some])
            _scale(found[some])
        return found

    def _spans(self) -> Iterator[slice]:
        return (slice(start, min(start + _BLOCK, self.count)) for start in range(0, self.count, _BLOCK))

    def _read(self, name: str, rows: npt.NDArray[np.int64]) -> Tensor:
        side = self._sides[name]
        read = (
            side[torch.from_numpy(rows).to(side.device)]
            if isinstance(side, Tensor)
            else torch.from_numpy(side.take(rows))
        )
        return read.detach().cpu()

    def _refuse_unusable(self, name: str) -> None:
        """Look through all rows once: one that is unusable is named, and how many there are."""
        # Of a row's largest entry, which is NaN or infinite where any of them is.
        problems: dict[str, Callable[[Tensor], Tensor]] = {
            "not finite (NaN or infinity)": lambda largest: ~largest.isfinite(),
            "all zeros and so have no direction": lambda largest: largest == 0,
        }
        found: dict[str, list[int]] = {what: [] for what in problems}
        for rows in self._spans():
            largest = self._read(name, np.arange(rows.start, rows.stop)).abs().amax(dim=1)
            for what, test in problems.items():
                found[what] += (rows.start + np.flatnonzero(test(largest).numpy())).tolist()
        for what, bad in found.items():
            if bad:
                raise InputError(f"{name}: {len(bad)} of {self.count} rows are {what}; the first is row {bad[0]}")


def paired_rows(image: RowsLike, text: RowsLike) -> tuple[Tensor, Tensor]:
    """Both (N, d) inputs as unit rows in float64 on the CPU; raises InputError as ``PairedRows``."""
    pairs = PairedRows(image, text)
    return pairs.take(np.arange(len(pairs)))


def paired_rows_of_any_width(image: RowsLike, text: RowsLike) -> tuple[Tensor, Tensor]:
    """As ``paired_rows``, but image (N, d) and text (N, e) may differ in dimension."""
    pairs = PairedRows(image, text, any_width=True)
    return pairs.take(np.arange(len(pairs)))


def _readable(rows: RowsLike, name: str) -> Tensor | Shards:
    return rows if is_stored(rows) else as_rows(cast(ArrayLike, rows), name)


def _scale(rows: Tensor) -> None:
    """Scale rows to unit length in their place: large ones are many, and a copy takes longer than the division."""
    # Dividing by the largest entry first keeps the norm of huge and of tiny rows representable.
    rows /= torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    rows /= rows.norm(dim=1, keepdim=True)


def check_exact_pairs(count: int) -> None:
    """Raise InputError unless metrics of all pairs of rows are of enough pairs to have an interval."""
    if as_whole(count, "exact_pairs") < 10:
        raise InputError(f"exact_pairs: expected at least 10, got {count}")


def check_bandwidths(bandwidths: Sequence[float] | Tensor) -> None:
    """Raise InputError unless every kernel bandwidth is positive, finite and prints unlike the others."""
    if not isinstance(bandwidths, Iterable):
        raise InputError(f"bandwidths: expected positive finite numbers, got {bandwidths!r}")
    for s in bandwidths.tolist() if isinstance(bandwidths, Tensor) else bandwidths:
        if not (as_number(s, "bandwidths", "positive finite numbers") > 0 and math.isfinite(s)):
            raise InputError(f"bandwidths: expected positive finite numbers, got {s}")
    if len({f"{s:.4g}" for s in bandwidths}) < len(bandwidths):
        raise InputError(f"bandwidths: two of {list(bandwidths)} are equal when printed to four digits")


def evenly_spaced(rows: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` evenly spaced numbers of ``rows`` rows, in order."""
    return np.linspace(0, rows - 1, min(rows, count)).round().astype(np.int64)
