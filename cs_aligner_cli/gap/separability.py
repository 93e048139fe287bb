"""How well a linear classifier tells image rows from text rows, and how many dimensions it needs."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dposv
from torch import Tensor

from cs_aligner_cli.common.types import Floats, Ints

_FOLDS = 5
_NEARLY = 0.99
# Penalties that are tried, in mean eigenvalues of the rows' covariance.
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class _Moments(NamedTuple):
    """Sums over pairs (n) under L labellings (signs of the images, -signs of the texts): of rows (d,), of products of
    rows (d, d), of rows times labels (d, L), and the number of rows."""

    rows: Floats
    products: Floats
    labelled: Floats
    size: int

    def less(self, *others: _Moments) -> _Moments:
        rows, products, labelled, size = (
            part - sum(theirs) for part, theirs in zip(self, zip(*others, strict=True), strict=True)
        )
        return _Moments(rows, products, labelled, size)


def separability(x: Tensor, y: Tensor, signs: Floats, seed: int = 0) -> tuple[Floats, int]:
    """Held-out accuracy per pair (N, L), each 0, 0.5 or 1, of an image-or-text classifier; and dimensions it needs.

    Row-paired x (N, d), y (N, d) under L labellings: ``signs`` (L, N), where -1 swaps the members of a pair; for the
    data themselves the first is all 1. Ridge regression on labels of +-1 (linear discriminant analysis, shrunk), with
    5 folds (N if there are fewer pairs); both rows of a pair share a fold. The penalty of a fold is the one of six that
    is best on the other folds, each held out in turn. The dimensions, of the first labelling, are the least power of
    two of coordinates, those with the largest standardised mean difference first, that reach 99% of the first fold's
    accuracy. Schrodi et al. (2024) find that two suffice to tell CLIP's modalities apart.

    A swap changes labels alone, so that all labellings share each fold's covariance and its factors.
    """
    sides, labels = (x.numpy(), y.numpy()), signs.T
    folds = np.array_split(np.random.default_rng(seed).permutation(len(x)), min(_FOLDS, len(x)))
    parts = [_moments(sides[0][rows], sides[1][rows], labels[rows]) for rows in folds]
    whole = _moments(*sides, labels)
    right = np.zeros((len(folds), len(_PENALTIES), labels.shape[1]))
    for pair in combinations(range(len(folds)), 2):
        # What is fitted without two folds is tried on each, to choose the penalty for the other.
        moments = whole.less(*(parts[fold] for fold in pair))
        for number, penalty in enumerate(_PENALTIES):
            weights = _fit(moments, penalty)
            for outer, inner in (pair, pair[::-1]):
                right[outer, number] += _correct(weights, moments, sides, labels, folds[inner]).sum(axis=0)
    chosen = right.argmax(axis=1)
    correct = np.zeros(labels.shape)
    for fold, (rows, part) in enumerate(zip(folds, parts, strict=True)):
        moments = whole.less(part)
        for number in np.unique(chosen[fold]):
            those = chosen[fold] == number
            weights = _fit(moments, _PENALTIES[number])[:, those]
            correct[np.ix_(rows, those)] = _correct(weights, moments, sides, labels[:, those], rows)
    first = _PENALTIES[int(chosen[0, 0])], float(correct[folds[0], 0].mean())
    return correct, _dimensions(whole.less(parts[0]), sides, labels[:, :1], folds[0], *first)


def _moments(image: Floats, text: Floats, labels: Floats) -> _Moments:
    products = image.T @ image + text.T @ text
    return _Moments(image.sum(axis=0) + text.sum(axis=0), products, (image - text).T @ labels, 2 * len(image))


def _fit(moments: _Moments, penalty: float, kept: Ints | None = None) -> Floats:
    """Weights (d, L), zero but for the coordinates ``kept``: rows above the mean's score are images."""
    kept = np.arange(len(moments.rows)) if kept is None else kept
    mean = moments.rows[kept] / moments.size
    covariance = moments.products[np.ix_(kept, kept)] / moments.size - np.outer(mean, mean)
    # Rows that all coincide have no covariance; any ridge leaves their zeros as they are.
    ridge = penalty * float(np.trace(covariance)) / len(kept)
    covariance[np.diag_indices_from(covariance)] += ridge if ridge > 1e-14 else 1.0
    weights = np.zeros(moments.labelled.shape)
    # Images are as many as texts, whoever is swapped: labels have no mean.
    # LAPACK itself: scipy.linalg.solve takes twice as long, for checks and an estimate of the condition.
    _, weights[kept], failed = dposv(covariance.T, moments.labelled[kept] / moments.size, lower=1, overwrite_a=1)
    if failed:
        raise LinAlgError(f"the covariance of the rows is not positive definite: LAPACK's info is {failed}")
    return weights


def _correct(
    weights: Floats, moments: _Moments, sides: tuple[Floats, Floats], labels: Floats, held_out: Ints
) -> Floats:
    """(len(held_out), L) the share of a pair's two rows that get their label; a score of 0 is right by half."""
    offset = moments.rows / moments.size @ weights
    image, text = (np.sign(side[held_out] @ weights - offset) for side in sides)
    share: Floats = (2 + (image - text) * labels[held_out]) / 4
    return share


def _dimensions(
    moments: _Moments, sides: tuple[Floats, Floats], labels: Floats, held_out: Ints, penalty: float, accuracy: float
) -> int:
    moments = moments._replace(labelled=moments.labelled[:, :1])
    mean, apart = moments.rows / moments.size, np.abs(moments.labelled[:, 0] / moments.size)
    spread = np.sqrt(np.maximum(np.diag(moments.products) / moments.size - mean**2, 0)) + np.finfo(float).tiny
    ranked = np.argsort(-apart / spread, kind="stable")
    count = 1
    while count < len(ranked):
        weights = _fit(moments, penalty, ranked[:count])
        if _correct(weights, moments, sides, labels, held_out).mean() >= _NEARLY * accuracy:
            return count
        count *= 2
    return len(ranked)
