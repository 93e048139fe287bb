"""A memory of past embeddings, so that a divergence sees a distribution, and agreement a queue of pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cs_aligner_cli.objectives.clouds import Edge, Pairs


class Memory:
    """The last ``size`` embeddings of every modality, detached (a queue, as in MoCo, He et al., arXiv 1911.05722).

    ``rows``: modality to (up to ``size``, d), the newest at the end; empty before the first step. ``features``: the
    items' features (up to ``size``, D), where a term compares rows with them. ``pairs``: of every edge, which of these
    rows were a pair, (Q, 2), counted from the end (-1: the newest). ``averages``: with a ``momentum``, the exponential
    averages of what is trained, by name, whose embeddings are remembered in place of the towers' own; empty before the
    first step. Part of the training state: it is saved with every checkpoint.
    """

    def __init__(self, size: int, momentum: float | None = None) -> None:
        self.size, self.momentum = size, momentum
        self.rows: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}
        self.pairs: dict[Edge, Tensor] = {}
        self.averages: dict[str, Tensor] = {}

    def average(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights of one more step: ``momentum * average + (1 - momentum) * weights``.

        The first ones are the average as they are; so is what is no floating-point number, such as a count.
        """
        assert self.momentum is not None
        for name, new in weights.items():
            former = self.averages.get(name)
            if former is None or not new.is_floating_point():
                self.averages[name] = new.detach().clone()
            else:
                former.lerp_(new.detach(), 1 - self.momentum)

    def add(
        self,
        rows: Mapping[str, Tensor],
        features: Mapping[str, Tensor] = {},
        pairs: Mapping[Edge, Pairs] = {},
    ) -> None:
        """Remember the rows (N, d) of one step, their features and pairs, and forget the oldest beyond ``size``."""
        if not self.size:
            return
        for edge, (first, second, _) in pairs.items():
            x, y = (rows[modality] for modality in edge)
            places = [
                torch.arange(len(z), device=z.device) if at is None else at for z, at in ((x, first), (y, second))
            ]
            of_step = torch.stack(places, dim=1)
            every = torch.cat([self.pairs.get(edge, of_step[:0]), of_step])
            every = every - every.new_tensor([len(x), len(y)])
            self.pairs[edge] = every[(every >= -self.size).all(dim=1)]
        for kept, added in (self.rows, rows), (self.features, features):
            for modality, new in added.items():
                past = kept.get(modality, new.detach()[:0])
                kept[modality] = torch.cat([past, new.detach()])[-self.size :]
