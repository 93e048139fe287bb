"""Who is near whom: shared neighbours of a pair, and how far neighbourhoods mix the modalities."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_aligner_cli.gap.groups import BLOCK, Floats

NEIGHBOURS = 10


def neighbour_metrics(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> dict[str, Floats]:
    """Per-pair values (n,) of two shares, over unit rows x, y (n, d); k is at most n - 1.

    - ``mutual_knn``: |kNN(x_i) & kNN(y_i)| / k, neighbours being sought among the images for x_i and among the texts
      for y_i (Huh et al., The Platonic Representation Hypothesis, ICML 2024).
    - ``neighbour_purity``: the share of the k nearest rows of both modalities together that are of a row's own,
      averaged over both rows of the pair.
    """
    n = len(x)
    k = min(k, n - 1)
    shared, purity = torch.zeros(2, n, dtype=torch.float64)
    for start in range(0, n, BLOCK):
        rows = torch.arange(start, min(start + BLOCK, n))
        inside = {name: _without_self(z[rows] @ z.T, rows) for name, z in (("x", x), ("y", y))}
        near = {name: cosines.topk(k, dim=1).indices for name, cosines in inside.items()}
        shared[rows] = (near["x"][:, :, None] == near["y"][:, None, :]).any(dim=2).double().mean(dim=1)
        for name, z, other in (("x", x, y), ("y", y, x)):
            pooled = torch.cat([inside[name], z[rows] @ other.T], dim=1).topk(k, dim=1).indices
            purity[rows] += (pooled < n).double().mean(dim=1) / 2
    return {"mutual_knn": shared.numpy(), "neighbour_purity": purity.numpy()}


def neighbour_chance(n: int, k: int = NEIGHBOURS) -> dict[str, float]:
    """What the metrics read on average if pairs are shuffled (mutual_knn) or modalities mixed (neighbour_purity)."""
    return {"mutual_knn": min(k, n - 1) / (n - 1), "neighbour_purity": (n - 1) / (2 * n - 1)}


def _without_self(cosines: Tensor, rows: Tensor) -> Tensor:
    cosines[torch.arange(len(rows)), rows] = -torch.inf
    return cosines
