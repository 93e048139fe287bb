"""The null floor: what the gap metrics read on two halves of one modality, where there is no gap at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.gap.divergence import subset_divergences
from cs_aligner_cli.gap.metrics import DEFAULT_BANDWIDTHS, check_bandwidths, debiased_gap, paired_rows


def null_floor(
    image: ArrayLike,
    text: ArrayLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    draws: int = 8,
) -> dict[str, float]:
    """Return what the distances between two clouds read without any gap, for image (N, d) and text (N, d).

    Each modality is split at random into two halves of N // 2 rows, ``draws`` times; the metrics are taken
    between the halves and averaged over draws and over both modalities. The floor therefore belongs to
    samples of N // 2 rows and lies somewhat above what N rows without a gap would read.

    Keys are those of ``measure_gap`` that compare two clouds: ``centroid_gap``, ``centroid_gap_debiased``,
    ``cs_divergence_v@s``, ``cs_divergence_u@s``. Metrics of pairs have no floor, since halves have no pairs;
    ``linear_separability`` without a gap is 0.5.

    Raises InputError as ``measure_gap`` does, and unless draws >= 1.
    """
    check_bandwidths(bandwidths)
    if draws < 1:
        raise InputError(f"draws: expected at least 1 split, got {draws}")
    clouds = paired_rows(image, text)
    first, second = split_halves(len(clouds[0]), draws, seed)
    per_cloud = [{**_centroids(z, first, second), **subset_divergences(z, first, second, bandwidths)} for z in clouds]
    return {key: float(torch.stack([floor[key] for floor in per_cloud]).mean()) for key in per_cloud[0]}


def split_halves(n: int, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two 0/1 masks (n, draws) whose columns mark disjoint random halves of n // 2 rows each."""
    rng = np.random.default_rng(seed)
    first, second = torch.zeros(2, n, draws, dtype=torch.float64)
    half = n // 2
    for draw in range(draws):
        order = torch.from_numpy(rng.permutation(n))
        first[order[:half], draw] = 1
        second[order[half : 2 * half], draw] = 1
    return first, second


def _centroids(z: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    half = len(z) // 2
    a, b = first.T @ z / half, second.T @ z / half
    debiased = [debiased_gap(mean_a, mean_b, half) for mean_a, mean_b in zip(a, b, strict=True)]
    return {
        "centroid_gap": (a - b).norm(dim=1),
        "centroid_gap_debiased": torch.tensor(debiased, dtype=torch.float64),
    }
