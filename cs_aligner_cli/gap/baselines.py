"""Alignments that need no training: closed forms fitted on one split's pairs and applied to another's rows.

What a trained alignment must beat: most of a centroid gap can be taken away by a shift, and much retrieval comes from
second moments alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cs_aligner_cli.common.arguments import as_number
from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.closed_forms import cca_of_covariances, procrustes_of_covariance, whitening
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.few_pair_baselines import (
    SHRINKAGES,
    RowMap,
    fit_asif,
    fit_csa,
    held_out_pairs,
    recall_of_pairs,
)
from cs_aligner_cli.gap.paired_rows import paired_rows_of_any_width

# What is added to a covariance before it is inverted, as a share of its mean eigenvalue: little for whitening; for
# CCA, of SHRINKAGES, what retrieves best on pairs that are held out of the fit.
_WHITEN_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class Affine:
    """Unit rows to ``(rows + offset) @ weight``; no weight (None) is the identity."""

    offset: Floats
    weight: Floats | None = None

    def __call__(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map rows (N, d), of any length, which are scaled to unit length first; float32."""
        rows = np.asarray(rows, np.float32)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        shifted: npt.NDArray[np.float32] = rows / np.maximum(length, np.finfo(np.float32).tiny)
        shifted += self.offset.astype(np.float32)
        return shifted if self.weight is None else shifted @ self.weight.astype(np.float32)


Maps: TypeAlias = tuple[RowMap, RowMap]


def fit_baseline(kind: str, image: ArrayLike, text: ArrayLike) -> Maps:
    """Fit a baseline on row-paired image (N, d) and text (N, e): the map of images and the map of texts.

    With mx, my the means of the unit rows, C the covariances and cosines taken afterwards:

    - ``centred``: x - mx, y - my (GR-CLIP, arXiv 2507.19054).
    - ``mean_shift``: both modalities half way towards each other, x - (mx - my) / 2, y + (mx - my) / 2 (Liang et al.
      2022, who move by multiples of the gap).
    - ``whitened``: C_xx^(-1/2) (x - mx), the same for y, each with its own covariance (ZCA, shrunk by 0.001).
    - ``procrustes``: centred rows on the singular axes of C_xy, an orthogonal map (Schoenemann 1966).
    - ``cca``: centred rows on their canonical axes, weighted by the correlations (Hotelling 1936; the weights as in
      Gong et al. 2014), covariances shrunk by ``cca_shrinkage``.

    - ``csa``: the weighted cosines of canonical similarity analysis (``few_pair_baselines.fit_csa``).
    - ``asif``: similarities to the pairs as coordinates, without any fit (``few_pair_baselines.fit_asif``).

    The first three need d = e. Raises InputError on an unknown kind, on d != e for those, and on rows as
    ``measure_gap``.
    """
    return fit_baselines([kind], image, text)[kind]


def fit_baselines(kinds: Sequence[str], image: ArrayLike, text: ArrayLike) -> dict[str, Maps]:
    """``fit_baseline`` of several kinds on the same rows, which are read once."""
    for kind in kinds:
        if kind not in BASELINES:
            raise InputError(f"unknown baseline {kind!r}{did_you_mean(kind, list(BASELINES))}")
    x, y = (rows.numpy() for rows in paired_rows_of_any_width(image, text))
    for kind in kinds:
        if kind in ONE_SPACE and x.shape[1] != y.shape[1]:
            raise InputError(
                f"{kind}: image and text rows differ in dimension: {x.shape[1]} against {y.shape[1]}",
                f"Baselines that need no shared space: {', '.join(k for k in BASELINES if k not in ONE_SPACE)}.",
            )
    return {kind: BASELINES[kind](x, y) for kind in kinds}


def fit_cca(image: ArrayLike, text: ArrayLike, shrinkage: float | None = None) -> Maps:
    """The baseline ``cca`` of row-paired image (N, d) and text (N, e) with a shrinkage, None: ``cca_shrinkage``'s.

    Raises InputError as ``fit_baseline``, and for a shrinkage that is not above 0.
    """
    if shrinkage is not None and not 0 < as_number(shrinkage, "shrinkage", "a number above 0") < math.inf:
        raise InputError(f"shrinkage: expected a number above 0, got {shrinkage:g}")
    x, y = (rows.numpy() for rows in paired_rows_of_any_width(image, text))
    return _cca(x, y, shrinkage)


def _centred(x: Floats, y: Floats) -> Maps:
    return Affine(-x.mean(axis=0)), Affine(-y.mean(axis=0))


def _mean_shift(x: Floats, y: Floats) -> Maps:
    half = (x.mean(axis=0) - y.mean(axis=0)) / 2
    return Affine(-half), Affine(half)


def _whitened(x: Floats, y: Floats) -> Maps:
    image, text = (Affine(-z.mean(axis=0), whitening(z - z.mean(axis=0), _WHITEN_SHRINKAGE)) for z in (x, y))
    return image, text


def _procrustes(x: Floats, y: Floats) -> Maps:
    mx, my = x.mean(axis=0), y.mean(axis=0)
    once, _, sums = _runs(x, y - my)
    image, text = procrustes_of_covariance((once - mx).T @ sums / len(x))
    return Affine(-mx, image), Affine(-my, text)


def _runs(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows of x (r, d) that do not repeat the one before, how often each stands there (r,), and the sums (r, e) of its
    rows of y: an image stands there once for each of its captions, and need not be multiplied as often. Where none
    repeats, x and y themselves."""
    if not (x[1:, 0] == x[:-1, 0]).any():
        return x, np.ones(len(x)), y
    first = np.append(0, 1 + np.flatnonzero((x[1:] != x[:-1]).any(axis=1)))
    if len(first) == len(x):
        return x, np.ones(len(x)), y
    belongs = sparse.csr_array((np.ones(len(y)), np.arange(len(y)), np.append(first, len(y))))
    return x[first], np.diff(first, append=len(x)).astype(np.float64), belongs @ y


class _Sums(NamedTuple):
    """Sums over pairs: how many, of rows (d,) and (e,), and of their products (d, d), (e, e) and (d, e)."""

    size: int
    x: Floats
    y: Floats
    xx: Floats
    yy: Floats
    xy: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats, at: tuple[Floats, Floats]) -> _Sums:
        """The sums of rows as they are seen from ``at`` (d,) and (e,)."""
        y = y - at[1]
        once, counts, sums = _runs(x, y)
        repeats = len(once) < len(x)
        once = once - at[0]
        weighted = once * np.sqrt(counts)[:, None] if repeats else once
        return cls(len(x), counts @ once, y.sum(axis=0), weighted.T @ weighted, y.T @ y, once.T @ sums)

    def __add__(self, other: Any) -> _Sums:  # of both samples together; a tuple's own + would put one behind the other
        return _Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def means(self) -> tuple[Floats, Floats]:
        return self.x / self.size, self.y / self.size

    def cca(self, shrinkages: Sequence[float]) -> list[tuple[Floats, Floats]]:
        """The maps of centred rows for several shrinkages."""
        mx, my = self.means
        of_x, of_y, cross = (
            products / self.size - np.outer(a, b)
            for products, a, b in ((self.xx, mx, mx), (self.yy, my, my), (self.xy, mx, my))
        )
        return cca_of_covariances(of_x, of_y, cross, shrinkages)


def _cca(x: Floats, y: Floats, shrinkage: float | None = None) -> Maps:
    # Seen from one of the rows, sums cancel nothing of rows that lie close together, and are 0 where all coincide.
    at = x[0], y[0]
    chosen, sums = _chosen_shrinkage(x, y, at) if shrinkage is None else (shrinkage, _Sums.of(x, y, at))
    (mx, my), (image, text) = sums.means, sums.cca([chosen])[0]
    return Affine(-mx - at[0], image), Affine(-my - at[1], text)


def cca_shrinkage(x: Floats, y: Floats) -> float:
    """Of 0.01, 0.1, 1 and 10, the shrinkage with the highest R@1 (mean of both ways) on the last fifth of the pairs.

    x (N, d) and y (N, e) are the pairs that CCA is fitted on, here on the first four fifths; so nothing that is
    measured takes part in the choice. 1 for fewer than 100 pairs, of which too few could be held out.
    """
    return _chosen_shrinkage(x, y, (x[0], y[0]))[0]


def _chosen_shrinkage(x: Floats, y: Floats, at: tuple[Floats, Floats]) -> tuple[float, _Sums]:
    """What ``cca_shrinkage`` chooses, and the sums over all pairs, of which it takes those of four fifths."""
    cut, held = held_out_pairs(x)
    first, rest = _Sums.of(x[:cut], y[:cut], at), _Sums.of(x[cut:], y[cut:], at)
    if not len(held):
        return 1.0, first + rest
    (mx, my), paths = first.means, first.cca(SHRINKAGES)
    seen = x[held] - at[0] - mx, y[held] - at[1] - my
    recalls = [recall_of_pairs(seen[0] @ image, seen[1] @ text) for image, text in paths]
    return SHRINKAGES[int(np.argmax(recalls))], first + rest


BASELINES: dict[str, Callable[[Floats, Floats], Maps]] = {
    "centred": _centred,
    "mean_shift": _mean_shift,
    "whitened": _whitened,
    "procrustes": _procrustes,
    "cca": _cca,
    "csa": fit_csa,
    "asif": fit_asif,
}
# Those that compare coordinate with coordinate, and so need rows of one dimension.
ONE_SPACE = ("centred", "mean_shift", "whitened")
