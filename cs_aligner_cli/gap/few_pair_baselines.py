"""Training-free alignments that need few pairs: similarities to the pairs themselves, and weighted canonical ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.closed_forms import canonical_axes
from cs_aligner_cli.common.types import Floats, Ints

# Rows (N, d) of one modality, of any length, to float32 rows (N, k).
RowMap: TypeAlias = Callable[[npt.NDArray[np.floating]], npt.NDArray[np.float32]]

_HELD_OUT, _MOST_HELD_OUT, _FEWEST_HELD_OUT = 0.2, 1000, 20
# What is chosen from on held-out pairs: canonical axes kept (and all), shrinkages; anchors kept of a row, and powers.
_AXES, SHRINKAGES = (16, 32, 64, 128, 256), (0.01, 0.1, 1.0, 10.0)
_KEPT, _POWERS = (10, 50, 200, 800), (1.0, 4.0, 8.0)
# Coordinates of a relative representation: pairs beyond are left out at even distances.
MAX_ANCHORS = 4096


@dataclass(frozen=True, eq=False)
class RelativeMap:
    """Rows to their similarities to ``anchors`` (A, d), unit rows: the ``kept`` largest, to a power.

    A row on the far side of all anchors has the nearest of them alone: no row may be all zeros.
    """

    anchors: npt.NDArray[np.float32]
    kept: int
    power: float

    def __call__(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map rows (N, d) to (N, A) of unit length."""
        similarities = _unit(np.asarray(rows, np.float32)) @ self.anchors.T
        nearest = similarities.argmax(axis=1)
        np.maximum(similarities, 0, out=similarities)
        if self.kept < len(self.anchors):
            least = np.partition(similarities, -self.kept, axis=1)[:, -self.kept, None]
            similarities[similarities < least] = 0
        powers = similarities**self.power
        far = np.flatnonzero(~powers.any(axis=1))
        powers[far, nearest[far]] = 1
        relative: npt.NDArray[np.float32] = _unit(powers)
        return relative


@dataclass(frozen=True, eq=False)
class CanonicalMap:
    """Rows to canonical axes, scaled to unit length, weighted by the roots of the correlations.

    What the weights take of the length goes to a dimension of the modality's own, ``first`` or second of two at the
    end, so that the cosine of an image and a text is the sum over axes of correlation times both coordinates.
    """

    mean: Floats
    axes: Floats
    correlations: Floats
    first: bool

    def __call__(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map rows (N, d) to (N, k + 2) of unit length."""
        canonical = _unit((_unit(np.asarray(rows, np.float64)) - self.mean) @ self.axes)
        weighted = canonical * np.sqrt(self.correlations)
        rest = np.sqrt(np.maximum(1 - np.square(weighted).sum(axis=1, keepdims=True), 0))
        none = np.zeros_like(rest)
        own = [rest, none] if self.first else [none, rest]
        return np.concatenate([weighted, *own], axis=1).astype(np.float32)


def fit_csa(x: Floats, y: Floats) -> tuple[RowMap, RowMap]:
    """Canonical similarity analysis (Li et al. 2024, arXiv 2410.07610) of row-paired x (N, d) and y (N, e), unit rows.

    The similarity of an image and a text is ``sum_i rho_i a_i b_i / (||a|| ||b||)`` over their first s canonical
    coordinates a and b, rho being the canonical correlations. s and the shrinkage of the covariances are those with the
    highest R@1 on the last fifth of the pairs; all axes and 1 where those are too few.
    """
    cut, held = held_out_pairs(x)
    settings = [(shrinkage, axes) for shrinkage in SHRINKAGES for axes in (*_AXES, min(x.shape[1], y.shape[1]))]
    chosen = (1.0, min(x.shape[1], y.shape[1]))
    if len(held):
        of_shrinkage = dict(zip(SHRINKAGES, _canonical(x[:cut], y[:cut], SHRINKAGES), strict=True))
        recalls = []
        for shrinkage, axes in settings:
            image, text = (_first_axes(side, axes) for side in of_shrinkage[shrinkage])
            recalls.append(recall_of_pairs(image(x[held]), text(y[held])))
        chosen = settings[int(np.argmax(recalls))]
    image, text = _canonical(x, y, [chosen[0]])[0]
    return _first_axes(image, chosen[1]), _first_axes(text, chosen[1])


def _canonical(x: Floats, y: Floats, shrinkages: Sequence[float]) -> list[tuple[CanonicalMap, CanonicalMap]]:
    mx, my = x.mean(axis=0), y.mean(axis=0)
    found = canonical_axes(x - mx, y - my, shrinkages)
    return [
        (CanonicalMap(mx, left, np.clip(rho, 0, 1), True), CanonicalMap(my, right, np.clip(rho, 0, 1), False))
        for left, right, rho in found
    ]


def _first_axes(canonical: CanonicalMap, axes: int) -> CanonicalMap:
    return CanonicalMap(canonical.mean, canonical.axes[:, :axes], canonical.correlations[:axes], canonical.first)


def fit_asif(x: Floats, y: Floats) -> tuple[RowMap, RowMap]:
    """Relative representations (ASIF, Norelli et al. 2023, arXiv 2210.01738) of row-paired x (N, d) and y (N, e).

    An image's coordinates are its cosines to the paired images, a text's those to the paired texts: the ``kept``
    largest of a row, to a power, scaled to unit length. Both are those with the highest R@1 on the last fifth of the
    pairs (ASIF's own 800 and 8 where those are too few). Nothing is fitted; at most 4,096 pairs are anchors.
    """
    cut, held = held_out_pairs(x)
    chosen = (800, 8.0)
    if len(held):
        settings = [(kept, power) for kept in _KEPT for power in _POWERS]
        recalls = []
        for kept, power in settings:
            image, text = _relative(x[:cut], y[:cut], kept, power)
            recalls.append(recall_of_pairs(image(x[held]), text(y[held])))
        chosen = settings[int(np.argmax(recalls))]
    return _relative(x, y, *chosen)


def _relative(x: Floats, y: Floats, kept: int, power: float) -> tuple[RowMap, RowMap]:
    anchors = np.linspace(0, len(x) - 1, min(len(x), MAX_ANCHORS)).astype(int)
    image, text = (RelativeMap(z[anchors].astype(np.float32), kept, power) for z in (x, y))
    return image, text


def held_out_pairs(x: Floats) -> tuple[int, Ints]:
    """Where the last fifth of pairs begins, and which of its rows are measured: one of each image, 1,000 at most.

    None are where fewer than 20 of them are images of their own.
    """
    cut = len(x) - round(_HELD_OUT * len(x))
    # Captions of one image stand in a row, and only one of them can be its own image's nearest.
    held = cut + np.flatnonzero((np.diff(x[cut - 1 :], axis=0) != 0).any(axis=1))
    held = held[np.linspace(0, len(held) - 1, min(len(held), _MOST_HELD_OUT)).astype(int)]
    return cut, held if len(held) >= _FEWEST_HELD_OUT else held[:0]


def recall_of_pairs(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    """R@1 of row-paired x and y (N, k) by cosine, the sum of both ways."""
    cosines = _unit(x) @ _unit(y).T
    own = np.arange(len(x))
    return float((cosines.argmax(axis=1) == own).mean() + (cosines.argmax(axis=0) == own).mean())


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.floating] = rows / np.maximum(length, np.finfo(rows.dtype).tiny)
    return unit
