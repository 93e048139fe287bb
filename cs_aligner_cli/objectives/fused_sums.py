"""What the first pass of the fused objective leaves on the device, and the losses that follow from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.objectives.fused_plan import LOG2


class KernelSum(NamedTuple):
    """A sum of kernel values over ``pairs`` pairs in units of ``2^reference``: 0-d float64 tensors on the device."""

    total: Tensor
    reference: Tensor
    pairs: int

    def mean(self, logarithm: bool) -> Tensor:
        """The mean kernel value, or its natural logarithm."""
        if logarithm:
            return self.total.log() + (self.reference * LOG2 - math.log(self.pairs))
        return self.total * self.unit / self.pairs

    def slope(self, logarithm: bool) -> Tensor:
        """The derivative of ``mean`` with respect to ``total``."""
        return 1 / self.total if logarithm else self.unit / self.pairs

    @property
    def unit(self) -> Tensor:
        """What ``total`` counts in."""
        return torch.exp2(self.reference)


class Softmax(NamedTuple):
    """Maxima (float32) and sums (float64) of 2^logit by row and by column, and the pairs' own logits; (N,) each."""

    row_maxima: Tensor
    row_sums: Tensor
    column_maxima: Tensor
    column_sums: Tensor
    own: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean cross-entropy of rows and columns, a 0-d float64 tensor."""
        own = self.own.double()
        rows = self.row_maxima.double() - own + self.row_sums.log2()
        columns = self.column_maxima.double() - own + self.column_sums.log2()
        return (rows + columns).mean() * (LOG2 / 2)
