"""Who is near whom: shared neighbours of a pair, how far neighbourhoods mix the modalities, hubs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.groups import BLOCK
from cs_aligner_cli.gap.results import Spread
from cs_aligner_cli.retrieval.bootstrap import skewness_of_sums

NEIGHBOURS = 10
# Random halves, and how many of the nearest rows are kept so that 10 of them are in a half.
_SPLITS, _KEPT = 40, 50


class Near(NamedTuple):
    """Who is near whom among n pairs, the nearest first: (n, r) ``image`` and ``text`` within a modality, (2n, r)
    ``pooled`` in both together; and (n,) in how many lists of the other modality's rows each stands: ``of_image`` of
    images in those of texts, ``of_text`` of texts. ``k`` of the r count, the others are there for subsamples."""

    image: Ints
    text: Ints
    pooled: Ints
    of_image: Floats
    of_text: Floats
    k: int


def nearest_rows(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> Near:
    """The nearest rows of each among unit rows x, y (n, d); k is at most n - 1."""
    n = len(x)
    k = min(k, n - 1)
    most = min(_KEPT, n - 1)
    lists: dict[str, list[Tensor]] = {"image": [], "text": [], "pooled": [], "pooled texts": []}
    occurrence = {name: torch.zeros(n, dtype=torch.int64) for name in ("image", "text")}
    for start in range(0, n, BLOCK):
        rows = torch.arange(start, min(start + BLOCK, n))
        inside = {name: _without_self(z[rows] @ z.T, rows).topk(most) for name, z in (("image", x), ("text", y))}
        across = {"image": (x[rows] @ y.T).topk(min(_KEPT, n)), "text": (y[rows] @ x.T).topk(min(_KEPT, n))}
        for name, found in inside.items():
            lists[name].append(found.indices)
        # The nearest of both modalities are among the nearest of each.
        for name, images, texts in (
            ("pooled", inside["image"], across["image"]),
            ("pooled texts", across["text"], inside["text"]),
        ):
            values = torch.cat([images.values, texts.values], dim=1)
            numbers = torch.cat([images.indices, n + texts.indices], dim=1)
            lists[name].append(numbers.gather(1, values.topk(min(_KEPT, 2 * n - 1)).indices))
        for name, other in (("image", "text"), ("text", "image")):
            occurrence[other] += across[name].indices[:, :k].flatten().bincount(minlength=n)
    image, text = (torch.cat(lists[name]).numpy() for name in ("image", "text"))
    pooled = torch.cat([*lists["pooled"], *lists["pooled texts"]]).numpy()
    return Near(image, text, pooled, occurrence["image"].double().numpy(), occurrence["text"].double().numpy(), k)


def neighbour_metrics(near: Near) -> dict[str, float]:
    """What the lists of neighbours say:

    - ``mutual_knn``: |kNN(x_i) & kNN(y_i)| / k, neighbours being sought among the images for x_i and among the texts
      for y_i (Huh et al., The Platonic Representation Hypothesis, ICML 2024).
    - ``neighbour_purity``: the share of the k nearest rows of both modalities together that are of a row's own.
    - ``hubness_image``, ``hubness_text``: the skewness of the k-occurrence (Radovanovic et al., JMLR 2010): 0 where
      every item stands in equally many lists, far above where few of them, hubs, stand in very many.
    """
    shares = _Lists.of(near).shares(np.zeros(len(near.image), np.int8), 1)
    found = {name: float(share[0]) for name, share in shares.items()}
    for name, n in (("hubness_image", near.of_image), ("hubness_text", near.of_text)):
        found[name] = float(skewness_of_sums(np.array([[n.size, n.sum(), (n**2).sum(), (n**3).sum()]]))[0])
    return found


def neighbour_spreads(near: Near, seed: int) -> dict[str, Spread]:
    """The variation of ``mutual_knn`` and ``neighbour_purity``, from random halves of the pairs.

    A metric of neighbours is no smooth function of the sample: a bootstrap's clones crowd out neighbours, a jackknife
    gives up to three times the variance, and the pairs' own variance leaves out what they do to each other. The two
    halves of a split are independent samples; half their squared difference estimates the variance of half a sample
    without bias (subsampling: Politis & Romano, Annals of Statistics 1994), and half of that is the whole's, but for
    the share itself, which may differ between n / 2 and n rows: the variance goes along with share (1 - share).
    """
    n, lists = len(near.image), _Lists.of(near)
    if n < 8:
        return {}
    whole = lists.shares(np.zeros(n, np.int8), 1)
    rng = np.random.default_rng(seed)
    splits = []
    for _ in range(_SPLITS):
        order, part = rng.permutation(n), np.full(n, -1, np.int8)
        part[order[: n // 2]], part[order[n // 2 : 2 * (n // 2)]] = 0, 1
        splits.append(lists.shares(part, 2))
    spreads = {}
    for key, (of_all,) in whole.items():
        half = np.array([shares[key] for shares in splits])
        at_half = half.mean()
        scale = of_all * (1 - of_all) / (at_half * (1 - at_half)) if 0 < at_half < 1 else 1.0
        apart = (half[:, 0] - half[:, 1]) / 2 * math.sqrt(scale)
        spreads[key] = Spread(apart / math.sqrt(_SPLITS), None, n)
    return spreads


class _Lists(NamedTuple):
    """The lists of neighbours, and what is the same of them whichever pairs count: who stands in both lists of a pair,
    (m,) each, the row and the places in the images' and the texts' list; (2n, r) which of ``pooled`` are of a row's own
    modality."""

    near: Near
    row: Ints
    image_place: Ints
    text_place: Ints
    own: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, near: Near) -> _Lists:
        n = len(near.image)
        own = (near.pooled < n) == (np.arange(2 * n) < n)[:, None]
        row, image_place, text_place = np.nonzero(near.image[:, :, None] == near.text[:, None, :])
        return cls(near, row, image_place, text_place, own)

    def shares(self, part: npt.NDArray[np.int8], parts: int) -> dict[str, Floats]:
        """``mutual_knn`` and ``neighbour_purity`` (parts,) of parts of the pairs, each by itself; all are of one size.

        ``part`` (n,): which part a pair is in, -1 for none.
        """
        size = int((part == 0).sum())
        k = min(self.near.k, size - 1)
        image, text = (_first(lists, part, k) for lists in (self.near.image, self.near.text))
        shared = image[self.row, self.image_place] & text[self.row, self.text_place]
        in_part = np.concatenate([part, part])
        pooled = _first(self.near.pooled, in_part, k)
        of_pairs, of_rows = (np.arange(parts)[:, None] == where for where in (part, in_part))
        listed = of_rows @ pooled.sum(axis=1)
        return {
            "mutual_knn": of_pairs @ np.bincount(self.row[shared], minlength=len(part)) / (k * size),
            "neighbour_purity": of_rows @ (pooled & self.own).sum(axis=1) / np.maximum(listed, 1),
        }


def _first(lists: Ints, part: npt.NDArray[np.int8], k: int) -> npt.NDArray[np.bool_]:
    """Which of each row's list (n, r) are the first k of those in its own part, ``part`` being that of each row."""
    same = part[lists] == part[: len(lists), None]
    first: npt.NDArray[np.bool_] = same & (np.cumsum(same, axis=1, dtype=np.int16) <= k)
    return first


def neighbour_chance(n: int, k: int = NEIGHBOURS) -> dict[str, float]:
    """What the metrics read on average if pairs are shuffled (mutual_knn), modalities mixed (neighbour_purity), or
    lists drawn at random (hubness: the skewness of a binomial count)."""
    k = min(k, n - 1)
    p = k / n
    hubness = (1 - 2 * p) / (n * p * (1 - p)) ** 0.5
    chance = {"mutual_knn": k / (n - 1), "neighbour_purity": (n - 1) / (2 * n - 1)}
    return {**chance, "hubness_image": hubness, "hubness_text": hubness}


def _without_self(cosines: Tensor, rows: Tensor) -> Tensor:
    cosines[torch.arange(len(rows)), rows] = -torch.inf
    return cosines
