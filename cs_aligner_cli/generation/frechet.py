"""The Frechet distance of two samples of features, its two parts apart, and its floor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.samples import samples


def frechet_distance(x: ArrayLike, y: ArrayLike) -> dict[str, float]:
    """The squared Frechet distance between Gaussians fitted to x (M, d) and y (N, d), FID where d are Inception's.

    ``||mx - my||^2 + tr(Cx + Cy - 2 (Cx^1/2 Cy Cx^1/2)^1/2)`` with the unbiased sample covariances (Dowson & Landau
    1982; Heusel et al. 2017), in float64: {"distance", "mean_part", "covariance_part"}, which sum up. Unlike
    ``objectives.frechet`` nothing is shrunk, so that published FIDs can be set beside it. It falls with the sample
    size: compare at one size only.

    The trace of the root is the sum of the singular values of Fx Fy^T, where F^T F = C: no matrix root is taken, and no
    eigenvalue that is only rounding has its root added.

    Raises InputError for rows that do not fit together or are not finite, and for fewer than two rows.
    """
    x, y = _samples(x, y)
    mean_part = float((x.mean(dim=0) - y.mean(dim=0)).square().sum())
    fx, fy = _factor(x), _factor(y)
    traces = float(fx.square().sum() + fy.square().sum())
    covariance_part = max(traces - 2 * float(torch.linalg.svdvals(fx @ fy.T).sum()), 0.0)  # rounding may go below
    return {
        "distance": mean_part + covariance_part,
        "mean_part": mean_part,
        "covariance_part": covariance_part,
    }


def frechet_floor(x: ArrayLike, seed: int = 0) -> float:
    """What ``frechet_distance`` reads between two random halves of one sample x (N, d), where there is no difference.

    It belongs to samples of N // 2 rows, and so lies above what N rows would read.
    """
    rows, _ = _samples(x, x)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    half = len(rows) // 2
    return frechet_distance(rows[order[:half]], rows[order[half : 2 * half]])["distance"] if half > 1 else float("nan")


def _samples(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
    x, y = samples(x, y)
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise InputError(f"{name}: a covariance needs at least 2 rows, got {len(rows)}")
    return x, y


def _factor(x: Tensor) -> Tensor:
    """F (min(N, d), d) with F^T F the unbiased sample covariance of x (N, d)."""
    centred: Tensor = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    if len(x) > x.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return centred
