"""Clusters of images and texts together: do pairs share one, and do clusters follow the labels?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.kmeans import k_means

_CLUSTERS = 10
_PERMUTATIONS = 4
# Pairs that a label has on average: clusters of fewer are chance, and as many clusters would take long.
PAIRS_PER_LABEL = 10


def cluster_agreement(x: Tensor, y: Tensor, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """k-means (10 clusters) over images and texts together: do the two rows of a pair get the same cluster?

    ``cluster_v_measure`` (0 to 1) and ``cluster_ari`` (0 at chance, 1 if equal) between the images' and the texts'
    assignments. A gap makes clusters of one modality each, and then neither says anything: see ``cluster_pairs``, the
    share of pairs within one cluster. Returns the metrics, and what each reads once the pairs are shuffled. Other
    samples make other clusters, and no interval that was tried held: there is none.
    """
    image, text = _clusters(x, y, _CLUSTERS, seed)
    found = {"cluster_pairs": float((image == text).mean())}
    null = {"cluster_pairs": float(sum((image == k).mean() * (text == k).mean() for k in np.unique(image)))}
    for name, metric in _METRICS.items():
        found[f"cluster_{name}"] = _agreement(metric, image, text)
        null[f"cluster_{name}"] = _at_chance(metric, image, text, seed)
    return found, null


def label_agreement(
    x: Tensor, y: Tensor, labels: npt.NDArray[np.str_], seed: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """``label_v_measure`` and ``label_ari``: clusters of images and texts together against the pairs' labels.

    ``labels`` (N,), "" for a pair without one. k-means makes as many clusters as there are labels, over both rows of
    every labelled pair; a cluster of one modality splits every class in two, so both fall with a gap (Grassucci et
    al., ModGap, with k = 10 categories). Returns the metrics, what they read with shuffled labels, and how many pairs
    have a label; nothing unless two labels are there, each of ten pairs on average.
    """
    labelled = np.flatnonzero(labels != "")
    names, classes = np.unique(labels[labelled], return_inverse=True)
    if not 2 <= len(names) <= len(labelled) / PAIRS_PER_LABEL:
        return {}, {}, len(labelled)
    rows = torch.from_numpy(labelled)
    image, text = _clusters(x[rows], y[rows], len(names), seed)
    both = np.concatenate([image, text])
    found: dict[str, float] = {}
    null: dict[str, float] = {}
    for name, metric in _METRICS.items():
        found[f"label_{name}"] = _agreement(metric, np.tile(classes, 2), both)
        null[f"label_{name}"] = _at_chance(metric, np.tile(classes, 2), both, seed)
    return found, null, len(labelled)


def _clusters(x: Tensor, y: Tensor, most: int, seed: int) -> tuple[Ints, Ints]:
    rows = torch.cat([x, y]).numpy()
    count = max(1, _distinct(rows, min(most, len(x) // 2)))
    image, text = np.split(k_means(rows, count, seed), 2)
    return image, text


def _distinct(rows: Floats, most: int) -> int:
    """How many of the rows (n, d) differ, to rounding, ``most`` at most: those at the front mostly tell."""
    front = len(np.unique(rows[: 4 * most].round(9), axis=0))
    return most if front >= most else min(most, len(np.unique(rows.round(9), axis=0)))


def v_measure(table: Tensor) -> Tensor:
    """2 I(a; b) / (H(a) + H(b)) of a table of counts (A, B) (Rosenberg & Hirschberg 2007); 1 where both are one."""
    p = table / table.sum()
    joint, of_rows, of_columns = (_entropy(q) for q in (p, p.sum(dim=1), p.sum(dim=0)))
    both = of_rows + of_columns
    return 2 * (both - joint) / both if float(both) > 0 else torch.ones_like(both)


def _entropy(p: Tensor) -> Tensor:
    p = p[p > 0]
    return -(p * p.log()).sum()


def adjusted_rand(table: Tensor) -> Tensor:
    """The adjusted Rand index of a table of counts (A, B) (Hubert & Arabie 1985); 1 where both are one."""
    together, of_rows, of_columns, every = (
        (q * (q - 1)).sum() / 2 for q in (table, table.sum(dim=1), table.sum(dim=0), table.sum())
    )
    chance = of_rows * of_columns / every
    most = (of_rows + of_columns) / 2
    return (together - chance) / (most - chance) if float(most - chance) else torch.ones_like(most)


_METRICS: dict[str, Callable[[Tensor], Tensor]] = {"ari": adjusted_rand, "v_measure": v_measure}


def _agreement(metric: Callable[[Tensor], Tensor], a: Ints, b: Ints) -> float:
    """A metric of how often a row has the labels a (n,) and b (n,) both."""
    counted = np.bincount(a * (1 + b.max()) + b, minlength=(1 + a.max()) * (1 + b.max())).reshape(1 + a.max(), -1)
    return float(metric(torch.from_numpy(counted.astype(np.float64))))


def _at_chance(metric: Callable[[Tensor], Tensor], a: Ints, b: Ints, seed: int) -> float:
    """The metric's mean over shuffled assignments."""
    rng = np.random.default_rng(seed)
    return float(np.mean([_agreement(metric, rng.permutation(a), b) for _ in range(_PERMUTATIONS)]))
