"""Choice of the Gaussian kernel's bandwidth sigma."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows, same_width
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.objectives.kernels import widen

Bandwidth: TypeAlias = float | Literal["median"]


@torch.no_grad()
def median_bandwidth(x: ArrayLike, y: ArrayLike, sample: int = 512) -> float:
    """Return sigma by the median heuristic: the median distance between two distinct rows of x and y pooled.

    Convention: the median of Euclidean distances ``||z_i - z_j||, i < j``, z being the rows of x (M, d) and
    y (N, d) together; not of their squares, and without the factor 1/sqrt 2 that some authors put in. Above
    ``sample`` rows, that many evenly spaced ones stand for all, so nothing is random. The result is a plain
    float: no gradient flows through it.

    Raises InputError if sigma is 0 (half of the pairs or more coincide) or if a row is not finite.
    """
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    if sample < 2:
        raise InputError(f"sample: expected at least 2 rows, got {sample}")
    # Differences, not the Gram expansion: equal rows must give exactly 0 here.
    distances = torch.pdist(_pooled_sample(x, y, sample)).sort().values
    if not distances[-1].isfinite():  # NaN is sorted last
        raise InputError('bandwidth "median": the rows hold NaN or infinity')
    # An even number has two middle values: their mean, as numpy has it, where torch.median takes the lower.
    sigma = float(distances[(len(distances) - 1) // 2 : len(distances) // 2 + 1].mean())
    if sigma == 0:
        raise InputError(
            'bandwidth "median" is 0: at least half of the pairs of rows coincide (collapsed embeddings?)',
            "Set a fixed bandwidth instead.",
        )
    return sigma


def _pooled_sample(x: Tensor, y: Tensor, sample: int) -> Tensor:
    """At most ``sample`` evenly spaced rows of x and y laid end to end."""
    rows = len(x) + len(y)
    kept = torch.linspace(0, rows - 1, min(rows, sample), dtype=torch.float64).round().long().to(x.device)
    in_x = kept < len(x)
    return torch.cat([widen(x[kept[in_x]]), widen(y[kept[~in_x] - len(x)])])


def resolve_bandwidth(bandwidth: float | str, x: Tensor, y: Tensor) -> float:
    """Return sigma as a float: ``bandwidth`` itself, or the median heuristic on x (M, d) and y (N, d).

    Raises InputError unless it is a finite number above 0 or "median".
    """
    if isinstance(bandwidth, str):
        if bandwidth == "median":
            return median_bandwidth(x, y)
        raise InputError(f'bandwidth: expected a number above 0 or "median", got {bandwidth!r}')
    sigma = float(bandwidth)
    if not (math.isfinite(sigma) and sigma > 0):
        raise InputError(f'bandwidth: expected a finite number above 0 or "median", got {bandwidth}')
    return sigma
