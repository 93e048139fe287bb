"""Metrics of two clouds of pairs from mean kernel values: centroid gap, D_CS, MMD, energy, pairs against strangers.

Rows are pairs, so the two clouds are not independent samples: an unbiased estimate leaves the pairs (i, i) out of the
cross term as well as out of the others (Gretton et al., JMLR 2012, lemma 6 of section 3.1: the one-sample U statistic
of h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)). With them, a U estimate is too low where pairs are
alike. V estimates keep every pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import DISTANCE, Means


def centroid_metrics(linear: Means) -> dict[str, Floats]:
    """||mx - my||, plug-in, and its square without what is only sampling noise, from mean cosines."""
    return {
        "centroid_gap": np.sqrt(_mmd(linear, diagonals=True)),
        "squared_gap_debiased": _mmd(linear, diagonals=False),
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


def margin_metrics(linear: Means, centred_square: Means) -> dict[str, Floats]:
    """How far pairs stand out from strangers, and what is left of the distance between strangers, means taken away.

    From mean cosines, and the mean square of strangers' inner products once each modality's mean is taken away: the
    variance that they are standardised by. A shift of either cloud, or a factor, changes neither metric.
    """
    margin = linear.pair - linear.cross
    deviation = np.sqrt(np.maximum(centred_square.cross, 0))
    within = 2 - linear.image - linear.text
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "margin_standardised": np.where(deviation > 1e-9, margin / deviation, 0.0),
            "residual_ratio": np.where(within > 1e-12, 1 - 2 * margin / within, 1.0),
        }


def uniformity_metrics(potential: Means) -> dict[str, Floats]:
    """log mean exp(-2 ||a - b||^2) over i != j: images, texts, and both pooled; ``potential`` at bandwidth 0.5."""
    n = potential.n
    # Pooled are 2n rows; the two of a pair are different ones.
    across = 2 * (n * (n - 1) * potential.cross + n * potential.pair)
    pooled = (n * (n - 1) * (potential.image + potential.text) + across) / (2 * n * (2 * n - 1))
    names = ("uniformity_image", "uniformity_text", "uniformity_pooled")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [np.log(mean) + potential.log_unit for mean in (potential.image, potential.text, pooled)]
    return dict(zip(names, values, strict=True))


def no_gap_levels(whole: Mapping[str, float]) -> dict[str, float]:
    """What V estimates read on average without a gap: V less U, the bias that U is free of; U's own level is 0.

    For the centroid gap that is sqrt(mean squared residual / (N - 1)) exactly, residuals being those of pairs once each
    modality's mean is taken away.
    """
    levels = {}
    for key, value in whole.items():
        name, at, bandwidth = key.partition("@")
        if key == "centroid_gap":
            levels[key] = float(np.sqrt(max(value**2 - whole["squared_gap_debiased"], 0.0)))
        elif name.endswith("_v"):
            # V never is below 0, and V less U only by rounding or with a handful of pairs.
            levels[key] = max(value - whole[f"{name[:-1]}u{at}{bandwidth}"], 0.0)
        else:
            levels[key] = 0.0
    return levels


def _kept(mean: Floats, n: Floats, own: Floats | float) -> Floats:
    """The mean over all (i, j), from that over i != j and that over (i, i)."""
    kept: Floats = ((n - 1) * mean + own) / n
    return kept


def _cs(kernel: Means, diagonals: bool) -> Floats:
    image, text, cross = kernel.image, kernel.text, kernel.cross
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log(mean) for mean in (image, text)]
        if diagonals:
            # The means are in units that may be far below 1, the kernel of a row with itself.
            own = -kernel.log_unit - np.log(kernel.n)
            logs = [np.logaddexp(np.log1p(-1 / kernel.n) + log, own) for log in logs]
            cross = _kept(cross, kernel.n, kernel.pair)
        divergence: Floats = logs[0] + logs[1] - 2 * np.log(cross)
    return _from_zero(divergence) if diagonals else divergence


def _mmd(kernel: Means, diagonals: bool) -> Floats:
    unit = np.exp(kernel.log_unit)
    image, text, cross = unit * kernel.image, unit * kernel.text, unit * kernel.cross
    if diagonals:
        image, text = (_kept(mean, kernel.n, kernel.own) for mean in (image, text))
        cross = _kept(cross, kernel.n, unit * kernel.pair)
    squared: Floats = image + text - 2 * cross
    return _from_zero(squared) if diagonals else squared


def _from_zero(of_all: Floats) -> Floats:
    """V estimates are 0 or more, but for rounding."""
    return np.maximum(of_all, 0)
