"""D_CS of any number of pairs: one pass over the rows, block by block, against landmarks of both modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.gap.paired_rows import PairedRows
from cs_aligner_cli.objectives.approximation import cs_of_landmarks

_LANDMARKS = 1024
# Rows whose kernel values with all landmarks are held at a time: they stay in the processor's cache.
_ROWS = 256


def approximate_divergences(
    pairs: PairedRows, bandwidths: Sequence[float], seed: int, tell: Callable[[str], None]
) -> dict[str, float]:
    """D_CS, V, at every bandwidth s by Nystroem's method with 1,024 landmarks: ``cs_divergence_v@s``.

    ``cs_divergence_fall@s`` is how much of it half of the landmarks do not see, about as far as it lies too low. The
    landmarks are random pairs, both rows of each; memory is a block of rows times landmarks. Raises InputError as
    ``objectives.nystroem_cs``.
    """
    drawn = np.random.default_rng(seed).permutation(len(pairs))[: _LANDMARKS // 2]
    image, text = pairs.take(drawn)
    # Both rows of a pair side by side: every even number of the first landmarks is a half of each modality.
    landmarks = torch.stack([image, text], dim=1).flatten(0, 1)
    sums = torch.zeros(2, len(bandwidths), len(landmarks), dtype=torch.float64)
    for at, *sides in pairs.blocks():
        tell(f"divergences of all pairs, {at.stop:,} of {len(pairs):,}")
        for side, block in zip(sums, sides, strict=True):
            for start in range(0, len(block), _ROWS):
                _add_kernels(side, block[start : start + _ROWS], landmarks, bandwidths)
    means = sums / len(pairs)
    found: dict[str, float] = {}
    for s, (of_image, of_text) in zip(bandwidths, means.transpose(0, 1), strict=True):
        half, full = (
            float(cs_of_landmarks(of_image[:count], of_text[:count], landmarks[:count], [s]))
            for count in (len(landmarks) // 2, len(landmarks))
        )
        found |= {f"cs_divergence_v@{s:.4g}": full, f"cs_divergence_fall@{s:.4g}": full - half}
    return found


def _add_kernels(sums: Tensor, rows: Tensor, landmarks: Tensor, bandwidths: Sequence[float]) -> None:
    """Add each Gaussian kernel of unit rows (B, d) with unit landmarks (m, d), summed over rows, to sums (S, m)."""
    squared = (rows @ landmarks.T).mul_(-2).add_(2).clamp_(min=0)
    for total, s in zip(sums, bandwidths, strict=True):
        total += (squared / (-2 * s * s)).exp_().sum(dim=0)
