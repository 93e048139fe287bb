"""How sure R@K is: its variation over images, an image and its captions being one thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.groups import random_groups
from cs_aligner_cli.gap.results import Smooth, Spread
from cs_aligner_cli.retrieval import true_ranks


def recall_spreads(
    image: ArrayLike, text: ArrayLike, image_of_text: Ints, ks: Sequence[int], seed: int
) -> dict[str, dict[str, tuple[float, Spread]]]:
    """R@k of "i2t", "t2i" and their "mean", as fractions with their variation: direction to ``R@k`` to both.

    Arguments and errors as in ``evaluate_retrieval``. The variation is that of the queries (of an image with all its
    captions together), the gallery being what it is. Stores of the same rows can be compared.
    """
    ranks = true_ranks(image, text, image_of_text)
    queries = {"i2t": np.unique(image_of_text[image_of_text >= 0]), "t2i": np.flatnonzero(image_of_text >= 0)}
    owners = {"i2t": queries["i2t"], "t2i": image_of_text[queries["t2i"]]}
    groups, units = random_groups(len(image), seed), len(queries["i2t"])
    found: dict[str, dict[str, tuple[float, Spread]]] = {"i2t": {}, "t2i": {}, "mean": {}}
    for k in ks:
        sides = [_share(ranks[d].ranks <= k, owners[d], len(image)) for d in owners]
        sides.append(Smooth((sides[0].value + sides[1].value) / 2, (sides[0].influence + sides[1].influence) / 2))
        for direction, side in zip(found, sides, strict=True):
            found[direction][f"R@{k}"] = side.value, side.spread(groups)._replace(units=units)
    return found


def _share(hits: np.ndarray[tuple[int], np.dtype[np.bool_]], owners: Ints, images: int) -> Smooth:
    share = float(hits.mean())
    influence: Floats = np.bincount(owners, hits - share, minlength=images) / len(hits)
    return Smooth(share, influence)
