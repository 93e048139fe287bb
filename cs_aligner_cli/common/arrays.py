"""Arrays at the door: numpy or torch in, checked floating-point torch tensors out."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError

ArrayLike: TypeAlias = npt.NDArray[np.generic] | Tensor


def as_rows(array: ArrayLike, name: str) -> Tensor:
    """Return ``array`` as a (N, d) float32 or float64 tensor; half precisions are widened to float32.

    Torch tensors keep their device and graph; numpy arrays are not copied when their dtype already fits.
    Raises InputError if the array is not two-dimensional, is empty or is not of a floating-point type.
    """
    if isinstance(array, np.ndarray):
        # torch warns on read-only memory maps although nothing here writes to its inputs.
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name}: expected a non-empty (rows, dimensions) array, got shape {tuple(array.shape)}")
    if not array.is_floating_point():
        raise InputError(f"{name}: expected floating-point values, got {array.dtype}")
    return array if array.dtype in (torch.float32, torch.float64) else array.float()


def same_width(x: Tensor, y: Tensor) -> None:
    """Raise InputError unless x (M, d) and y (N, d) share their dimension d."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"image and text rows differ in dimension: {x.shape[1]} against {y.shape[1]}",
            "Rows can be compared only in one space; train adapters into a shared one first.",
        )


def double(x: Tensor) -> Tensor:
    """``x`` in float64; on the CPU where its own device has no float64 (mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def as_float64(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor, torch.dtype]:
    """x (M, d) and y (N, d) in float64, which autocast leaves alone, and the dtype of a result: theirs, widened."""
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    return double(x), double(y), torch.promote_types(x.dtype, y.dtype)


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of x (N, d) scaled to unit L2 norm; a zero row stays zero."""
    return torch.nn.functional.normalize(x, dim=-1)
