"""Metrics of two clouds from mean kernel values: the centroid gap, D_CS, MMD, energy distance, uniformity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import Means

DISTANCE = 0.0  # the key of -||a - b|| among the kernels, beside the bandwidths of Gaussians


def centroid_metrics(linear: Means) -> dict[str, Floats]:
    """||mx - my||, plug-in and without what is only sampling noise, from mean cosines."""
    within = linear.image + linear.text
    plug_in = _kept(linear.image, linear.m, 1.0) + _kept(linear.text, linear.n, 1.0)
    return {
        "centroid_gap": np.sqrt(np.maximum(plug_in - 2 * linear.cross, 0)),
        "centroid_gap_debiased": np.sqrt(np.maximum(within - 2 * linear.cross, 0)),
    }


def divergence_metrics(kernels: Mapping[float, Means], bandwidths: Sequence[float]) -> dict[str, Floats]:
    """D_CS V and U, then MMD^2 V and U, at every bandwidth, then the energy distance V and U."""
    found: dict[str, Floats] = {}
    for name, metric in (("cs_divergence", _cs), ("mmd", _mmd)):
        for estimator in "vu":
            for s in bandwidths:
                found[f"{name}_{estimator}@{s:.4g}"] = metric(kernels[s], diagonals=estimator == "v")
    for estimator in "vu":
        found[f"energy_{estimator}"] = _mmd(kernels[DISTANCE], diagonals=estimator == "v")
    return found


def uniformity_metrics(potential: Means) -> dict[str, Floats]:
    """log mean exp(-2 ||a - b||^2) over i != j: images, texts, and both pooled; ``potential`` at bandwidth 0.5."""
    m, n = potential.m, potential.n
    image, text, cross = m * (m - 1) * potential.image, n * (n - 1) * potential.text, 2 * m * n * potential.cross
    pooled = (image + text + cross) / ((m + n) * (m + n - 1))
    names = ("uniformity_image", "uniformity_text", "uniformity_pooled")
    with np.errstate(divide="ignore"):
        values = [np.log(mean) + potential.log_unit for mean in (potential.image, potential.text, pooled)]
    return dict(zip(names, values, strict=True))


def _kept(mean: Floats, rows: Floats, own: float) -> Floats:
    """The mean with the pairs (i, i), from that without them."""
    return ((rows - 1) * mean + own) / rows


def _cs(kernel: Means, diagonals: bool) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        image, text, cross = (np.log(mean) for mean in (kernel.image, kernel.text, kernel.cross))
        if diagonals:
            # The means are in units that may be far below 1, the kernel of a row with itself.
            own = -kernel.log_unit
            image = np.logaddexp(np.log1p(-1 / kernel.m) + image, own - np.log(kernel.m))
            text = np.logaddexp(np.log1p(-1 / kernel.n) + text, own - np.log(kernel.n))
        divergence: Floats = image + text - 2 * cross
    return divergence


def _mmd(kernel: Means, diagonals: bool) -> Floats:
    unit = np.exp(kernel.log_unit)
    image, text = unit * kernel.image, unit * kernel.text
    if diagonals:
        image, text = _kept(image, kernel.m, kernel.own), _kept(text, kernel.n, kernel.own)
    squared: Floats = image + text - 2 * unit * kernel.cross
    return squared
