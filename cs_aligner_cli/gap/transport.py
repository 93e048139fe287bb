"""How far mass must move between two clouds of equal size: Frechet's covariance part, sliced Wasserstein."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.objectives import sliced_wasserstein
from cs_aligner_cli.objectives.sliced_wasserstein import random_directions

_PROJECTIONS = 128


def frechet_covariance(x: Tensor, y: Tensor) -> float:
    """tr(Sx + Sy - 2 (Sx Sy)^(1/2)) of x (M, d) and y (N, d), S = centred^T centred / (rows - 1).

    The part of the squared Frechet distance (Dowson & Landau 1982, as in FID) that the means leave. Computed from the
    centred rows X, Y themselves: the trace of (Sx Sy)^(1/2) is the sum of the singular values of X Y^T, scaled, so no
    covariance has to be inverted or shrunk, and fewer rows than dimensions do no harm.
    """
    a, b = (_reduced((z - z.mean(dim=0)) / math.sqrt(len(z) - 1)) for z in (x, y))
    value = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float(value.clamp(min=0))


def frechet_of_covariances(of_x: Floats, of_y: Floats) -> float | None:
    """``frechet_covariance`` from covariances (d, d), to fewer digits; None where of_x is not positive definite."""
    try:
        factor = np.linalg.cholesky(of_x)
    except np.linalg.LinAlgError:
        return None
    squares = np.linalg.eigvalsh(factor.T @ of_y @ factor)
    return max(float(np.trace(of_x) + np.trace(of_y) - 2 * np.sqrt(np.maximum(squares, 0)).sum()), 0.0)


def _reduced(rows: Tensor) -> Tensor:
    """R (r, d) with R^T R = rows^T rows, where there are more rows than dimensions."""
    if len(rows) <= rows.shape[1]:
        return rows
    # Cholesky's factor costs a third of QR's; rows that span fewer dimensions may have none.
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(rows.T @ rows, upper=True)
    if failed:
        factor = torch.linalg.qr(rows, mode="r").R
    return factor


def sliced_distance(x: Tensor, y: Tensor, seed: int) -> float:
    """The sliced 2-Wasserstein distance of x (M, d) and y (N, d), in the units of the rows (128 directions)."""
    generator = torch.Generator().manual_seed(seed)
    return math.sqrt(float(sliced_wasserstein(x, y, _PROJECTIONS, 2, generator)))


def projected(x: Tensor, y: Tensor, seed: int) -> Tensor:
    """(2N, 128) both clouds along the directions of ``sliced_distance``, x first."""
    directions = random_directions(_PROJECTIONS, x.shape[1], torch.Generator().manual_seed(seed))
    return torch.cat([x, y]) @ directions
