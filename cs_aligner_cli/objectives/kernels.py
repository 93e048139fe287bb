"""The kernels that divergences sum over pairs, evaluated in place on a tile of distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError

# Far below any use, and far above where 1 / sigma^2 and its products overflow float32; sigma^2 must stay a float64.
_SMALLEST_SIGMA, LARGEST_SIGMA = 1e-9, 1e150


class KernelTile(NamedTuple):
    """A kernel on one tile: ``values``, and ``slopes * factor``, which is -dk / d(||a - b||^2 / 2)."""

    values: Tensor
    slopes: Tensor
    factor: float


@dataclass(frozen=True)
class Gaussian:
    """The mean of the Gaussian kernels ``exp(-||a - b||^2 / (2 sigma^2))`` over one or several ``sigmas``."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        for sigma in self.sigmas:
            if not _SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
                raise InputError(
                    f"bandwidth: expected a sigma from {_SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}, got {sigma:g}"
                )

    @property
    def widest(self) -> float:
        """The largest sigma: its kernel decides how far a pair can lie before the mixture underflows."""
        return max(self.sigmas)

    @property
    def scale(self) -> float:
        """What ``-||a - b||^2 / 2`` is multiplied by before ``evaluate``: then it is the widest kernel's exponent."""
        return 1 / self.widest**2

    def evaluate(self, nearness: Tensor, reference: float | Tensor) -> KernelTile:
        """The kernel times ``exp(-reference)`` of a tile of ``-scale ||a - b||^2 / 2``, which is used up."""
        if len(self.sigmas) == 1:
            if isinstance(reference, Tensor) or reference != 0:
                nearness.sub_(reference)
            return KernelTile(nearness.exp_(), nearness, self.scale)
        values, slopes = torch.zeros_like(nearness), torch.zeros_like(nearness)
        for sigma in self.sigmas:
            part = torch.mul(nearness, (self.widest / sigma) ** 2).sub_(reference).exp_()
            values.add_(part, alpha=1 / len(self.sigmas))
            slopes.add_(part, alpha=1 / (len(self.sigmas) * sigma**2))
        return KernelTile(values, slopes, 1.0)


@dataclass(frozen=True)
class NegativeDistance:
    """The kernel ``-||a - b||``, whose maximum mean discrepancy is the energy distance."""

    scale: ClassVar[float] = 1.0

    def evaluate(self, nearness: Tensor, reference: float | Tensor) -> KernelTile:
        """The kernel of a tile of ``nearness = -||a - b||^2 / 2``, which is used up; the slope at 0 is taken as 0."""
        values = nearness.mul_(-2).clamp_(min=0).sqrt_()
        slopes = values.reciprocal()
        slopes.masked_fill_(slopes.isinf(), 0.0)
        return KernelTile(values.neg_(), slopes, 1.0)


Kernel: TypeAlias = Gaussian | NegativeDistance
