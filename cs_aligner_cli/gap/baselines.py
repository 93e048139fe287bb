"""Alignments that need no training: closed forms fitted on one split's pairs and applied to another's rows.

What a trained alignment must beat: most of a centroid gap can be taken away by a shift, and much retrieval comes from
second moments alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.arrays import ArrayLike
from cs_aligner_cli.errors import InputError, did_you_mean
from cs_aligner_cli.gap.groups import Floats
from cs_aligner_cli.gap.rows import paired_rows_of_any_width

# What is added to a covariance before it is inverted, as a share of its mean eigenvalue: little for whitening; for
# CCA what retrieved best on Flickr8k's dev images of 0.01, 0.1 and 1.
_WHITEN_SHRINKAGE, _CCA_SHRINKAGE = 1e-3, 1.0


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


Maps: TypeAlias = tuple[Affine, Affine]


def fit_baseline(kind: str, image: ArrayLike, text: ArrayLike) -> Maps:
    """Fit a baseline on row-paired image (N, d) and text (N, e): the map of images and the map of texts.

    With mx, my the means of the unit rows, C the covariances and cosines taken afterwards:

    - ``centred``: x - mx, y - my (GR-CLIP, arXiv 2507.19054).
    - ``mean_shift``: both modalities half way towards each other, x - (mx - my) / 2, y + (mx - my) / 2 (Liang et al.
      2022, who move by multiples of the gap).
    - ``whitened``: C_xx^(-1/2) (x - mx), the same for y, each with its own covariance (ZCA, shrunk by 0.001).
    - ``procrustes``: centred rows on the singular axes of C_xy, an orthogonal map (Schoenemann 1966).
    - ``cca``: centred rows on their canonical axes, weighted by the correlations (Hotelling 1936; the weights as in
      Gong et al. 2014), covariances shrunk by 1.

    The first three need d = e. Raises InputError on an unknown kind, on d != e for those, and on rows as
    ``measure_gap``.
    """
    if kind not in BASELINES:
        raise InputError(f"unknown baseline {kind!r}{did_you_mean(kind, list(BASELINES))}")
    x, y = (rows.numpy() for rows in paired_rows_of_any_width(image, text))
    if kind in ONE_SPACE and x.shape[1] != y.shape[1]:
        raise InputError(
            f"{kind}: image and text rows differ in dimension: {x.shape[1]} against {y.shape[1]}",
            f"Baselines that need no shared space: {', '.join(k for k in BASELINES if k not in ONE_SPACE)}.",
        )
    return BASELINES[kind](x, y)


def _centred(x: Floats, y: Floats) -> Maps:
    return Affine(-x.mean(axis=0)), Affine(-y.mean(axis=0))


def _mean_shift(x: Floats, y: Floats) -> Maps:
    half = (x.mean(axis=0) - y.mean(axis=0)) / 2
    return Affine(-half), Affine(half)


def _whitened(x: Floats, y: Floats) -> Maps:
    image, text = (Affine(-z.mean(axis=0), _root(_shrunk(z, _WHITEN_SHRINKAGE))) for z in (x, y))
    return image, text


def _procrustes(x: Floats, y: Floats) -> Maps:
    left, _, right = np.linalg.svd(_cross(x, y), full_matrices=False)
    return Affine(-x.mean(axis=0), left), Affine(-y.mean(axis=0), right.T)


def _cca(x: Floats, y: Floats) -> Maps:
    roots = [_root(_shrunk(z, _CCA_SHRINKAGE)) for z in (x, y)]
    left, correlations, right = np.linalg.svd(roots[0] @ _cross(x, y) @ roots[1], full_matrices=False)
    image, text = roots[0] @ left * correlations, roots[1] @ right.T * correlations
    return Affine(-x.mean(axis=0), image), Affine(-y.mean(axis=0), text)


BASELINES: dict[str, Callable[[Floats, Floats], Maps]] = {
    "centred": _centred,
    "mean_shift": _mean_shift,
    "whitened": _whitened,
    "procrustes": _procrustes,
    "cca": _cca,
}
# Those that compare coordinate with coordinate, and so need rows of one dimension.
ONE_SPACE = ("centred", "mean_shift", "whitened")


def _cross(x: Floats, y: Floats) -> Floats:
    cross: Floats = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)
    return cross


def _shrunk(x: Floats, shrinkage: float) -> Floats:
    covariance = _cross(x, x)
    size = np.trace(covariance) / len(covariance)
    # Rows that all coincide have no covariance; any multiple of the identity leaves their zeros as they are.
    shrunk: Floats = covariance + (shrinkage * size or 1.0) * np.eye(len(covariance))
    return shrunk


def _root(covariance: Floats) -> Floats:
    """Its inverse symmetric square root."""
    values, axes = np.linalg.eigh(covariance)
    root: Floats = axes / np.sqrt(values) @ axes.T
    return root
