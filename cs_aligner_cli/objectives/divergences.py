"""Divergences between two samples of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows, same_width
from cs_aligner_cli.errors import InputError, did_you_mean
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth
from cs_aligner_cli.objectives.kernels import log_mean_kernel, widen

Estimator: TypeAlias = Literal["v", "u"]


def cs_divergence(x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, estimator: Estimator = "v") -> Tensor:
    """Return the Cauchy-Schwarz divergence between the samples x (M, d) and y (N, d) as a scalar tensor.

    ``log mean_ij k(x_i, x_j) + log mean_ij k(y_i, y_j) - 2 log mean_ij k(x_i, y_j)`` with the Gaussian kernel
    ``k(a, b) = exp(-||a - b||^2 / (2 sigma^2))``: the kernel density estimate of
    ``-log((int p q)^2 / (int p^2 int q^2))`` in Yin et al., arXiv 2502.17028.

    Rows are used as given, without normalisation; M and N may differ. ``bandwidth`` is sigma, a number above
    0 in the units of the rows, or "median" (``median_bandwidth`` of x and y, outside the graph). Estimator
    "v", the paper's, keeps the pairs (i, i): up to rounding never negative, and 0 for equal samples, but
    biased upwards in small samples. "u" leaves them out of the two self terms: nearly unbiased, may be
    negative.

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is.

    Raises InputError for rows that do not fit together, a bandwidth that is not above 0, an unknown
    estimator, and fewer than two rows with "u".
    """
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    _check_estimator(estimator, len(x), len(y))
    sigma = resolve_bandwidth(bandwidth, x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = widen(x), widen(y)
    diagonal_free = estimator == "u"
    with torch.autocast(device_type=x.device.type, enabled=False):
        within_x = log_mean_kernel(x, None, sigma, exclude_diagonal=diagonal_free)
        within_y = log_mean_kernel(y, None, sigma, exclude_diagonal=diagonal_free)
        return (within_x + within_y - 2 * log_mean_kernel(x, y, sigma)).to(dtype)


def _check_estimator(estimator: str, rows_x: int, rows_y: int) -> None:
    names = get_args(Estimator)
    if estimator not in names:
        raise InputError(f"estimator: unknown name {estimator!r}{did_you_mean(str(estimator), names)}")
    if estimator == "u" and min(rows_x, rows_y) < 2:
        raise InputError(
            f'estimator "u" needs at least 2 rows in x and in y, got {rows_x} and {rows_y}',
            'It leaves out the pairs (i, i), so one row has no pair; "v" keeps them.',
        )


DIVERGENCES: Final[dict[str, Callable[..., Tensor]]] = {"cs": cs_divergence}
