"""How sure R@K is: its variation over images, an image and its captions being one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.groups import random_groups
from cs_aligner_cli.gap.results import Smooth, Spread
from cs_aligner_cli.retrieval import QueryScores
from cs_aligner_cli.retrieval.equal_texts import image_by_text
from cs_aligner_cli.retrieval.mixed import MIXED, caption_tasks, mixed_means, mixed_scores
from cs_aligner_cli.retrieval.rows import as_searched


def recall_spreads(
    ranks: Mapping[str, QueryScores],
    image_of_text: Ints,
    images: int,
    ks: Sequence[int],
    seed: int,
    text_groups: Ints | None = None,
) -> dict[str, dict[str, tuple[float, Spread]]]:
    """R@k of "i2t", "t2i" and their "mean", as fractions with their variation: direction to ``R@k`` to both.

    ``ranks`` as from ``true_ranks``, with the same ``image_of_text`` and ``text_groups``. The variation is that of the
    queries (of an image with all its captions together), the gallery being what it is. Stores of the same rows can be
    compared.
    """
    owner = image_of_text if text_groups is None else image_by_text(image_of_text, text_groups)
    owners = {"i2t": ranks["i2t"].queries, "t2i": owner[ranks["t2i"].queries]}
    groups, units = random_groups(images, seed), len(owners["i2t"])
    found: dict[str, dict[str, tuple[float, Spread]]] = {"i2t": {}, "t2i": {}, "mean": {}}
    for k in ks:
        sides = [_share((ranks[d].ranks <= k).astype(np.float64), owners[d], images) for d in owners]
        sides.append(Smooth((sides[0].value + sides[1].value) / 2, (sides[0].influence + sides[1].influence) / 2))
        for direction, side in zip(found, sides, strict=True):
            found[direction][f"R@{k}"] = side.value, side.spread(groups)._replace(units=units)
    return found


def mixed_recalls(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: Ints,
    ks: Sequence[int],
    seed: int,
    text_groups: Ints | None = None,
) -> tuple[dict[str, Any], dict[str, tuple[float, Spread]]]:
    """All of ``evaluate_mixed`` with its usual corpora, and R@k over all its queries of text with their variation.

    Arguments and errors as there. An image counts with all that asks for it, in every corpus. Both are empty where no
    image has two texts.
    """
    tasks = caption_tasks(image_of_text, len(image), text_groups=text_groups)
    if not tasks:
        return {}, {}
    scores = mixed_scores(as_searched(image, "image"), as_searched(text, "text"), tasks, tuple(ks))
    groups, found = random_groups(len(image), seed), {}
    for k in ks:
        hits = scores.values[MIXED, f"R@{k}"]
        counted = np.isfinite(hits)
        share = _share(hits[counted], scores.owner[counted], len(image))
        units = len(np.unique(scores.owner[counted]))
        found[f"R@{k}"] = share.value, share.spread(groups)._replace(units=units)
    return mixed_means(scores), found


def _share(hits: Floats, owners: Ints, images: int) -> Smooth:
    share = float(hits.mean())
    influence: Floats = np.bincount(owners, hits - share, minlength=images) / len(hits)
    return Smooth(share, influence)
