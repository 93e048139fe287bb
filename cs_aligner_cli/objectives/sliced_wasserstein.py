"""Sliced Wasserstein distances between two samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_float64, l2_normalize
from cs_aligner_cli.common.errors import InputError


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, projections: int = 128, p: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Return the sliced Wasserstein distance to the power p between x (M, d) and y (N, d) as a scalar tensor.

    ``mean_u int_0^1 |F_x^-1(t) - F_y^-1(t)|^p dt`` over the quantile functions of the samples projected onto
    random unit directions u (Bonneel et al. 2015), p being 1 or 2; in the units of the rows to the power p. The
    integral is exact for M != N: between two merged quantile levels both quantile functions are constant.

    Every call draws ``projections`` new directions, uniform on the sphere, from ``generator`` or else from
    torch's global generator of the CPU, so that one seed gives the same directions on every device. For equal
    directions it is symmetric, never negative, and 0 for equal samples; in the mean over directions it is
    invariant under a common shift and rotation, and on a mean shift m alone it is E|u.m|^p, ||m||^2 / d for p = 2.

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is. Raises
    InputError for rows that do not fit together, projections below 1 and a p that is neither 1 nor 2.
    """
    x, y, dtype = as_float64(x, y)
    check_power(p)
    if projections < 1:
        raise InputError(f"projections: expected at least 1, got {projections}")
    directions = random_directions(projections, x.shape[1], generator).to(x.device)
    sorted_x, sorted_y = ((rows @ directions).sort(dim=0).values for rows in (x, y))
    of_x, of_y, weights = _merged_quantiles(len(x), len(y), x.device)
    distances = (sorted_x[of_x] - sorted_y[of_y]).abs()
    powers = distances if p == 1 else distances.square()
    value: Tensor = (weights @ powers).mean()
    return value.to(dtype)


def random_directions(count: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Random unit directions as the columns of (width, count), float64."""
    device = "cpu" if generator is None else generator.device
    return l2_normalize(torch.randn(count, width, dtype=torch.float64, generator=generator, device=device)).T


def _merged_quantiles(m: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks into m and n sorted values, and widths that sum to 1, of the pieces between merged quantile levels.

    Levels i / m and j / n are compared as the integers i n and j m: equal ones are found without rounding.
    """
    levels = torch.unique(torch.cat([torch.arange(1, m + 1) * n, torch.arange(1, n + 1) * m]))
    widths = torch.diff(levels, prepend=torch.zeros(1, dtype=torch.int64)).double() / (m * n)
    last = levels - 1
    return (last // n).to(device), (last // m).to(device), widths.to(device)


def check_power(p: int) -> None:
    """Raise InputError for an order of transport other than 1 and 2."""
    if p not in (1, 2):
        raise InputError(f"p: expected 1 or 2, got {p}")
