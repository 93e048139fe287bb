"""How far mass must move between two clouds of equal size: Frechet's covariance part, sliced Wasserstein."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.gap.results import Smooth
from cs_aligner_cli.objectives import sliced_wasserstein
from cs_aligner_cli.objectives.optimal_transport import random_directions

_PROJECTIONS = 128


def frechet_covariance(x: Tensor, y: Tensor) -> Smooth:
    """tr(Sx + Sy - 2 (Sx Sy)^(1/2)) of row-paired x (N, d), y (N, d), S = centred^T centred / (N - 1).

    The part of the squared Frechet distance (Dowson & Landau 1982, as in FID) that the means leave. Computed from the
    centred rows X, Y themselves: the trace of (Sx Sy)^(1/2) is the sum of the singular values of X Y^T, scaled, so no
    covariance has to be inverted or shrunk, and fewer rows than dimensions do no harm. With X Y^T = U S V^T its
    derivative by the weight of pair i is (U S U^T + V S V^T)_ii / 2.
    """
    a, b = (_centred(z) for z in (x, y))
    (basis_a, small_a), (basis_b, small_b) = _reduced(a), _reduced(b)
    left, values, right = torch.linalg.svd(small_a @ small_b.T, full_matrices=False)
    own = a.square().sum(dim=1) + b.square().sum(dim=1)
    shared = ((basis_a @ left).square() + (basis_b @ right.T).square()) @ values
    value = float((own.sum() - 2 * values.sum()).clamp(min=0))
    return Smooth(value, (own - shared).numpy())


def frechet_between(x: Tensor, y: Tensor) -> float:
    """The value of ``frechet_covariance`` alone, in half the time; x (M, d) and y (N, d) need no pairs."""
    (a, b) = (_reduced(_centred(z))[1] for z in (x, y))
    value = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float(value.clamp(min=0))


def _centred(z: Tensor) -> Tensor:
    centred: Tensor = z - z.mean(dim=0)
    return centred / math.sqrt(len(z) - 1)


def _reduced(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, r) and R (r, d) of rows = Q R, where there are more rows than dimensions."""
    if len(rows) <= rows.shape[1]:
        return torch.eye(len(rows), dtype=rows.dtype), rows
    basis, small = torch.linalg.qr(rows)
    return basis, small


def sliced_distance(x: Tensor, y: Tensor, seed: int) -> float:
    """The sliced 2-Wasserstein distance of x (M, d) and y (N, d), in the units of the rows (128 directions)."""
    generator = torch.Generator().manual_seed(seed)
    return math.sqrt(float(sliced_wasserstein(x, y, _PROJECTIONS, 2, generator)))


def sliced(x: Tensor, y: Tensor, seed: int) -> Smooth:
    """``sliced_distance`` of row-paired x (N, d), y (N, d), with its influence.

    In one dimension the squared distance changes with the weight of x_i by the Kantorovich potential there, whose
    slope is 2 (x - T(x)), T taking each sorted row to its partner (Villani, Optimal Transport, theorem 5.10).
    """
    value = sliced_distance(x, y, seed)
    if not value:
        return Smooth(0.0, np.zeros(len(x)))
    directions = random_directions(_PROJECTIONS, x.shape[1], torch.Generator().manual_seed(seed))
    (along_x, order_x), (along_y, order_y) = ((z @ directions).sort(dim=0) for z in (x, y))
    apart = along_x - along_y
    potential = torch.zeros(len(x), dtype=x.dtype)
    for along, order, slope in ((along_x, order_x, apart), (along_y, order_y, -apart)):
        risen = torch.zeros_like(along)
        risen[1:] = ((along[1:] - along[:-1]) * (slope[1:] + slope[:-1])).cumsum(dim=0)
        risen -= risen.mean(dim=0)
        potential += torch.empty_like(risen).scatter_(0, order, risen).mean(dim=1)
    return Smooth(value, (potential / (2 * value * len(x))).numpy())
