"""A memory of past embeddings, so that a divergence sees a distribution where batches are small."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memory:
    """The last ``size`` embeddings of every modality, detached (a queue, as in MoCo, He et al., arXiv 1911.05722).

    ``rows``: modality to (up to ``size``, d), the newest at the end; empty before the first step. Part of the training
    state: it is saved with every checkpoint.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, Tensor] = {}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Remember the rows (N, d) of one step, and forget the oldest beyond ``size``."""
        for modality, new in rows.items() if self.size else ():
            past = self.rows.get(modality, new.detach()[:0])
            self.rows[modality] = torch.cat([past, new.detach()])[-self.size :]
