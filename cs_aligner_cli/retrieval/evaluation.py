"""evaluate_retrieval and evaluate_mixed: the published protocols on two arrays, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval.metrics import DIRECTIONS, Metrics, QueryScores, summarise
from cs_aligner_cli.retrieval.mixed import DRAWS, SHARE, caption_tasks, mixed_means, mixed_scores
from cs_aligner_cli.retrieval.protocol import (
    as_ks,
    caption_protocol,
    check_ks,
    evaluate,
    owners,
    text_groups_of,
    with_equal_texts,
)
from cs_aligner_cli.retrieval.rerank import Reranker
from cs_aligner_cli.retrieval.rows import RowsLike, as_searched


def evaluate_retrieval(
    image: RowsLike,
    text: RowsLike,
    image_of_text: npt.NDArray[np.integer] | Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    device: str = "cpu",
    text_groups: npt.NDArray[np.integer] | Tensor | None = None,
    reranker: Reranker | None = None,
) -> Metrics:
    """Evaluate image-to-text ("i2t") and text-to-image ("t2i") retrieval by cosine similarity.

    image (M, d) and text (N, d) are floating-point and L2-normalised inside; a zero row has cosine 0 with
    all. ``image_of_text`` (N,) integers: the row of each text's image, or -1 for a text without one, which is
    no query but stays in the gallery; likewise an image without text. None: text i is that of image i, N = M.
    ``text_groups`` (N,) integers: texts of one group are equal, and each of them answers the images of the others.
    A ``reranker`` puts the first hits of every query in another order.

    Returns per direction "R@k" for every k in ks (the fraction of queries with any true answer among the k best),
    "mAP" (mean average precision over the whole ranking), "MRR", "median_rank" and "mean_rank" (1 is best; of a
    query's best true answer), "hubness" (skewness of the 10-occurrence of the gallery; Radovanovic et al., JMLR 2010)
    and "queries"; and under "both" the "RSum", the sum of all R@k in percent. Equal scores rank by smaller row; see
    ``scores``.

    Raises InputError if shapes do not fit together, a row is not finite, ``image_of_text`` points outside, no
    text has an image, a k is below 1 or above the size of a gallery, or torch has
    no such device here.
    """
    return summarise(true_ranks(image, text, image_of_text, ks, device, text_groups, reranker))


def true_ranks(
    image: RowsLike,
    text: RowsLike,
    image_of_text: npt.NDArray[np.integer] | Tensor | None = None,
    ks: Sequence[int] = (1,),
    device: str = "cpu",
    text_groups: npt.NDArray[np.integer] | Tensor | None = None,
    reranker: Reranker | None = None,
) -> dict[str, QueryScores]:
    """Return every query's rank of its best true answer, and its metrics, under "i2t" and "t2i".

    Arguments and errors as in ``evaluate_retrieval``.
    """
    rows = as_searched(image, "image"), as_searched(text, "text")
    if image_of_text is None:
        if len(rows[0]) != len(rows[1]):
            raise InputError(
                f"image_of_text: without it rows are pairs; there are {len(rows[0])} images and {len(rows[1])} texts"
            )
        image_of_text = np.arange(len(rows[1]))
    cut_offs, where = as_ks(ks), _device(device)
    protocol = caption_protocol(image_of_text, len(rows[0]), len(rows[1]))
    if text_groups is not None:
        protocol = with_equal_texts(protocol, text_groups_of(text_groups, len(rows[1])))
    found = evaluate(dict.fromkeys(DIRECTIONS, rows), protocol, cut_offs, device=where, reranker=reranker)
    return {direction: evaluated.scores for direction, evaluated in found.items()}


def evaluate_mixed(
    image: RowsLike,
    text: RowsLike,
    image_of_text: npt.NDArray[np.integer] | Tensor,
    ks: Sequence[int] = (1, 5, 10),
    share: float = SHARE,
    draws: int = DRAWS,
    device: str = "cpu",
    text_groups: npt.NDArray[np.integer] | Tensor | None = None,
) -> dict[str, Any]:
    """Evaluate retrieval from one corpus of both modalities, in which a gap does harm; see ``mixed.caption_tasks``.

    Every image stands in the corpus once, a ``share`` of them as image and the others as one of their captions; a
    query is another caption of an image. Means over ``draws`` corpora of "R@k", the fraction of queries whose own
    image, in whichever modality it stands, is among the k best; under "image" and "text" those of the queries whose
    image stands as that, and under "image_queries" those of images that stand as a caption. Other arguments and errors
    as in ``evaluate_retrieval``; InputError also where no image has two texts.
    """
    rows = as_searched(image, "image"), as_searched(text, "text")
    owner = owners(image_of_text, len(rows[0]), len(rows[1]))
    if not isinstance(share, int | float | np.number) or not 0 <= share <= 1:
        raise InputError(f"share: expected a number from 0 to 1, got {share!r}")
    if not isinstance(draws, int | np.integer) or draws < 1:
        raise InputError(f"draws: expected an integer of at least 1, got {draws!r}")
    cut_offs, where = as_ks(ks), _device(device)
    check_ks(cut_offs, len(rows[0]), len(rows[1]))
    groups = None if text_groups is None else text_groups_of(text_groups, len(rows[1]))
    tasks = caption_tasks(owner, len(rows[0]), share=share, draws=draws, text_groups=groups)
    if not tasks:
        raise InputError("image_of_text: no image has two texts, so none can be query while another is in the corpus")
    return mixed_means(mixed_scores(*rows, tasks, cut_offs, where))


def _device(name: str) -> str:
    """The name as it came, where torch can compute on that device."""
    try:
        torch.zeros(1, device=torch.device(name))  # of None torch makes its default
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(
            f"device: {name!r} is not available on this machine", 'Use "cpu", or "cuda" on a GPU.'
        ) from None
    return name
