"""Cauchy-Schwarz divergences between many subsets of one pool of unit rows, in one pass over its kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Blocks of this many rows stay in the processor's cache, which is several times faster than the whole matrix.
BLOCK = 512


def subset_divergences(z: Tensor, first: Tensor, second: Tensor, bandwidths: Sequence[float]) -> dict[str, Tensor]:
    """D_CS between subsets of the unit rows z (N, d), float64, for several bandwidths and choices of subsets.

    ``first`` and ``second`` are 0/1 masks (N, draws), disjoint, with at least two rows each in every draw.
    Returns ``cs_divergence_v@s`` for every bandwidth s, then ``cs_divergence_u@s``, each (draws,): the
    numbers that ``objectives.cs_divergence(z[first], z[second], s, estimator)`` gives one by one, but with
    the distances computed once for all. No N x N matrix is held. Only bandwidths far below any useful one
    (0.03) can make the cross term underflow, to an infinite divergence.
    """
    sums, nearest = _kernel_sums(z, first, second, bandwidths)
    m, n = first.sum(dim=0), second.sum(dim=0)
    kept, left_out = {}, {}
    for s, (aa, bb, ab) in zip(bandwidths, sums.log(), strict=True):
        # The sums are relative to the nearest pair's kernel value, so the diagonal's ones have to be too.
        unit = nearest / (2 * s * s)
        cross = 2 * (ab - (m * n).log())
        within = aa.logaddexp(m.log() + unit) + bb.logaddexp(n.log() + unit)
        kept[f"cs_divergence_v@{s:.4g}"] = within - 2 * (m * n).log() - cross
        left_out[f"cs_divergence_u@{s:.4g}"] = aa + bb - (m * (m - 1) * n * (n - 1)).log() - cross
    return {**kept, **left_out}


def _kernel_sums(z: Tensor, first: Tensor, second: Tensor, bandwidths: Sequence[float]) -> tuple[Tensor, float]:
    """Return sums of k(z_i, z_j), i != j, within first, within second, across: (bandwidths, 3, draws).

    They are relative to exp(-nearest / (2 s^2)), nearest being the smallest squared distance between two
    rows, which is returned with them: it is found on the way, and what was summed before is rescaled.
    """
    sums = torch.zeros(len(bandwidths), 3, first.shape[1], dtype=torch.float64)
    widths = torch.tensor([2 * s * s for s in bandwidths], dtype=torch.float64)
    masks = torch.cat([first, second], dim=1)
    nearest = 4.0
    for start in range(0, len(z), BLOCK):
        squared = _distances_above(z, start)
        closer = min(nearest, float(squared.min()))
        sums *= torch.exp((closer - nearest) / widths)[:, None, None]
        nearest = closer
        a, b = masks[start : start + BLOCK].chunk(2, dim=1)
        for total, width in zip(sums, widths, strict=True):
            to_a, to_b = (((nearest - squared) / width).exp_() @ masks[start:]).chunk(2, dim=1)
            # Every unordered pair is seen once, and counts twice within a subset.
            total += torch.stack([2 * (a * to_a).sum(0), 2 * (b * to_b).sum(0), (a * to_b + b * to_a).sum(0)])
    return sums, nearest


def _distances_above(z: Tensor, start: int) -> Tensor:
    """||z_i - z_j||^2 of BLOCK unit rows i from ``start`` and all j >= start; infinite where j <= i."""
    squared = (z[start : start + BLOCK] @ z[start:].T).mul_(-2).add_(2).clamp_(min=0)
    seen = torch.ones(len(squared), len(squared), dtype=torch.bool).tril()
    squared[:, : len(squared)].masked_fill_(seen, math.inf)
    return squared


def uniformity(x: Tensor) -> float:
    """log mean_{i<j} exp(-2 ||x_i - x_j||^2) of unit rows x (N, d), float64 (Wang & Isola 2020, t = 2)."""
    blocks = [_distances_above(x, start).mul_(-2).flatten() for start in range(0, len(x), BLOCK)]
    total = torch.stack([block.logsumexp(dim=0) for block in blocks]).logsumexp(dim=0)
    return float(total) - math.log(len(x) * (len(x) - 1) / 2)
