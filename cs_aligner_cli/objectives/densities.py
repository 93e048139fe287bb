"""Divergences of kernel density estimates at the samples themselves: Hoelder's, and CS for several samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, same_width, type_of_all
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth
from cs_aligner_cli.objectives.kernels import Gaussian
from cs_aligner_cli.objectives.pairsums import wide
from cs_aligner_cli.objectives.tiles import TiledRows, tiles


def hoelder_divergence(
    x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, alpha: float = 2.0, gamma: float = 2.0
) -> Tensor:
    """Return twice the Hoelder divergence between the samples x (M, d) and y (N, d), a scalar tensor.

    ``-2 log( int p^(gamma/alpha) q^(gamma/beta) / ((int p^gamma)^(1/alpha) (int q^gamma)^(1/beta)) )`` with
    1/alpha + 1/beta = 1 (Nielsen, Sun & Marchand-Maillet, On Hoelder projective divergences, Entropy 2017). The
    integrals are means, over the samples, of Gaussian kernel density estimates (diagonals kept); the first one is the
    average of its means over x and over y. alpha = gamma = 2 is ``cs_divergence`` exactly, which is what the factor
    2 is for. 0 for equal samples; for alpha = 2 symmetric. Unlike the divergence itself, its estimate can fall
    below 0 for gamma other than 2.

    Precision, memory and ``bandwidth`` are those of ``cs_divergence``. Raises InputError as that does, and unless
    alpha > 1 and gamma > 0.
    """
    x, y = _samples([x, y])
    if not (math.isfinite(alpha) and alpha > 1):
        raise InputError(f"alpha: expected a number above 1, got {alpha:g}")
    if not (math.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma: expected a number above 0, got {gamma:g}")
    kernel = Gaussian(resolve_bandwidth(bandwidth, x, y))
    beta = alpha / (alpha - 1)
    p_x, q_y, q_x, p_y = (row_log_densities(*pair, kernel) for pair in ((x, x), (y, y), (x, y), (y, x)))
    a, b = gamma / alpha, gamma / beta
    over_x, over_y = _log_mean((a - 1) * p_x + b * q_x), _log_mean(a * p_y + (b - 1) * q_y)
    both = torch.logaddexp(over_x, over_y) - math.log(2)
    own = _log_mean((gamma - 1) * p_x) / alpha + _log_mean((gamma - 1) * q_y) / beta
    return (2 * (own - both)).to(x.dtype)


def generalized_cs_divergence(samples: Sequence[ArrayLike], bandwidth: float | Sequence[float]) -> Tensor:
    """Return the Cauchy-Schwarz divergence generalised to m >= 2 samples (N_t, d), a scalar tensor.

    ``-m log int prod_t p_t + sum_t log int p_t^m``: m times the logarithm of Hoelder's inequality for m functions
    (after Lu et al., Generalized Cauchy-Schwarz Divergence, arXiv 2405.04061). The integrals are means, over the
    samples, of Gaussian kernel density estimates with their diagonals; the first one is averaged over the samples
    it can be taken on. Two samples give ``cs_divergence`` exactly. The order of the samples does not matter, and
    samples that are all equal give 0.

    Costs m^2 passes over pairs; precision and memory as in ``cs_divergence``. Raises InputError as that does, and
    for fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(f"samples: expected at least two, got {len(samples)}")
    clouds = _samples(samples)
    m = len(clouds)
    kernel = Gaussian(resolve_bandwidth(bandwidth, clouds[0], clouds[1]))
    product, own = [], []
    for t, cloud in enumerate(clouds):
        densities = [row_log_densities(cloud, other, kernel) for other in clouds]
        product.append(_log_mean(torch.stack(densities[:t] + densities[t + 1 :]).sum(dim=0)))
        own.append(_log_mean((m - 1) * densities[t]))
    return (torch.stack(own).sum() - m * _log_mean(torch.stack(product))).to(clouds[0].dtype)


def row_log_densities(x: Tensor, y: Tensor, kernel: Gaussian) -> Tensor:
    """``log mean_j k(x_i, y_j)`` for every row of x (M, d) over y (N, d), (M,) in float64; differentiable in both."""
    return _RowLogDensities.apply(x, y, kernel)  # type: ignore[no-any-return]


class _RowLogDensities(torch.autograd.Function):
    """Two passes over tiles: the log-sums, and in the backward pass the weights that follow from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kernel: Gaussian) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            rows = _centred(x, y)
            # The nearest row decides the reference, so that no sum can underflow.
            nearest = x.new_full((len(x),), -math.inf)
            sums = torch.zeros_like(nearest, dtype=wide(x))
            for i, _, h in tiles(*rows, kernel.scale):
                reference = torch.maximum(nearest[i], h.amax(dim=1))
                shrink = (nearest[i] - reference).exp_()
                values = kernel.evaluate(h, reference.unsqueeze(1)).values
                sums[i] = sums[i] * shrink + values.sum(dim=1)
                nearest[i] = reference
            result = sums.log() + nearest.to(sums.dtype) - math.log(len(y))
        ctx.save_for_backward(x, y, result)
        ctx.kernel = kernel
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, result = ctx.saved_tensors
        rows, upstream = _centred(x, y), upstream.to(x.dtype)
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        x_slopes, y_slopes = x.new_zeros(len(x)), y.new_zeros(len(y))
        with torch.autocast(device_type=x.device.type, enabled=False):
            for i, j, h in tiles(*rows, ctx.kernel.scale):
                tile = ctx.kernel.evaluate(h, result[i].to(x.dtype).unsqueeze(1))
                weights = tile.slopes.mul_(upstream[i].unsqueeze(1) * (tile.factor / len(y)))
                x_slopes[i] += weights.sum(dim=1)
                y_slopes[j] += weights.sum(dim=0)
                rows[1].add_weighted(weights, j, dx[i])
                rows[0].add_weighted(weights.T, i, dy[j])
        dx.addcmul_(x_slopes.unsqueeze(1), rows[0].x, value=-1)
        dy.addcmul_(y_slopes.unsqueeze(1), rows[1].x, value=-1)
        return dx, dy, None


def _centred(x: Tensor, y: Tensor) -> tuple[TiledRows, TiledRows]:
    centre = (x.mean(dim=0) + y.mean(dim=0)) / 2
    return TiledRows(x - centre, "fp32"), TiledRows(y - centre, "fp32")


def _samples(arrays: Sequence[ArrayLike]) -> list[Tensor]:
    clouds = [as_rows(array, f"sample {number}") for number, array in enumerate(arrays, 1)]
    for cloud in clouds[1:]:
        same_width(clouds[0], cloud)
    dtype = type_of_all(*clouds)
    return [cloud.to(dtype) for cloud in clouds]


def _log_mean(logs: Tensor) -> Tensor:
    return logs.logsumexp(dim=0) - math.log(len(logs))
