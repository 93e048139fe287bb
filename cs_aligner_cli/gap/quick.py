"""The headline gap metrics alone, in one pass: what every run of a sweep is measured by."""

from __future__ import annotations

import numpy as np

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.paired_rows import RowsLike, paired_rows

BANDWIDTH = 0.7071
METRICS = ("centroid_gap", "paired_cosine", "margin", f"cs_divergence_u@{BANDWIDTH:.4g}")
# Rows whose products with all others are held at a time.
_ROWS = 256


def headline_gap(image: RowsLike, text: RowsLike) -> dict[str, float]:
    """``METRICS``, as ``measure_gap`` names them.

    ``image`` and ``text`` (N, d) are row-paired and scaled to unit length; everything is computed in float64, in
    memory linear in N. Means over pairs of rows leave out i = j, also between the clouds. Raises InputError as
    ``PairedRows``.
    """
    x, y = (rows.numpy() for rows in paired_rows(image, text))
    paired = float((x * y).sum(axis=1).mean())
    (_, within_image), (_, within_text), (strangers, between) = (
        _off_diagonal_means(a, b) for a, b in ((x, x), (y, y), (x, y))
    )
    centroid_gap = float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))
    divergence = float(np.log(within_image) + np.log(within_text) - 2 * np.log(between))
    return dict(zip(METRICS, (centroid_gap, paired, paired - strangers, divergence), strict=True))


def _off_diagonal_means(a: Floats, b: Floats) -> tuple[float, float]:
    """The mean product and the mean kernel value of a_i and b_j over i != j, unit rows (N, d) of both."""
    products_sum, kernel_sum = 0.0, 0.0
    for start in range(0, len(a), _ROWS):
        tile = a[start : start + _ROWS] @ b.T
        products_sum += float(tile.sum() - np.trace(tile, offset=start))
        tile -= 1
        tile /= BANDWIDTH**2
        np.exp(tile, out=tile)
        kernel_sum += float(tile.sum() - np.trace(tile, offset=start))
    pairs = len(a) * (len(a) - 1)
    return products_sum / pairs, kernel_sum / pairs
