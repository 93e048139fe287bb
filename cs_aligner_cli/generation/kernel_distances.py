"""Kernel distances of two samples of features: KID and CMMD, with and without the bias of the diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.samples import samples

# Constants of the published CMMD (Jayasumana et al. 2024, arXiv 2401.09603): bandwidth, and the factor reported with.
CMMD_BANDWIDTH, CMMD_SCALE = 10.0, 1000.0
_TILE = 2048
_Kernel: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def kid(x: ArrayLike, y: ArrayLike) -> float:
    """The kernel distance of Binkowski et al. 2018 between x (M, d) and y (N, d): unbiased MMD^2, all rows at once.

    Kernel ``(a.b / d + 1)^3``. Other programs average the same estimator over random subsets, which has the same mean
    and more noise. May be negative. Raises InputError for rows that do not fit together or are not finite, and for
    fewer than two.
    """
    x, y = samples(x, y)
    return _mmd(x, y, lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3, diagonals=False)


def cmmd(x: ArrayLike, y: ArrayLike, unbiased: bool = True) -> float:
    """1,000 times the MMD^2 of unit rows of x (M, d) and y (N, d) under a Gaussian kernel of bandwidth 10.

    CMMD of Jayasumana et al. 2024 where the rows are CLIP embeddings. Their code keeps the diagonals, which adds about
    ``1000 (1 - k) (1/M + 1/N)``, k the mean kernel within: ``unbiased=False`` gives that form, for published figures.
    Raises InputError for rows that do not fit together or are not finite, and for fewer than two.
    """
    x, y = samples(x, y)
    x, y = l2_normalize(x), l2_normalize(y)

    def one_less_kernel(a: Tensor, b: Tensor) -> Tensor:
        # Kernel values differ in the third digit only; 1 - k keeps the others, and the ones cancel in MMD^2.
        distances = (2 - 2 * (a @ b.T)).clamp_min(0)
        return torch.expm1(-distances / (2 * CMMD_BANDWIDTH**2))

    return CMMD_SCALE * _mmd(x, y, one_less_kernel, diagonals=not unbiased)


def _mmd(x: Tensor, y: Tensor, kernel: _Kernel, diagonals: bool) -> float:
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise InputError(f"{name}: a kernel distance needs at least 2 rows, got {len(rows)}")
    within = _mean(x, x, kernel, diagonals) + _mean(y, y, kernel, diagonals)
    return within - 2 * _mean(x, y, kernel, diagonals=True)


def _mean(x: Tensor, y: Tensor, kernel: _Kernel, diagonals: bool) -> float:
    """The mean kernel value; without the pairs (i, i) where the diagonal of x with itself is left out."""
    total = sum(float(kernel(a, b).sum().item()) for a in torch.split(x, _TILE) for b in torch.split(y, _TILE))
    if diagonals:
        return total / (len(x) * len(y))
    own = sum(float(kernel(a[None], a[None]).item()) for a in x)
    return (total - own) / (len(x) * (len(x) - 1))
