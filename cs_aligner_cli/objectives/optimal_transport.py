"""Optimal transport between two samples: sliced Wasserstein and the Sinkhorn divergence."""

from __future__ import annotations

import contextlib
import math
import sys

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_float64, l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package

# How often the steps of Sinkhorn's annealing are doubled at most: from 0.5 a step to 0.9986.
_DOUBLINGS = 10


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
    _check_power(p)
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


def sinkhorn(
    x: ArrayLike, y: ArrayLike, blur: float = 0.05, p: int = 2, scaling: float = 0.5, tolerance: float = 0.01
) -> Tensor:
    """Return the debiased Sinkhorn divergence between x (M, d) and y (N, d) as a scalar tensor.

    ``OT(x, y) - OT(x, x)/2 - OT(y, y)/2`` with cost ``||a - b||^p / p`` and entropic regularisation ``blur^p``
    (Feydy et al., AISTATS 2019), p being 1 or 2, by geomloss' SamplesLoss, its "tensorized" backend. Between
    the Wasserstein cost as blur goes to 0 (half the squared 2-Wasserstein distance for p = 2) and half a squared
    maximum mean discrepancy with kernel ``-||a - b||^p / p`` as it grows. ``blur`` is a length in the units of
    the rows; geomloss anneals down to it, multiplying by ``scaling`` at every step. It has no test of convergence
    (with 0.5 its value lies up to a quarter too low on rows of few dimensions), so the annealing is taken again with
    twice as many steps until the value changes by no more than ``tolerance``, as a share of it.

    Symmetric, 0 for equal samples, and up to convergence never negative; invariant under a common shift and
    rotation. The gradient is the converged one's (the potentials take no part in it), so it can be taken once.
    Memory is several M x N matrices in float64.

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is. Rows that are
    not finite give NaN. Raises InputError for rows that do not fit together, options out of range, a value that
    does not converge, and where geomloss is not installed.
    """
    x, y, dtype = as_float64(x, y)
    _check_power(p)
    if not (math.isfinite(blur) and blur > 0):
        raise InputError(f"blur: expected a finite number above 0, got {blur}")
    if not 0 < scaling < 1:
        raise InputError(f"scaling: expected a number between 0 and 1, got {scaling}")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance: expected a finite number above 0, got {tolerance}")
    require_geomloss()
    # geomloss takes distances from a Gram matrix, which cancels far from the origin; a common shift changes nothing.
    centre = (x.detach().mean(dim=0) + y.detach().mean(dim=0)) / 2
    x, y = x - centre, y - centre
    diameter = _diameter(x, y)
    if not math.isfinite(diameter):
        return ((x.sum() + y.sum()) * math.nan).to(dtype)
    # Annealing starts at the diameter, and could not start at 0.
    return _converged(x, y, blur, p, scaling, max(diameter, blur), tolerance).to(dtype)


def _converged(x: Tensor, y: Tensor, blur: float, p: int, scaling: float, diameter: float, tolerance: float) -> Tensor:
    """geomloss's value once twice as many steps of annealing change it by no more than ``tolerance`` of itself."""
    from geomloss import SamplesLoss

    # What equal clouds leave of rounding is no change.
    least = 1e-9 * diameter**p
    former = math.nan
    for _ in range(_DOUBLINGS):
        loss = SamplesLoss("sinkhorn", p=p, blur=blur, scaling=scaling, diameter=diameter, backend="tensorized")
        # geomloss leaves gradients switched on, also for a caller who had switched them off.
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            value: Tensor = loss(x, y)
        found = float(value.detach())
        if abs(found - former) <= max(tolerance * abs(found), least):
            return value
        former, scaling = found, math.sqrt(scaling)
    raise InputError(
        f"sinkhorn: the value still changes by more than {tolerance:g} of itself at a scaling of {scaling**2:.4f}",
        "A larger blur converges in fewer steps; or raise tolerance.",
    )


def require_geomloss() -> None:
    """Raise InputError unless geomloss, which ``sinkhorn`` needs, can be imported."""
    require_package("geomloss", "the sinkhorn divergence")
    # geomloss imports pykeops where that is installed, which greets on stdout; but stdout carries data.
    with contextlib.redirect_stdout(sys.stderr):
        import geomloss  # noqa: F401


def _diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around all rows: at least the largest distance between two of them."""
    pooled = torch.cat([x, y]).detach()
    return float((pooled.amax(dim=0) - pooled.amin(dim=0)).norm())


def _check_power(p: int) -> None:
    if p not in (1, 2):
        raise InputError(f"p: expected 1 or 2, got {p}")
