"""A memory of past embeddings, so that a divergence sees a distribution where batches are small."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memory:
    """The last ``size`` embeddings of every modality, detached (a queue, as in MoCo, He et al., arXiv 1911.05722).

    ``rows``: modality to (up to ``size``, d), the newest at the end; empty before the first step. ``features``: the
    items' features (up to ``size``, D), where a term compares rows with them. Part of the training state: it is saved
    with every checkpoint.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}

    def add(self, rows: Mapping[str, Tensor], features: Mapping[str, Tensor] = {}) -> None:
        """Remember the rows (N, d) of one step and their features, and forget the oldest beyond ``size``."""
        for kept, added in ((self.rows, rows), (self.features, features)) if self.size else ():
            for modality, new in added.items():
                past = kept.get(modality, new.detach()[:0])
                kept[modality] = torch.cat([past, new.detach()])[-self.size :]
