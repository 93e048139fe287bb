"""How well a linear classifier tells image rows from text rows, and how many dimensions it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dposv
from torch import Tensor

from cs_aligner_cli.common.types import Floats, Floats32

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

    @classmethod
    def of(cls, image: Floats, text: Floats, labels: Floats) -> _Moments:
        products = image.T @ image + text.T @ text
        return cls(image.sum(axis=0) + text.sum(axis=0), products, (image - text).T @ labels, 2 * len(image))

    def less(self, *others: _Moments) -> _Moments:
        rows, products, labelled, size = (
            part - sum(theirs) for part, theirs in zip(self, zip(*others, strict=True), strict=True)
        )
        return _Moments(rows, products, labelled, size)


class _HeldOut(NamedTuple):
    """The pairs of a fold: image rows and text rows (n, d) and their labels (n, L)."""

    image: Floats
    text: Floats
    labels: Floats

    def correct(self, weights: Floats, moments: _Moments) -> Floats:
        """(n, L) the share of a pair's two rows that get their label; a score of 0 is right by half."""
        offset = moments.rows / moments.size @ weights
        image, text = (np.sign(rows @ weights - offset) for rows in (self.image, self.text))
        share: Floats = (2 + (image - text) * self.labels) / 4
        return share


class _Judged(NamedTuple):
    """A fold's pairs in float32, for what is only compared: both rows of each (2n, d), and labels (2n, L), of the
    texts with the other sign."""

    rows: Floats32
    labels: Floats32

    @classmethod
    def of(cls, fold: _HeldOut) -> _Judged:
        rows, labels = np.concatenate([fold.image, fold.text]), np.concatenate([fold.labels, -fold.labels])
        return cls(rows.astype(np.float32), labels.astype(np.float32))

    def right(self, weights: Floats, moments: _Moments) -> Floats:
        """(L,) how many rows get their label, less how many do not; weights (d, L)."""
        scores = self.rows @ weights.astype(np.float32)
        scores -= (moments.rows / moments.size @ weights).astype(np.float32)
        right: Floats = np.einsum("ij,ij->j", np.sign(scores, out=scores), self.labels)
        return right


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
    labels = signs.T
    folds = np.array_split(np.random.default_rng(seed).permutation(len(x)), min(_FOLDS, len(x)))
    held_out = [_HeldOut(x.numpy()[rows], y.numpy()[rows], labels[rows]) for rows in folds]
    parts = [_Moments.of(*fold) for fold in held_out]
    whole = _Moments(*(sum(part) for part in zip(*parts, strict=True)))
    judged = [_Judged.of(fold) for fold in held_out]
    right = np.zeros((len(folds), len(_PENALTIES), labels.shape[1]))
    for pair in combinations(range(len(folds)), 2):
        # What is fitted without two folds is tried on each, to choose the penalty for the other.
        moments = whole.less(*(parts[fold] for fold in pair))
        for number, weights in enumerate(_fits(moments, _PENALTIES)):
            for outer, inner in (pair, pair[::-1]):
                right[outer, number] += judged[inner].right(weights, moments)
    chosen = right.argmax(axis=1)
    correct = np.zeros(labels.shape)
    for fold, rows in enumerate(folds):
        moments, numbers = whole.less(parts[fold]), np.unique(chosen[fold])
        for number, weights in zip(numbers, _fits(moments, [_PENALTIES[i] for i in numbers]), strict=True):
            those = chosen[fold] == number
            correct[np.ix_(rows, those)] = held_out[fold].correct(weights, moments)[:, those]
    first = _PENALTIES[int(chosen[0, 0])], float(correct[folds[0], 0].mean())
    return correct, _dimensions(whole.less(parts[0]), held_out[0], *first)


def _fits(moments: _Moments, penalties: Sequence[float]) -> Iterator[Floats]:
    """The weights (d, L) for each penalty: rows that score above their mean are images."""
    mean = moments.rows / moments.size
    covariance = moments.products / moments.size
    covariance -= np.outer(mean, mean)
    of_labels = np.asfortranarray(moments.labelled / moments.size)
    diagonal, own = np.diag_indices_from(covariance), np.diag(covariance).copy()
    for penalty in penalties:
        # Rows that all coincide have no covariance; any ridge leaves their zeros as they are.
        ridge = penalty * float(own.mean())
        covariance[diagonal] = own + (ridge if ridge > 1e-14 else 1.0)
        # Images are as many as texts, whoever is swapped: labels have no mean.
        # LAPACK itself: scipy.linalg.solve takes twice as long, for checks and an estimate of the condition.
        _, weights, failed = dposv(covariance.T, of_labels, lower=1)
        if failed:
            raise LinAlgError(f"the covariance of the rows is not positive definite: LAPACK's info is {failed}")
        yield weights


def _dimensions(moments: _Moments, held_out: _HeldOut, penalty: float, accuracy: float) -> int:
    moments = moments._replace(labelled=moments.labelled[:, :1])
    held_out = held_out._replace(labels=held_out.labels[:, :1])
    mean, apart = moments.rows / moments.size, np.abs(moments.labelled[:, 0] / moments.size)
    spread = np.sqrt(np.maximum(np.diag(moments.products) / moments.size - mean**2, 0)) + np.finfo(float).tiny
    ranked = np.argsort(-apart / spread, kind="stable")
    count = 1
    while count < len(ranked):
        kept = ranked[:count]
        few = _Moments(moments.rows[kept], moments.products[np.ix_(kept, kept)], moments.labelled[kept], moments.size)
        (weights,) = _fits(few, [penalty])
        of_few = _HeldOut(held_out.image[:, kept], held_out.text[:, kept], held_out.labels)
        if of_few.correct(weights, few).mean() >= _NEARLY * accuracy:
            return count
        count *= 2
    return len(ranked)
