"""Gaussian kernel sums under every divergence: squared distances and the log of a mean kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Return x in float64, or as it is on a device that has none.

    A divergence is a small difference of log means: taken in float32, rounding alone leaves a relative error
    of 1e-6 to 1e-3 in it.
    """
    return x if x.device.type == "mps" else x.double()


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return ``||x_i - y_j||^2`` as (M, N) for x (M, d) and y (N, d), or (M, M) for x with itself.

    Values are never negative, and the diagonal of x with itself is exactly 0. Gradients flow to x and y.
    """
    # ||a||^2 + ||b||^2 - 2ab cancels when rows lie far from the origin. Distances do not see a common shift,
    # so take the mean out first; detached, because their gradient does not see it either.
    if y is None:
        x = x - x.detach().mean(dim=0)
        return _gram_distances(x, x).fill_diagonal_(0.0)
    centre = (x.detach().mean(dim=0) + y.detach().mean(dim=0)) / 2
    return _gram_distances(x - centre, y - centre)


def _gram_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(dim=1).unsqueeze(1) + y.square().sum(dim=1)
    return (squares - 2 * (x @ y.T)).clamp(min=0.0)


def log_mean_kernel(x: Tensor, y: Tensor | None, bandwidth: float, *, exclude_diagonal: bool = False) -> Tensor:
    """Return ``log mean_ij exp(-||x_i - y_j||^2 / (2 bandwidth^2))`` as a scalar; y None means x with itself.

    x is (M, d), y (N, d), of one dtype, which is the result's. ``exclude_diagonal`` leaves the M pairs (i, i)
    of x with itself out of sum and count. The logsumexp is over the exponents, never over kernel values, so
    the result stays finite where every kernel value underflows.
    """
    exponents = squared_distances(x, y) / (-2 * bandwidth**2)
    pairs = exponents.numel()
    if exclude_diagonal:
        exponents = exponents.fill_diagonal_(-math.inf)
        pairs -= len(exponents)
    return torch.logsumexp(exponents.flatten(), dim=0) - math.log(pairs)
