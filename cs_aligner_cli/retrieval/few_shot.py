"""Few-shot classification from embeddings: k labelled images of each class, without and with the class names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.shares import SHARE, cut_off
from cs_aligner_cli.common.types import Ints

# CLIP's largest logit scale; Tip-Adapter's sharpness and weight where nothing is searched for.
_SCALE, _BETA, _ALPHA = 100.0, 5.5, 1.0
# Rows that are asked at once.
_BLOCK = 1024
# Weight of the probe's penalty: |W|^2 / 2 over the images, beside their mean cross-entropy.
_PENALTY, _ITERATIONS = 1e-2, 60


class Shots(NamedTuple):
    """What a method learns from: unit rows (C k, d) with class numbers (C k,), and unit rows of the names (C, d)."""

    rows: Tensor
    labels: Tensor
    classes: Tensor


def nearest_mean(shots: Shots, asked: Tensor) -> Tensor:
    """Cosines (N, C) with the mean of each class's shots (prototypes: Snell et al., NeurIPS 2017)."""
    sums = one_hot(shots.labels, len(shots.classes)).to(shots.rows).T @ shots.rows
    return asked @ l2_normalize(sums).T


def linear_probe(shots: Shots, asked: Tensor) -> Tensor:
    """Logits (N, C) of a multinomial logistic regression on the shots, rows from their mean, with an L2 penalty."""
    mean = shots.rows.mean(dim=0)
    x = shots.rows - mean
    x = x / x.square().mean().sqrt().clamp(min=1e-12)
    weight = x.new_zeros(len(shots.classes), x.shape[1]).requires_grad_()
    bias = x.new_zeros(len(shots.classes)).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight.T + bias, shots.labels) + _PENALTY * weight.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale = (shots.rows - mean).square().mean().sqrt().clamp(min=1e-12)
    return ((asked - mean) / scale @ weight.T + bias).detach()


def tip_adapter(shots: Shots, asked: Tensor) -> Tensor:
    """Logits (N, C) of a cache of the shots beside the names of the classes, without training.

    ``100 f . names + alpha exp(-beta (1 - f . shots)) onehot``, alpha = 1 and beta = 5.5 (Tip-Adapter, Zhang et al.,
    ECCV 2022, arXiv 2111.03930, eq. 3 and 6).
    """
    known = one_hot(shots.labels, len(shots.classes)).to(asked)
    # Block by block: of ImageNet's 50,000 images and 16,000 shots all at once would take 3 GB, several times over.
    cached = [torch.exp(-_BETA * (1 - block @ shots.rows.T)) @ known for block in torch.split(asked, _BLOCK)]
    return _SCALE * (asked @ shots.classes.T) + _ALPHA * torch.cat(cached)


def zero_shot(shots: Shots, asked: Tensor) -> Tensor:
    """Cosines (N, C) with the names of the classes: what no shot changes."""
    return asked @ shots.classes.T


METHODS: Final[dict[str, Callable[[Shots, Tensor], Tensor]]] = {
    "zero_shot": zero_shot,
    "nearest_mean": nearest_mean,
    "linear_probe": linear_probe,
    "tip_adapter": tip_adapter,
}


class ShotAccuracy(NamedTuple):
    """The mean accuracy over draws and its 95% interval (Student's t over draws, within 0 and 1; NaN for one draw, or
    equal ones)."""

    mean: float
    low: float
    high: float


def few_shot(
    known: Tensor,
    known_labels: Ints,
    asked: Tensor,
    asked_labels: Ints,
    classes: Tensor,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws: int = 10,
    seed: int = 0,
    methods: Mapping[str, Callable[[Shots, Tensor], Tensor]] = METHODS,
) -> dict[str, dict[int, ShotAccuracy]]:
    """Accuracy on ``asked`` rows (N, d) of every method by shots, from ``known`` rows (M, d) and class rows (C, d).

    Every draw takes k of the known rows of each class at random; all methods get the same ones, and a draw of more
    shots holds those of fewer. Rows are scaled to unit length; equal scores go to the first class. Raises InputError
    where a class has fewer known rows than the largest k.
    """
    rows, queries, names = (l2_normalize(z.float()) for z in (known, asked, classes))
    counts = np.bincount(known_labels, minlength=len(names))
    if counts.min() < max(shots):
        raise InputError(
            f"shots: {max(shots)} images of each class are wanted, but class {int(counts.argmin())} (counted from 0) "
            f"has {int(counts.min())}"
        )
    hits: dict[str, dict[int, list[float]]] = {name: {k: [] for k in shots} for name in methods}
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        order = [rng.permutation(np.flatnonzero(known_labels == c)) for c in range(len(names))]
        for k in shots:
            chosen = np.concatenate([own[:k] for own in order])
            taught = Shots(rows[chosen], torch.from_numpy(known_labels[chosen]), names)
            for name, method in methods.items():
                predicted = method(taught, queries).argmax(dim=1).numpy()
                hits[name][k].append(float((predicted == asked_labels).mean()))
    return {name: {k: _over_draws(found) for k, found in by_k.items()} for name, by_k in hits.items()}


def _over_draws(values: Sequence[float]) -> ShotAccuracy:
    mean = float(np.mean(values))
    if len({*values}) < 2:
        return ShotAccuracy(mean, math.nan, math.nan)
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return ShotAccuracy(mean, *cut_off(mean, [mean - reach, mean + reach], SHARE))
