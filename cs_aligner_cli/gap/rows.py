"""What the gap's metrics take in: row-paired features, checked and scaled to unit length; bandwidths, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows, l2_normalize, same_width
from cs_aligner_cli.errors import InputError

DEFAULT_BANDWIDTHS = (0.5, 0.7071067811865476, 1.0)
MIN_PAIRS = 4


def paired_rows(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return both (N, d) inputs as unit rows in float64 on the CPU; raises InputError as ``measure_gap``."""
    x, y = as_rows(image, "image"), as_rows(text, "text")
    if len(x) == len(y):
        same_width(x, y)
    return paired_rows_of_any_width(x, y)


def paired_rows_of_any_width(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """As ``paired_rows``, but image (N, d) and text (N, e) may differ in dimension."""
    x, y = (as_rows(a, name).detach().cpu().double() for a, name in ((image, "image"), (text, "text")))
    if len(x) != len(y):
        raise InputError(
            f"image and text are not row-paired: {len(x)} image rows against {len(y)} text rows",
            "Row i of one must belong to row i of the other; repeat an image that has several captions.",
        )
    if len(x) < MIN_PAIRS:
        raise InputError(f"the gap needs at least {MIN_PAIRS} pairs, got {len(x)}")
    return unit_rows(x, "image"), unit_rows(y, "text")


def unit_rows(x: Tensor, name: str) -> Tensor:
    """Rows of x (N, d) scaled to unit length; raises InputError if one is not finite or has no direction."""
    _refuse_rows(~x.isfinite().all(dim=1), name, "not finite (NaN or infinity)")
    # Dividing by the largest entry first keeps the norm of huge and of tiny rows representable.
    largest = x.abs().amax(dim=1, keepdim=True)
    _refuse_rows(largest[:, 0] == 0, name, "all zeros and so have no direction")
    return l2_normalize(x / largest)


def _refuse_rows(bad: Tensor, name: str, what: str) -> None:
    if bad.any():
        first = int(bad.int().argmax())
        raise InputError(f"{name}: {int(bad.sum())} of {len(bad)} rows are {what}; the first is row {first}")


def check_bandwidths(bandwidths: Sequence[float]) -> None:
    """Raise InputError unless every kernel bandwidth is positive, finite and prints unlike the others."""
    for s in bandwidths:
        if not (s > 0 and math.isfinite(s)):
            raise InputError(f"bandwidths: expected positive finite numbers, got {s}")
    if len({f"{s:.4g}" for s in bandwidths}) < len(bandwidths):
        raise InputError(f"bandwidths: two of {list(bandwidths)} are equal when printed to four digits")


def evenly_spaced(rows: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` evenly spaced numbers of ``rows`` rows, in order."""
    return np.linspace(0, rows - 1, min(rows, count)).round().astype(np.int64)
