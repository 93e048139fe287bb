"""How sure R@1 is: bootstrap draws over images, an image and its captions being drawn together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import random_groups
from cs_aligner_cli.retrieval import true_ranks


def recall_draws(
    image: ArrayLike, text: ArrayLike, image_of_text: npt.NDArray[np.int64], draws: int, seed: int
) -> dict[str, Floats]:
    """R@1 of "i2t", "t2i" and their "mean", each (1 + draws,), fractions; the first is the sample's own.

    Arguments and errors as in ``evaluate_retrieval``. Stores of the same rows get the same draws, so that differences
    between them can be tested.
    """
    ranks = true_ranks(image, text, image_of_text)
    queries = {"i2t": np.unique(image_of_text[image_of_text >= 0]), "t2i": np.flatnonzero(image_of_text >= 0)}
    images = {"i2t": queries["i2t"], "t2i": image_of_text[queries["t2i"]]}
    groups = random_groups(len(image), seed)
    counts = groups.counts(draws, seed)
    found: dict[str, Floats] = {}
    for direction, owners in images.items():
        hit = (ranks[direction].ranks == 1).astype(np.float64)
        hits, queries_of = (
            groups.sums(np.bincount(owners, weights, minlength=len(image)).astype(np.float64))
            for weights in (hit, np.ones_like(hit))
        )
        with np.errstate(invalid="ignore"):  # a draw without a query says nothing
            found[direction] = (counts @ hits) / (counts @ queries_of)
    found["mean"] = (found["i2t"] + found["t2i"]) / 2
    return found
