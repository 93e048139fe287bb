"""How well a linear classifier tells image rows from text rows, and how many dimensions it needs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats

Ints: TypeAlias = npt.NDArray[np.int64]

_FOLDS = 5
_NEARLY = 0.99


def separability(x: Tensor, y: Tensor, seed: int = 0) -> tuple[Floats, int]:
    """Held-out accuracy per pair (N,), each 0, 0.5 or 1, of an image-or-text logistic regression; and dimensions.

    5-fold cross-validation over row-paired x (N, d), y (N, d) (N folds if there are fewer pairs) with scikit-learn's
    default L2 penalty; both rows of a pair always share a fold. The dimensions are the least power of two of
    coordinates, those with the largest standardised mean difference first, that reach 99% of the first fold's
    accuracy. Schrodi et al. (2024) find that two suffice to tell CLIP's modalities apart.
    """
    from threadpoolctl import threadpool_limits

    images, texts = x.numpy(), y.numpy()
    correct = np.zeros(len(images))
    every = np.arange(images.shape[1])
    folds = list(_folds(len(images), seed))
    # Fits of this size lose more by splitting each product over the cores than they win; the folds share them instead.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda fold: _correct(images, texts, fold[0], fold[1], every), folds)
        for (_, held_out), of_fold in zip(folds, found, strict=True):
            correct[held_out] = of_fold
        train, held_out = folds[0]
        return correct, _dimensions(images, texts, train, held_out, float(correct[held_out].mean()))


def _correct(images: Floats, texts: Floats, train: Ints, held_out: Ints, kept: Ints) -> Floats:
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([images[np.ix_(train, kept)], texts[np.ix_(train, kept)]])
    model = LogisticRegression(max_iter=1000).fit(rows, np.repeat([0, 1], len(train)))
    image, text = (model.predict(z[np.ix_(held_out, kept)]) for z in (images, texts))
    share: Floats = ((image == 0).astype(float) + (text == 1)) / 2
    return share


def _dimensions(images: Floats, texts: Floats, train: Ints, held_out: Ints, accuracy: float) -> int:
    a, b = images[train], texts[train]
    spread = np.sqrt(a.var(axis=0) + b.var(axis=0)) + np.finfo(float).tiny
    ranked = np.argsort(-np.abs(a.mean(axis=0) - b.mean(axis=0)) / spread, kind="stable")
    count = 1
    while count < len(ranked):
        if _correct(images, texts, train, held_out, ranked[:count]).mean() >= _NEARLY * accuracy:
            return count
        count *= 2
    return len(ranked)


def _folds(n: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield (train, held-out) pair indices; whole pairs move, so that no pair straddles the two."""
    shuffled = np.random.default_rng(seed).permutation(n)
    for held_out in np.array_split(shuffled, min(_FOLDS, n)):
        yield np.setdiff1d(shuffled, held_out), held_out
