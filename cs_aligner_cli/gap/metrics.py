"""Modality-gap metrics of row-paired image and text features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows, l2_normalize, same_width
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.gap.divergence import subset_divergences, uniformity
from cs_aligner_cli.objectives import mutual_information, nystroem_cs

DEFAULT_BANDWIDTHS = (0.5, 0.7071067811865476, 1.0)
MIN_PAIRS = 4
EXACT_PAIRS = 20_000
_LANDMARKS = 1024
_FOLDS = 5


def measure_gap(
    image: ArrayLike,
    text: ArrayLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
) -> dict[str, float]:
    """Measure the gap between image (N, d) and text (N, d), row i of one belonging to row i of the other.

    Rows are scaled to unit L2 norm first and everything is computed in float64 on the CPU. With x_i, y_i the
    unit rows and mx, my their means, the keys of the returned dict are, in this order:

    - ``pairs``: N.
    - ``centroid_gap``: ||mx - my|| (Liang et al., Mind the Gap, NeurIPS 2022).
    - ``centroid_gap_debiased``: sqrt(s_xx + s_yy - 2 s_xy) with s the mean cosines, off-diagonal within a
      modality, which takes the sampling bias out of the square. Where the squared estimate is negative, 0.0
      is returned. It takes the clouds for independent samples; rows that are pairs leave a bias of
      -2 (mean paired cosine - mean unpaired cosine) / N in the square.
    - ``paired_distance``: mean_i ||x_i - y_i|| (L2I of Schrodi et al., Two Effects, One Trigger, 2024).
    - ``paired_cosine``: mean_i x_i . y_i.
    - ``rmg``: m / ((dxx + dyy) / 2 + m) with d(u, v) = (1 - cos(u, v)) / 2, m = mean_i d(x_i, y_i), and dxx
      and dyy the means over i != j (the off-diagonal variant of Schrodi et al. 2024); 0.0 if pairs coincide.
    - ``alignment``: mean_i ||x_i - y_i||^2 (Wang & Isola, ICML 2020, alpha = 2).
    - ``uniformity_image``, ``uniformity_text``: log mean_{i<j} exp(-2 ||x_i - x_j||^2) (ibid., t = 2).
    - ``cs_divergence_v@s``, ``cs_divergence_u@s`` per bandwidth s (printed with ``:.4g``): the Cauchy-Schwarz
      divergence log mean kxx + log mean kyy - 2 log mean kxy with a Gaussian kernel, diagonals kept (V, Yin
      et al., ICLR 2026) or left out of kxx and kyy (U, which can be negative). It equals
      ``objectives.cs_divergence``, but comes out of one pass over the distances for all bandwidths.
    - ``mutual_information``: the largest bound log N - InfoNCE over temperatures, in nats
      (``objectives.mutual_information``).
    - ``linear_separability``: accuracy of a logistic regression that tells image rows from text rows, over
      5 held-out folds of pairs drawn with ``seed``; both rows of a pair always share a fold.

    With more than ``exact_pairs`` pairs, what takes all pairs of rows is not exact any more: uniformity, mutual
    information and separability are those of that many evenly spaced pairs, and of D_CS there is V alone, by
    ``objectives.nystroem_cs`` on all rows with 1,024 landmarks. Beside it stands ``cs_divergence_fall@s``, its fall
    from half the landmarks to all of them, which says about how far it lies too low.

    Raises InputError on unequal row counts or widths, fewer than 4 pairs, rows that are not finite or of zero
    length, and bandwidths that are not positive or print alike.
    """
    x, y = paired_rows(image, text)
    check_bandwidths(bandwidths)
    found: dict[str, float] = {"pairs": len(x), **_centroids(x, y), **_pairs(x, y)}
    if len(x) <= exact_pairs:
        divergences = cloud_divergences(x, y, bandwidths)
    else:
        divergences = _large_divergences(x, y, bandwidths, seed)
        kept = evenly_spaced(len(x), exact_pairs)
        x, y = x[kept], y[kept]
    return {
        **found,
        "uniformity_image": uniformity(x),
        "uniformity_text": uniformity(y),
        **divergences,
        "mutual_information": mutual_information(x, y),
        "linear_separability": linear_separability(x, y, seed),
    }


def evenly_spaced(rows: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` evenly spaced numbers of ``rows`` rows, in order."""
    return np.linspace(0, rows - 1, min(rows, count)).round().astype(np.int64)


def _large_divergences(x: Tensor, y: Tensor, bandwidths: Sequence[float], seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for s in bandwidths:
        half, full = (float(nystroem_cs(x, y, s, landmarks, seed)) for landmarks in (_LANDMARKS // 2, _LANDMARKS))
        found |= {f"cs_divergence_v@{s:.4g}": full, f"cs_divergence_fall@{s:.4g}": full - half}
    return dict(sorted(found.items(), key=lambda item: "fall" in item[0]))


def paired_rows(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return both (N, d) inputs as unit rows in float64 on the CPU; raises InputError as ``measure_gap``."""
    x, y = (as_rows(a, name).detach().cpu().double() for a, name in ((image, "image"), (text, "text")))
    if len(x) != len(y):
        raise InputError(
            f"image and text are not row-paired: {len(x)} image rows against {len(y)} text rows",
            "Row i of one must belong to row i of the other; repeat an image that has several captions.",
        )
    same_width(x, y)
    if len(x) < MIN_PAIRS:
        raise InputError(f"the gap needs at least {MIN_PAIRS} pairs, got {len(x)}")
    return _unit(x, "image"), _unit(y, "text")


def _unit(x: Tensor, name: str) -> Tensor:
    _refuse_rows(~x.isfinite().all(dim=1), name, "not finite (NaN or infinity)")
    # Dividing by the largest entry first keeps the norm of huge and of tiny rows representable.
    largest = x.abs().amax(dim=1, keepdim=True)
    _refuse_rows(largest[:, 0] == 0, name, "all zeros and so have no direction")
    return l2_normalize(x / largest)


def _refuse_rows(bad: Tensor, name: str, what: str) -> None:
    if bad.any():
        first = int(bad.int().argmax())
        raise InputError(f"{name}: {int(bad.sum())} of {len(bad)} rows are {what}; the first is row {first}")


def check_bandwidths(bandwidths: Sequence[float]) -> None:
    """Raise InputError unless every kernel bandwidth is positive, finite and prints unlike the others."""
    for s in bandwidths:
        if not (s > 0 and math.isfinite(s)):
            raise InputError(f"bandwidths: expected positive finite numbers, got {s}")
    if len({f"{s:.4g}" for s in bandwidths}) < len(bandwidths):
        raise InputError(f"bandwidths: two of {list(bandwidths)} are equal when printed to four digits")


def _centroids(x: Tensor, y: Tensor) -> dict[str, float]:
    mx, my = x.mean(dim=0), y.mean(dim=0)
    return {
        "centroid_gap": float((mx - my).norm()),
        "centroid_gap_debiased": debiased_gap(mx, my, len(x)),
    }


def debiased_gap(mx: Tensor, my: Tensor, n: int) -> float:
    """Debiased centroid gap of two means (d,) of n unit rows each; 0.0 where its square is negative."""
    squared = _mean_cosine(mx, n) + _mean_cosine(my, n) - 2 * float(mx @ my)
    return math.sqrt(max(squared, 0.0))


def _mean_cosine(mean: Tensor, n: int) -> float:
    """Mean cosine over i != j of n unit rows: sum_ij x_i . x_j is n^2 |mean|^2, with n on the diagonal."""
    return (n * float(mean @ mean) - 1) / (n - 1)


def _pairs(x: Tensor, y: Tensor) -> dict[str, float]:
    squared = (x - y).square().sum(dim=1)
    # On unit rows (1 - cos) / 2 = |x - y|^2 / 4, which does not cancel for near pairs.
    m = float(squared.mean()) / 4
    within = sum((1 - _mean_cosine(z.mean(dim=0), len(z))) / 2 for z in (x, y)) / 2
    return {
        "paired_distance": float(squared.sqrt().mean()),
        "paired_cosine": float((x * y).sum(dim=1).mean()),
        "rmg": m / (within + m) if m > 0 else 0.0,
        "alignment": float(squared.mean()),
    }


def cloud_divergences(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> dict[str, float]:
    """D_CS between unit rows x (M, d) and y (N, d), float64: V, then U, keyed as in ``measure_gap``."""
    is_image = torch.cat([torch.ones(len(x), 1), torch.zeros(len(y), 1)]).double()
    found = subset_divergences(torch.cat([x, y]), is_image, 1 - is_image, bandwidths)
    return {key: float(value) for key, value in found.items()}


def linear_separability(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Held-out accuracy in [0, 1] of an image-or-text logistic regression on paired rows x (N, d), y (N, d).

    5-fold cross-validation over pairs (N folds if there are fewer pairs) with scikit-learn's default L2
    penalty. Schrodi et al. (2024) find that two dimensions suffice to tell CLIP's modalities apart.
    """
    from sklearn.linear_model import LogisticRegression

    images, texts = x.numpy(), y.numpy()
    correct = 0.0
    for train, held_out in _folds(len(images), seed):
        model = LogisticRegression(max_iter=1000).fit(
            np.concatenate([images[train], texts[train]]), np.repeat([0, 1], len(train))
        )
        correct += float((model.predict(images[held_out]) == 0).sum() + (model.predict(texts[held_out]) == 1).sum())
    return correct / (2 * len(images))


def _folds(n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train, held-out) pair indices; whole pairs move, so that no pair straddles the two."""
    shuffled = np.random.default_rng(seed).permutation(n)
    for held_out in np.array_split(shuffled, min(_FOLDS, n)):
        yield np.setdiff1d(shuffled, held_out), held_out
