"""Choice of the Gaussian kernel's bandwidth sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, same_width, warn_unless_unit
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.kernels import LARGEST_SIGMA

# Distances that differ by less than this share of their mean are equal but for rounding.
_ROUNDING = 1e-12
Bandwidth: TypeAlias = float | Sequence[float] | Literal["median"]


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


@torch.no_grad()
def auto_bandwidth(x: ArrayLike, y: ArrayLike, effective_share: float = 0.9, sample: int = 1024) -> float:
    """Return the smallest sigma at which at least ``effective_share`` of the cross pairs carry the gradient.

    The gradient of D_CS weights the pair (x_i, y_j) by k_ij / sum k. Kish's effective number of pairs,
    ``(sum k)^2 / sum k^2``, over their count M N says what share of them counts: towards 0 for a narrow kernel,
    where few pairs carry everything, and towards 1 for a wide one, which sees only the centroids. The smallest sigma
    above a bound on that share is the finest kernel whose gradient still is a property of the two distributions.

    x (M, d) and y (N, d); above ``sample`` rows of either, that many evenly spaced ones stand for all. Found by
    bisection of log sigma to three digits; a plain float, outside the graph.

    Raises InputError unless 0 < effective_share < 1, and if all distances are equal or not finite, or there is but one.
    """
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    if not 0 < effective_share < 1:
        raise InputError(f"effective_share: expected a share between 0 and 1, got {effective_share:g}")
    first, second = (double(rows[_evenly(len(rows), sample, rows.device)]) for rows in (x, y))
    squares = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").square().flatten()
    if len(squares) < 2:
        raise InputError('bandwidth "auto": one row of each cloud, expected more of either', "Set a fixed one instead.")
    spread = float(squares.std())
    if not (math.isfinite(spread) and spread > _ROUNDING * float(squares.mean())):
        raise InputError(
            'bandwidth "auto": the distances between the clouds are all equal or not finite (collapsed embeddings?)',
            "Set a fixed bandwidth instead.",
        )

    def share(sigma: float) -> float:
        exponents = squares / (-2 * sigma**2)
        return math.exp(float(2 * exponents.logsumexp(0) - (2 * exponents).logsumexp(0)) - math.log(len(exponents)))

    # Exponents d^2 / (2 sigma^2) of standard deviation 100 are far below any useful share, of 0.001 far above.
    low, high = math.sqrt(spread / 200), math.sqrt(spread / 0.002)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if share(middle) >= effective_share else (middle, high)
    return high


def _evenly(rows: int, sample: int, device: torch.device) -> Tensor:
    """At most ``sample`` evenly spaced row numbers."""
    return torch.linspace(0, rows - 1, min(rows, sample), dtype=torch.float64).round().long().to(device)


def _pooled_sample(x: Tensor, y: Tensor, sample: int) -> Tensor:
    """At most ``sample`` evenly spaced rows of x and y laid end to end, float64."""
    kept = _evenly(len(x) + len(y), sample, x.device)
    in_x = kept < len(x)
    return torch.cat([double(x[kept[in_x]]), double(y[kept[~in_x] - len(x)])])


def resolve_bandwidth(bandwidth: Bandwidth, x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Return sigma, or the several of a mixture: as given, or the median heuristic on x (M, d) and y (N, d).

    Raises InputError unless they are numbers above 0 and up to 1e150, at least one, or "median"; warns
    (NotUnitRowsWarning) where numbers are given for rows that are not of unit length.
    """
    if isinstance(bandwidth, str):
        if bandwidth == "median":
            return (median_bandwidth(x, y),)
        raise InputError(f'bandwidth: expected a number above 0 or "median", got {bandwidth!r}')
    try:
        sigmas = tuple(map(float, bandwidth)) if isinstance(bandwidth, Sequence) else (float(bandwidth),)
    except (TypeError, ValueError):
        raise InputError(f'bandwidth: expected numbers above 0 or "median", got {bandwidth!r}') from None
    if not sigmas:
        raise InputError("bandwidth: a mixture needs at least one sigma, got none")
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma > 0):
            raise InputError(f'bandwidth: expected a finite number above 0 or "median", got {sigma:g}')
        if sigma > LARGEST_SIGMA:
            raise InputError(f"bandwidth: expected a sigma of at most {LARGEST_SIGMA:g}, got {sigma:g}")
    warn_unless_unit(x, y, unit_of="a bandwidth such as 0.7071", remedy=', or take bandwidth="median"', depth=3)
    return sigmas
