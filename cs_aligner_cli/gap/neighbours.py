"""Who is near whom: shared neighbours of a pair, how far neighbourhoods mix the modalities, hubs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import BLOCK, Groups
from cs_aligner_cli.retrieval.bootstrap import skewness_of_sums

NEIGHBOURS = 10


class Near(NamedTuple):
    """What neighbourhoods say of n pairs: (n,) shares ``mutual`` and ``purity``, and (n,) occurrences of each row in
    the lists of the other modality's rows: ``of_image`` of images in those of texts, ``of_text`` of texts."""

    mutual: Floats
    purity: Floats
    of_image: Floats
    of_text: Floats


def neighbour_metrics(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> Near:
    """Who is near whom among unit rows x, y (n, d); k is at most n - 1.

    - ``mutual``: |kNN(x_i) & kNN(y_i)| / k, neighbours being sought among the images for x_i and among the texts
      for y_i (Huh et al., The Platonic Representation Hypothesis, ICML 2024).
    - ``purity``: the share of the k nearest rows of both modalities together that are of a row's own, averaged over
      both rows of the pair.
    - ``of_image``, ``of_text``: the k-occurrence, in how many of the n lists of k nearest rows an item stands.
    """
    n = len(x)
    k = min(k, n - 1)
    shared, purity = torch.zeros(2, n, dtype=torch.float64)
    occurrence = {name: torch.zeros(n, dtype=torch.int64) for name in ("x", "y")}
    for start in range(0, n, BLOCK):
        rows = torch.arange(start, min(start + BLOCK, n))
        inside = {name: _without_self(z[rows] @ z.T, rows) for name, z in (("x", x), ("y", y))}
        near = {name: cosines.topk(k, dim=1).indices for name, cosines in inside.items()}
        shared[rows] = (near["x"][:, :, None] == near["y"][:, None, :]).any(dim=2).double().mean(dim=1)
        for name, z, other, other_name in (("x", x, y, "y"), ("y", y, x, "x")):
            across = z[rows] @ other.T
            pooled = torch.cat([inside[name], across], dim=1).topk(k, dim=1).indices
            purity[rows] += (pooled < n).double().mean(dim=1) / 2
            occurrence[other_name] += across.topk(k, dim=1).indices.flatten().bincount(minlength=n)
    return Near(shared.numpy(), purity.numpy(), *(found.double().numpy() for found in occurrence.values()))


def occurrence_metrics(near: Near, groups: Groups, counts: Floats) -> dict[str, Floats]:
    """``hubness_image``, ``hubness_text``: the skewness of the k-occurrence (Radovanovic et al., JMLR 2010), (1 + D,).

    0 where every item stands in equally many lists, far above where few of them, hubs, stand in very many. Draws are
    over items, as in retrieval: the lists stay as they are.
    """
    found = {}
    for name, n in (("hubness_image", near.of_image), ("hubness_text", near.of_text)):
        moments = np.stack([np.ones_like(n), n, n**2, n**3], axis=1)
        found[name] = skewness_of_sums(counts @ groups.sums(moments))
    return found


def neighbour_chance(n: int, k: int = NEIGHBOURS) -> dict[str, float]:
    """What the metrics read on average if pairs are shuffled (mutual_knn), modalities mixed (neighbour_purity), or
    lists drawn at random (hubness: the skewness of a binomial count)."""
    k = min(k, n - 1)
    p = k / n
    hubness = (1 - 2 * p) / (n * p * (1 - p)) ** 0.5
    chance = {"mutual_knn": k / (n - 1), "neighbour_purity": (n - 1) / (2 * n - 1)}
    return {**chance, "hubness_image": hubness, "hubness_text": hubness}


def _without_self(cosines: Tensor, rows: Tensor) -> Tensor:
    cosines[torch.arange(len(rows)), rows] = -torch.inf
    return cosines
