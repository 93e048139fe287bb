"""Two samples of features as every metric of pictures takes them: in float64, and finite."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_float64
from cs_aligner_cli.common.errors import InputError


def samples(x: ArrayLike, y: ArrayLike, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """x (M, d) and y (N, d) in float64; InputError unless they fit together and are finite.

    A comparison with NaN is false: a share of rows would come out as 0 where nothing is known.
    """
    a, b, _ = as_float64(x, y)
    for name, rows in zip(names, (a, b), strict=True):
        if not torch.isfinite(rows).all():
            raise InputError(f"{name}: row {int((~torch.isfinite(rows)).any(dim=1).int().argmax())} is not finite")
    return a, b
