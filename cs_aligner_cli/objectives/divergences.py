"""Divergences between two samples that are made of kernel sums: Cauchy-Schwarz, MMD, energy distance."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, same_width, type_of_all
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth
from cs_aligner_cli.objectives.gram import GramDivergence, GramLoss
from cs_aligner_cli.objectives.kernels import Gaussian, NegativeDistance
from cs_aligner_cli.objectives.tiles import Products

Estimator: TypeAlias = Literal["v", "u"]


def cs_divergence(
    x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, estimator: Estimator = "v", products: Products = "fp32"
) -> Tensor:
    """Return the Cauchy-Schwarz divergence between the samples x (M, d) and y (N, d) as a scalar tensor.

    ``log mean_ij k(x_i, x_j) + log mean_ij k(y_i, y_j) - 2 log mean_ij k(x_i, y_j)`` with the Gaussian kernel
    ``k(a, b) = exp(-||a - b||^2 / (2 sigma^2))``: the kernel density estimate of
    ``-log((int p q)^2 / (int p^2 int q^2))`` in Yin et al., arXiv 2502.17028.

    Rows are used as given, without normalisation; M and N may differ. ``bandwidth`` is sigma, a number above
    0 in the units of the rows; several numbers, for the mean of their kernels; or "median" (``median_bandwidth``
    of x and y, outside the graph). Estimator "v", the paper's, keeps the pairs (i, i): up to rounding never
    negative, and 0 for equal samples, but biased upwards in small samples. "u" leaves them out of the two self
    terms: nearly unbiased, may be negative.

    Computed tile by tile, in memory linear in M + N, in float32, or in float64 where x or y is or has entries beyond
    1e9 (``type_of_all``), with sums in float64, whatever the autocast. ``products`` "bf16" multiplies rows in bfloat16:
    for speed on hardware that has it, at a relative error of about 1e-3 in value and gradient on unit rows with
    sigma >= 0.5. "fp16" rounds rows eight times finer at the same speed (entries must stay below 65,504), and "tf32"
    uses CUDA's own rounding of float32; on other devices it is "fp32".

    Raises InputError for rows that do not fit together, a bandwidth that is not above 0, an unknown estimator or
    products, and fewer than two rows with "u"; warns (NotUnitRowsWarning) where sigma is a number and rows are not of
    unit length, for which usual bandwidths are far too narrow.

    >>> import torch
    >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), dim=1)
    >>> y = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.1, 1.0]]), dim=1)
    >>> round(float(cs_divergence(x, y, bandwidth=0.7071)), 3)
    3.574
    >>> float(cs_divergence(x, x, bandwidth=0.7071)) == 0
    True
    """
    x, y = checked_clouds(x, y, estimator, products)
    return _loss(x, y, gram_divergence("cs", resolve_bandwidth(bandwidth, x, y), estimator, products))


def mmd(
    x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, estimator: Estimator = "v", products: Products = "fp32"
) -> Tensor:
    """Return the squared maximum mean discrepancy between x (M, d) and y (N, d), with a Gaussian kernel.

    ``mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)`` (Gretton et al., JMLR 2012, equations 3
    and 5): symmetric; with estimator "v" never negative and 0 for equal samples, up to rounding. Arguments, precision
    and errors are those of ``cs_divergence``.
    """
    x, y = checked_clouds(x, y, estimator, products)
    return _loss(x, y, gram_divergence("mmd", resolve_bandwidth(bandwidth, x, y), estimator, products))


def energy_distance(x: ArrayLike, y: ArrayLike, estimator: Estimator = "v") -> Tensor:
    """Return the energy distance ``2 E||X - Y|| - E||X - X'|| - E||Y - Y'||`` between x (M, d) and y (N, d).

    Szekely & Rizzo (2013); the maximum mean discrepancy with the kernel ``-||a - b||``, which has no bandwidth.
    Symmetric; with estimator "v" never negative and 0 for equal samples, up to rounding. Pairs at distance 0 take no
    part in the gradient. Precision and errors are those of ``cs_divergence``.
    """
    x, y = checked_clouds(x, y, estimator, "fp32")
    return _loss(x, y, gram_divergence("energy", (), estimator))


def gram_divergence(
    kind: Literal["cs", "mmd", "energy"],
    sigmas: tuple[float, ...],
    estimator: Estimator = "v",
    products: Products = "fp32",
) -> GramDivergence:
    """The kernel sums that ``cs_divergence``, ``mmd`` or ``energy_distance`` is made of; energy has no sigmas."""
    kernel = Gaussian(sigmas) if sigmas else NegativeDistance()
    return GramDivergence(kernel, kind == "cs", estimator == "v", products)


def _loss(x: Tensor, y: Tensor, divergence: GramDivergence) -> Tensor:
    return GramLoss.apply(x, y, divergence)  # type: ignore[no-any-return]


def checked_clouds(x: ArrayLike, y: ArrayLike, estimator: str, products: str) -> tuple[Tensor, Tensor]:
    """Both samples as tensors of one dtype, once everything fits."""
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    for name, value, names in (
        ("estimator", estimator, get_args(Estimator)),
        ("products", products, get_args(Products)),
    ):
        if value not in names:
            raise InputError(f"{name}: unknown name {value!r}{did_you_mean(str(value), names)}")
    if estimator == "u" and min(len(x), len(y)) < 2:
        raise InputError(
            f'estimator "u" needs at least 2 rows in x and in y, got {len(x)} and {len(y)}',
            'It leaves out the pairs (i, i), so one row has no pair; "v" keeps them.',
        )
    dtype = type_of_all(x, y)
    return x.to(dtype), y.to(dtype)
