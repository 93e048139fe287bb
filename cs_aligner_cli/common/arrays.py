"""Arrays at the door: numpy or torch in, checked floating-point torch tensors out."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError, NotUnitRowsWarning

ArrayLike: TypeAlias = npt.NDArray[np.generic] | Tensor
# How many rows are looked at, and how far from 1 a length may be: bfloat16 rounds to 0.4%.
_LOOKED_AT, _UNIT_TOLERANCE = 64, 0.02
# Beyond these a row's squares may leave float32, or its norm lie below what ``l2_normalize`` divides by.
_SMALL, _LARGE = 1e-10, 1e15
# Up to this, and down to its inverse, float32 holds fourth powers of entries: squares of distances, and their squares.
_HELD = 1e9


def as_rows(array: ArrayLike, name: str) -> Tensor:
    """Return ``array`` as a (N, d) float32 or float64 tensor; half precisions are widened to float32.

    Torch tensors keep their device and graph; numpy arrays are not copied when their dtype already fits, unless torch
    cannot read them where they lie (reversed, read-only, or of the other byte order).
    Raises InputError if the array is not two-dimensional, is empty or is not of a floating-point type.
    """
    array = as_tensor(array, name)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name}: expected a non-empty (rows, dimensions) array, got shape {tuple(array.shape)}")
    if not array.is_floating_point():
        raise InputError(f"{name}: expected floating-point values, got {array.dtype}")
    return array if array.dtype in (torch.float32, torch.float64) else array.float()


def as_tensor(array: ArrayLike, name: str) -> Tensor:
    """Return ``array``, of any shape and type that torch has, as a tensor.

    Raises InputError for what is no dense array, and for one with masked entries.
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            raise InputError(f"{name}: expected a dense tensor, got one of {array.layout}", "Pass tensor.to_dense().")
        return array
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"{name}: expected a numpy array or a torch tensor, got a {type(array).__name__}",
            "Pass its to_numpy()." if hasattr(array, "to_numpy") else "",
        )
    refuse_masked(array, name)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        # torch warns on read-only memory maps although nothing here writes to its inputs.
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:
        raise InputError(f"{name}: expected floating-point values of 16, 32 or 64 bits, got {array.dtype}") from None


def refuse_masked(array: object, name: str) -> None:
    """Raise InputError for a numpy array with masked entries: whatever lies under a mask would count as a number."""
    if isinstance(array, np.ma.MaskedArray) and (masked := int(np.ma.count_masked(array))):  # type: ignore[no-untyped-call]
        raise InputError(
            f"{name}: {masked} of {array.size} entries are masked, expected an array without a mask",
            "Leave those rows out, or fill them: array.filled(...).",
        )


def refuse_not_finite(rows: Tensor, name: str, first: int = 0) -> None:
    """Raise InputError naming the first of rows (N, d) that holds NaN or infinity; ``first`` is the number of row 0."""
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        of = " (as float32)" if rows.dtype == torch.float32 else ""
        raise InputError(f"{name}: row {first + int(finite.int().argmin())} holds NaN or infinity{of}")


def in_range(rows: Tensor) -> Tensor:
    """Rows (N, d) of the same directions whose norms float32 can hold; only huge and tiny ones are scaled."""
    largest = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    outside = ((largest > _LARGE) | (largest < _SMALL)) & (largest > 0)
    return rows / torch.where(outside, largest, 1.0) if outside.any() else rows


def type_of_all(*clouds: Tensor) -> torch.dtype:
    """The type that rows (N, d) of several clouds are computed in: the widest of theirs, float64 where one needs it.

    Squares of float32 rows near 1e19 overflow, of rows near 1e-23 they vanish. As in ``warn_unless_unit``, an
    accelerator does not wait for this where one of them wants a gradient.
    """
    dtype = clouds[0].dtype
    for rows in clouds:
        dtype = torch.promote_types(dtype, rows.dtype)
    at_work = any(rows.device.type == "mps" or (rows.device.type != "cpu" and rows.requires_grad) for rows in clouds)
    if dtype == torch.float32 and not at_work and any(_leaves_float32(rows) for rows in clouds):
        return torch.float64
    return dtype


def _leaves_float32(rows: Tensor) -> bool:
    low, high = map(float, torch.stack(torch.aminmax(rows.detach())).tolist())
    largest = max(high, -low)
    return largest > _HELD or 0 < largest < 1 / _HELD


def same_width(x: Tensor, y: Tensor) -> None:
    """Raise InputError unless x (M, d) and y (N, d) share their dimension d."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"image and text rows differ in dimension: {x.shape[1]} against {y.shape[1]}",
            "Rows can be compared only in one space; train adapters into a shared one first.",
        )


def warn_unless_unit(*samples: Tensor, unit_of: str, remedy: str = "", depth: int = 2) -> None:
    """Warn where rows (..., d) are not of unit length: ``unit_of`` says what is meant for such, ``remedy`` what else.

    64 rows of each are looked at, on the CPU or where no gradient is wanted: a training step on an accelerator does
    not wait for this. Python shows a warning once per place; ``depth`` is how many calls up that place is.
    """
    for rows in samples:
        if rows.device.type != "cpu" and rows.requires_grad:
            continue
        flat = rows.detach().flatten(0, -2)
        some = flat[torch.linspace(0, len(flat) - 1, min(len(flat), _LOOKED_AT)).long()].float()
        lengths = torch.linalg.vector_norm(some, dim=1)
        counted = lengths[lengths.isfinite() & (lengths > 0)]  # tokens are padded with NaN or zeros
        if ((counted - 1).abs() > _UNIT_TOLERANCE).any():
            warnings.warn(
                f"rows are not of unit length, and {unit_of} is meant for rows that are: divide them by their norms"
                + remedy,
                NotUnitRowsWarning,
                stacklevel=depth + 1,
            )
            return


def double(x: Tensor) -> Tensor:
    """``x`` in float64; on the CPU where its own device has no float64 (mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def as_float64(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor, torch.dtype]:
    """x (M, d) and y (N, d) in float64, which autocast leaves alone, and the dtype of a result (``type_of_all``)."""
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    return double(x), double(y), type_of_all(x, y)


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of x (N, d) scaled to unit L2 norm; a zero row stays zero."""
    return torch.nn.functional.normalize(x, dim=-1)
