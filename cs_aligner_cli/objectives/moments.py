"""Divergences between the first two moments of two samples: Gaussian KL and Jeffreys, Frechet, CORAL."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_float64
from cs_aligner_cli.common.errors import InputError


class _Gaussian(NamedTuple):
    """Mean (d,), covariance (d, d) and the covariance's lower Cholesky factor (d, d)."""

    mean: Tensor
    covariance: Tensor
    factor: Tensor


def gaussian_kl(x: ArrayLike, y: ArrayLike, shrinkage: float = 0.1) -> Tensor:
    """Return KL(N_x || N_y) in nats between Gaussians fitted to x (M, d) and y (N, d), as a scalar tensor.

    ``(tr(Sy^-1 Sx) + (my - mx)^T Sy^-1 (my - mx) - d + log det Sy - log det Sx) / 2``, with the sample means and
    the shrunk covariances ``S = (1 - shrinkage) C + shrinkage tr(C)/d I`` of the unbiased sample covariance C
    (Ledoit & Wolf 2004, with a fixed weight). ``shrinkage`` is in (0, 1]; without it S is singular where a
    sample has no more rows than dimensions, which is the usual case for a batch of embeddings.

    Not symmetric; up to rounding never negative, and 0 for equal samples. Invariant under a common shift,
    rotation and scaling of both samples. M and N may differ.

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is. Rows that are
    not finite give NaN. Raises InputError for rows that do not fit together, fewer than two rows, a sample whose
    rows all coincide, and a shrinkage out of range.
    """
    p, q, dtype = _fit_both(x, y, shrinkage)
    return _kl(p, q).to(dtype)


def jeffreys(x: ArrayLike, y: ArrayLike, shrinkage: float = 0.1) -> Tensor:
    """Return Jeffreys' divergence KL(N_x || N_y) + KL(N_y || N_x) in nats between fitted Gaussians.

    x is (M, d), y (N, d). Symmetric; fit, other properties, precision and errors are those of ``gaussian_kl``.
    """
    p, q, dtype = _fit_both(x, y, shrinkage)
    return (_kl(p, q) + _kl(q, p)).to(dtype)


def frechet(x: ArrayLike, y: ArrayLike, shrinkage: float = 0.1) -> Tensor:
    """Return the squared Frechet distance between Gaussians fitted to x (M, d) and y (N, d), as a scalar tensor.

    ``||mx - my||^2 + tr(Sx + Sy - 2 (Sx^1/2 Sy Sx^1/2)^1/2)``, the squared 2-Wasserstein distance of the two
    Gaussians (Dowson & Landau 1982; FID is its square form on Inception features, without shrinkage). In the
    squared units of the rows.

    Symmetric; up to rounding never negative, and 0 for equal samples. Invariant under a common shift and
    rotation. Fit, precision and errors are those of ``gaussian_kl``.
    """
    p, q, dtype = _fit_both(x, y, shrinkage)
    # The singular values of Lx^T Ly are the roots of the eigenvalues of Sx^1/2 Sy Sx^1/2, without a squaring that
    # would lose the small ones; singular values alone have a stable gradient, also where two of them coincide.
    roots = torch.linalg.svdvals(p.factor.T @ q.factor)
    traces = p.covariance.trace() + q.covariance.trace()
    value: Tensor = (p.mean - q.mean).square().sum() + traces - 2 * roots.sum()
    return value.to(dtype)


def coral(x: ArrayLike, y: ArrayLike) -> Tensor:
    """Return the CORAL loss ``||Cx - Cy||_F^2 / (4 d^2)`` of x (M, d) and y (N, d) as a scalar tensor.

    C is the unbiased sample covariance (Sun & Saenko 2016, Deep CORAL, equation 1). Blind to the means, and so
    to the centroid gap: symmetric, never negative, and 0 for equal samples, but also for samples that differ by
    a shift. Invariant under a shift of either sample and under a common rotation.

    Precision and errors are those of ``gaussian_kl``, but rows that all coincide are allowed.
    """
    x, y, dtype = _samples(x, y)
    return ((_covariance(x) - _covariance(y)).square().sum() / (4 * x.shape[1] ** 2)).to(dtype)


def _samples(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both samples in float64 and the dtype to return, once each has a covariance."""
    x, y, dtype = as_float64(x, y)
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise InputError(f"{name}: a covariance needs at least 2 rows, got {len(rows)}")
    return x, y, dtype


def _fit_both(x: ArrayLike, y: ArrayLike, shrinkage: float) -> tuple[_Gaussian, _Gaussian, torch.dtype]:
    if not 0 < shrinkage <= 1:
        raise InputError(f"shrinkage: expected a number above 0 and up to 1, got {shrinkage}")
    x, y, dtype = _samples(x, y)
    return _fit(x, "x", shrinkage), _fit(y, "y", shrinkage), dtype


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


def _fit(x: Tensor, name: str, shrinkage: float) -> _Gaussian:
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    sample = _covariance(x)
    if not torch.isfinite(sample.detach()).all():
        # LAPACK would raise; a mean of NaN, through the same graph, makes a value of NaN of it.
        return _Gaussian(x.mean(dim=0) * torch.nan, identity, identity)
    covariance = (1 - shrinkage) * sample + sample.trace() * (shrinkage / x.shape[1]) * identity
    if (x.detach() == x.detach()[0]).all():
        raise InputError(f"{name}: all {len(x)} rows coincide, so no Gaussian can be fitted (collapsed embeddings?)")
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise InputError(f"{name}: the covariance is singular with shrinkage {shrinkage}", "Set a larger shrinkage.")
    return _Gaussian(x.mean(dim=0), covariance, factor)


def _kl(p: _Gaussian, q: _Gaussian) -> Tensor:
    whitened = torch.linalg.solve_triangular(q.factor, torch.column_stack([p.factor, q.mean - p.mean]), upper=False)
    half_log_dets = q.factor.diagonal().log().sum() - p.factor.diagonal().log().sum()
    value: Tensor = (whitened.square().sum() - len(p.mean)) / 2 + half_log_dets
    return value
