"""The headline gap metrics alone, in one pass: what every run of a sweep is measured by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.types import Floats

BANDWIDTH = 0.7071
METRICS = ("centroid_gap", "paired_cosine", "margin", f"cs_divergence_u@{BANDWIDTH:.4g}")


def headline_gap(image: npt.NDArray[np.floating], text: npt.NDArray[np.floating]) -> dict[str, float]:
    """``METRICS``, as ``measure_gap`` names them.

    ``image`` and ``text`` (N, d) are row-paired, N at least 2; rows are scaled to unit length, and everything is
    computed in float64, with three (N, N) matrices. Means over pairs of rows leave out i = j, also between the clouds.
    """
    x, y = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (image.astype(np.float64), text.astype(np.float64))
    )
    paired = (x * y).sum(axis=1)
    cross = x @ y.T
    strangers = _off_diagonal_mean(cross)
    kernels = [np.exp((products - 1) / BANDWIDTH**2) for products in (x @ x.T, y @ y.T, cross)]
    within_image, within_text, between = (np.log(_off_diagonal_mean(kernel)) for kernel in kernels)
    centroid_gap = float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))
    divergence = float(within_image + within_text - 2 * between)
    values = (centroid_gap, float(paired.mean()), float(paired.mean() - strangers), divergence)
    return dict(zip(METRICS, values, strict=True))


def _off_diagonal_mean(matrix: Floats) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
