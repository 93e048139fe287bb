"""How well two frozen encoders fit before anything is trained: shared neighbours, CKA, and CCA on held-out pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.nn.functional import pad

from cs_aligner_cli.common.arrays import refuse_masked
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.shares import share_interval
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.baselines import BASELINES
from cs_aligner_cli.gap.neighbours import nearest_rows, neighbour_metrics, neighbour_spreads
from cs_aligner_cli.gap.paired_rows import paired_rows_of_any_width
from cs_aligner_cli.gap.shape import linear_cka, shuffled_cka

FOLDS, FEWEST_PAIRS = 5, 50
_NORMAL = 1.959963985


class PairScore(NamedTuple):
    """What is expected of two encoders, as fractions.

    ``recall``: R@1, the mean of both ways, of CCA on pairs that it was not fitted on, among ``gallery`` candidates;
    ``mutual_knn``: the share of the 10 nearest neighbours that both modalities agree on (Huh et al., ICML 2024);
    ``cka``: linear CKA (Kornblith et al., ICML 2019), and what it is after the pairs are shuffled. Intervals of 95%.
    """

    recall: float
    recall_interval: tuple[float, float]
    gallery: int
    mutual_knn: float
    mutual_knn_interval: tuple[float, float]
    cka: float
    cka_shuffled: float


def score_pair(
    x: npt.NDArray[np.floating], y: npt.NDArray[np.floating], seed: int = 0, folds: int = FOLDS
) -> PairScore:
    """Score row-paired features x (N, d) and y (N, e) of two encoders, one caption of each image.

    CCA is fitted on all folds but one, its shrinkage being chosen within them, and asked to retrieve the pairs of the
    one that is left out; so every pair is asked once by a map that does not know it. The gallery is one fold: recalls
    compare encoders on the same pairs, and are no forecast for galleries of another size. Raises InputError for fewer
    than 50 pairs, and for rows that do not fit, are not finite or all zeros.
    """
    if len(x) != len(y):
        raise InputError(f"x and y are no pairs: {len(x)} rows against {len(y)}")
    refuse_masked(x, "x")
    refuse_masked(y, "y")
    if len(x) < FEWEST_PAIRS:
        raise InputError(f"{len(x)} pairs are too few to score encoders on; expected at least {FEWEST_PAIRS}")
    tensors = paired_rows_of_any_width(x, y)
    image, text = (z.numpy() for z in tensors)
    hits = _held_out_hits(image, text, np.random.default_rng(seed).permutation(len(x)) % folds)
    recall, error = float(hits.mean()), float(hits.std(ddof=1)) / math.sqrt(len(hits))
    # Neighbours are sought within each modality; zeros beyond the narrower one's width change none of its cosines.
    width = max(image.shape[1], text.shape[1])
    padded = [pad(z, (0, width - z.shape[1])) for z in tensors]
    near = nearest_rows(padded[0], padded[1])
    shared, spread = neighbour_metrics(near)["mutual_knn"], neighbour_spreads(near, seed)["mutual_knn"].error
    return PairScore(
        recall,
        _interval(recall, error, len(x)),
        len(x) // folds,
        shared,
        _interval(shared, spread, len(x)),
        float(linear_cka(*tensors).value),
        shuffled_cka(*tensors, seed),
    )


def _held_out_hits(x: Floats, y: Floats, fold: Ints) -> Floats:
    """(N,) of every pair, the mean of both ways, whether CCA of the other folds finds it among its own fold."""
    hits = np.zeros(len(x))
    for number in range(fold.max() + 1):
        known, asked = fold != number, fold == number
        image, text = BASELINES["cca"](x[known], y[known])
        cosines = _unit(image(x[asked])) @ _unit(text(y[asked])).T
        own = np.arange(len(cosines))
        hits[asked] = ((cosines.argmax(axis=1) == own).astype(float) + (cosines.argmax(axis=0) == own)) / 2
    return hits


def _interval(share: float, error: float, pairs: int) -> tuple[float, float]:
    low, high = share_interval(share, error**2, pairs, _NORMAL)
    return low, high


def _unit(rows: npt.NDArray[np.floating]) -> Floats:
    wide = rows.astype(np.float64)
    unit: Floats = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit
