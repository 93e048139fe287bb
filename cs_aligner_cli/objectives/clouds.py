"""What the terms of one step see: rows of every modality, which of them are pairs, memory, tokens, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Edge: TypeAlias = tuple[str, str]
IMAGE_TEXT: Edge = ("image", "text")


class Logits(NamedTuple):
    """What turns cosines into logits: ``scale * cosine + bias``, both 0-d tensors."""

    scale: Tensor
    bias: Tensor


class Pairs(NamedTuple):
    """Which rows of two modalities belong together: row ``first[p]`` and row ``second[p]``, (P,) each.

    None stands for all rows in order. Pairs of one of the (P,) ``groups`` are no negatives of each other.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Clouds:
    """The embeddings that the terms of one step see.

    ``rows``: modality to (N, d), N being any number for each. ``pairs``: for every edge, which rows are pairs; what
    is in no pair is seen by no pairwise term, unless as a negative. ``memory``: modality to (K, d) further rows that
    divergences see, and that no gradient reaches. ``tokens``: modality to the tokens (N, L, d) behind the rows, padded
    with NaN (``token_sequences.pad_tokens``), where a term sees them. ``features``: modality to what the rows (N, D)
    were before the map that is trained, where a term sees it; ``memory_features`` those of the memory's rows.
    """

    rows: Mapping[str, Tensor]
    pairs: Mapping[Edge, Pairs]
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    memory_features: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_pairs(cls, image: Tensor, text: Tensor, groups: Tensor | None = None) -> Clouds:
        """Images (N, d) and texts (N, d), row by row a pair."""
        return cls({"image": image, "text": text}, {IMAGE_TEXT: Pairs(groups=groups)})

    def pair(self, edge: Edge) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of one edge, row by row (P, d) each, and their groups."""
        first, second, groups = self.pairs[edge]
        x, y = (self.rows[modality] for modality in edge)
        return x if first is None else x[first], y if second is None else y[second], groups

    def cloud(self, modality: str) -> Tensor:
        """All rows of a modality, its memory at the end."""
        return _joined(self.rows[modality], self.memory.get(modality))

    def feature_cloud(self, modality: str) -> Tensor:
        """The features of ``cloud``, row by row."""
        return _joined(self.features[modality], self.memory_features.get(modality))

    def unpaired(self, edge: Edge) -> tuple[Tensor | None, Tensor | None]:
        """The rows of both modalities that are in no pair of an edge, None where there are none."""
        return tuple(_without(self.rows[m], paired) for m, paired in zip(edge, self.pairs[edge][:2], strict=True))  # type: ignore[return-value]

    @property
    def only_pairs(self) -> bool:
        """Whether there are just images and texts, row by row a pair, so that both kinds of terms see the same."""
        pairs = self.pairs.get(IMAGE_TEXT, Pairs())
        return len(self.rows) == 2 and pairs.first is pairs.second is None and not self.memory


def _joined(rows: Tensor, past: Tensor | None) -> Tensor:
    return rows if past is None else torch.cat([rows, past.to(rows)])


def _without(rows: Tensor, paired: Tensor | None) -> Tensor | None:
    if paired is None:
        return None
    others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    others[paired] = False
    return rows[others] if others.any() else None
