"""The null floor: what the gap metrics read on two halves of one modality, where there is no gap at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import KernelSums, kernel_sums, linear_sums, random_groups
from cs_aligner_cli.gap.kernel_metrics import centroid_metrics, divergence_metrics
from cs_aligner_cli.gap.paired_rows import DEFAULT_BANDWIDTHS, RowsLike, check_bandwidths, paired_rows

DRAWS = 8


def null_floor(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, float]:
    """Return what the distances between two clouds read without any gap, for image (N, d) and text (N, d).

    Each modality is split at random into two halves of about N // 2 rows, ``draws`` times; the metrics are taken
    between the halves and averaged over draws and over both modalities. The floor therefore belongs to samples of
    N // 2 rows and lies somewhat above what N rows without a gap would read.

    Keys are those of ``measure_gap`` that compare two clouds by kernel means: ``centroid_gap``,
    ``centroid_gap_debiased``, ``cs_divergence_*``, ``mmd_*``, ``energy_*``.

    Raises InputError as ``measure_gap`` does, and unless draws >= 1.
    """
    check_bandwidths(bandwidths)
    if draws < 1:
        raise InputError(f"draws: expected at least 1 split, got {draws}")
    x, y = paired_rows(image, text)
    groups = random_groups(len(x), seed)
    linear, kernels = linear_sums(x.numpy(), y.numpy(), groups), kernel_sums(x, y, groups, bandwidths)
    return {**centroid_floor(linear, seed, draws), **divergence_floor(kernels, bandwidths, seed, draws)}


def centroid_floor(linear: KernelSums, seed: int, draws: int = DRAWS) -> dict[str, float]:
    """The floor of the centroid gaps."""
    first, second = split_halves(len(linear.sizes), draws, seed)
    return _averaged([centroid_metrics(means) for means in linear.halves(first, second)])


def divergence_floor(
    kernels: Mapping[float, KernelSums], bandwidths: Sequence[float], seed: int, draws: int = DRAWS
) -> dict[str, float]:
    """The floor of D_CS, MMD and the energy distance."""
    halves = split_halves(len(next(iter(kernels.values())).sizes), draws, seed)
    sides = [{s: kernel.halves(*halves)[side] for s, kernel in kernels.items()} for side in (0, 1)]
    return _averaged([divergence_metrics(side, bandwidths) for side in sides])


def rows_floor(x: Tensor, y: Tensor, metric: Callable[[Tensor, Tensor], float], seed: int, draws: int = 2) -> float:
    """The floor of any metric of two samples of rows."""
    first, second = split_halves(len(x), draws, seed)
    halves = [(torch.from_numpy(a == 1), torch.from_numpy(b == 1)) for a, b in zip(first, second, strict=True)]
    return float(np.mean([metric(z[a], z[b]) for z in (x, y) for a, b in halves]))


def split_halves(n: int, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Return two 0/1 masks (draws, n) whose rows mark disjoint random halves of n // 2 each."""
    rng = np.random.default_rng(seed)
    first, second = np.zeros((2, draws, n))
    half = n // 2
    for draw in range(draws):
        order = rng.permutation(n)
        first[draw, order[:half]] = 1
        second[draw, order[half : 2 * half]] = 1
    return first, second


def _averaged(sides: Sequence[Mapping[str, Floats]]) -> dict[str, float]:
    return {key: float(np.mean([side[key] for side in sides])) for key in sides[0]}
