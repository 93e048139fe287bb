"""What metrics of unit rows can be: no interval goes further."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from cs_aligner_cli.common.shares import SHARE, UNBOUNDED, Bounds

_COSINE: Final[Bounds] = (-1.0, 1.0)
_FROM_ZERO: Final[Bounds] = (0.0, math.inf)
# By the name without its bandwidth. Unit rows are at most 2 apart. Estimates without bias are not here: they have no
# bounds but those of chance.
_BOUNDS: Final[Mapping[str, Bounds]] = {
    "centroid_gap": (0.0, 2.0),
    "centroid_share": SHARE,
    "paired_cosine": _COSINE,
    "margin": (-2.0, 2.0),
    "residual_ratio": _FROM_ZERO,
    "paired_distance": (0.0, 2.0),
    "alignment": (0.0, 4.0),
    "paired_residual": (0.0, 4.0),
    "rmg": SHARE,
    "cs_divergence_v": _FROM_ZERO,
    "mmd_v": (0.0, 2.0),
    "energy_v": (0.0, 4.0),
    "sliced_wasserstein": (0.0, 2.0),
    "frechet_covariance": _FROM_ZERO,
    "mutual_information": _FROM_ZERO,
    "mutual_knn": SHARE,
    "neighbour_purity": SHARE,
    "linear_cka": SHARE,
    "cluster_pairs": SHARE,
    "cluster_ari": (-1.0, 1.0),
    "cluster_v_measure": SHARE,
    "label_ari": (-1.0, 1.0),
    "label_v_measure": SHARE,
    "uniformity_image": (-8.0, 0.0),
    "uniformity_text": (-8.0, 0.0),
    "uniformity_pooled": (-8.0, 0.0),
    "conformity_image": _COSINE,
    "conformity_text": _COSINE,
    "effective_rank_image": _FROM_ZERO,
    "effective_rank_text": _FROM_ZERO,
    "effective_rank_raw_image": _FROM_ZERO,
    "effective_rank_raw_text": _FROM_ZERO,
    "linear_separability": SHARE,
    # Recalls, which reports test beside the gap.
    "R": SHARE,
    "mixed_R": SHARE,
}
# Shares that are counted over independent things: where none of these differs, their variance is 0, and says nothing.
_COUNTED = ("R", "mixed_R", "mutual_knn", "neighbour_purity", "linear_separability")


def is_counted(key: str) -> bool:
    """Whether a metric is a share of things that were counted, as queries answered."""
    return key.partition("@")[0] in _COUNTED


def metric_bounds(key: str) -> Bounds:
    """The least and the most that a gap metric, or a recall beside it, can be; infinite where nothing bounds it."""
    return _BOUNDS.get(key.partition("@")[0], UNBOUNDED)
