"""evaluate_retrieval: the published protocol on two arrays, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cs_aligner_cli.retrieval.metrics import DIRECTIONS, Metrics, QueryScores, summarise
from cs_aligner_cli.retrieval.protocol import caption_protocol, evaluate
from cs_aligner_cli.retrieval.rows import RowsLike, as_searched


def evaluate_retrieval(
    image: RowsLike,
    text: RowsLike,
    image_of_text: npt.NDArray[np.integer] | Tensor,
    ks: Sequence[int] = (1, 5, 10),
    device: str = "cpu",
) -> Metrics:
    """Evaluate image-to-text ("i2t") and text-to-image ("t2i") retrieval by cosine similarity.

    image (M, d) and text (N, d) are floating-point and L2-normalised inside; a zero row has cosine 0 with
    all. ``image_of_text`` (N,) integers: the row of each text's image, or -1 for a text without one, which is
    no query but stays in the gallery; likewise an image without text.

    Returns per direction "R@k" for every k in ks (the fraction of queries with any true answer among the k best),
    "mAP" (mean average precision over the whole ranking), "MRR", "median_rank" and "mean_rank" (1 is best; of a
    query's best true answer), "hubness" (skewness of the 10-occurrence of the gallery; Radovanovic et al., JMLR 2010)
    and "queries"; and under "both" the "RSum", the sum of all R@k in percent. Equal scores rank by smaller row; see
    ``scores``.

    Raises InputError if shapes do not fit together, a row is not finite, ``image_of_text`` points outside, no
    text has an image, or a k is below 1 or above the size of a gallery.
    """
    return summarise(true_ranks(image, text, image_of_text, ks, device))


def true_ranks(
    image: RowsLike,
    text: RowsLike,
    image_of_text: npt.NDArray[np.integer] | Tensor,
    ks: Sequence[int] = (1,),
    device: str = "cpu",
) -> dict[str, QueryScores]:
    """Return every query's rank of its best true answer, and its metrics, under "i2t" and "t2i".

    Arguments and errors as in ``evaluate_retrieval``.
    """
    rows = as_searched(image, "image"), as_searched(text, "text")
    protocol = caption_protocol(image_of_text, len(rows[0]), len(rows[1]))
    found = evaluate(dict.fromkeys(DIRECTIONS, rows), protocol, tuple(ks), device=device)
    return {direction: evaluated.scores for direction, evaluated in found.items()}
