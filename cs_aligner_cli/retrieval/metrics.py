"""The metrics of image-text retrieval, per query and over all queries, from the ranks of the true answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cs_aligner_cli.errors import InputError
from cs_aligner_cli.retrieval.rows import Ints, Rows, RowsLike, as_searched
from cs_aligner_cli.retrieval.scan import Found, Pairs, scan

Floats = npt.NDArray[np.float64]
Metrics = dict[str, dict[str, float | int]]
DIRECTIONS = ("i2t", "t2i")
# k-occurrence counts how many lists of this length an item stands in (Radovanovic et al. 2010 use 10).
HUB_K = 10


@dataclass(frozen=True, eq=False)
class QueryScores:
    """What every query of one direction scored.

    ``queries`` (Q,): rows of the queries in their own array; ``ranks`` (Q,): of the best true answer, 1 for the top;
    ``values``: metric to (Q,), each metric being the mean of its values ("R@k", "mAP", "MRR", "mean_rank" and, with
    graded relevance, "nDCG@k" and "spearman", where NaN marks a query that has none); ``occurrence`` (N,): in how
    many of the queries' lists each item of the gallery stands.
    """

    queries: Ints
    ranks: Ints
    values: Mapping[str, Floats]
    occurrence: Ints = field(default_factory=lambda: np.empty(0, np.int64))


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
    images, texts = as_searched(image, "image"), as_searched(text, "text")
    check_ks(ks, len(images), len(texts))
    forth, back = true_pairs(image_of_text, len(images), len(texts))
    found = scan(images, texts, forth, back, k=HUB_K, device=device)
    return summarise({d: query_scores(way, ks) for d, way in zip(DIRECTIONS, found, strict=True) if way is not None})


def true_ranks(image: RowsLike, text: RowsLike, image_of_text: npt.NDArray[np.integer] | Tensor) -> dict[str, QueryScores]:
    """Return every query's rank of its best true answer under "i2t" and "t2i"; arguments as ``evaluate_retrieval``."""
    images, texts = as_searched(image, "image"), as_searched(text, "text")
    forth, back = true_pairs(image_of_text, len(images), len(texts))
    found = scan(images, texts, forth, back)
    return {d: query_scores(way, ()) for d, way in zip(DIRECTIONS, found, strict=True) if way is not None}


def check_ks(ks: Sequence[int], images: int, texts: int) -> None:
    """Raise InputError unless every k is at least 1 and at most the size of both galleries."""
    if not ks or min(ks) < 1:
        raise InputError(f"ks: expected numbers of at least 1, got {list(ks)}")
    for name, size in (("images", images), ("texts", texts)):
        if max(ks) > size:
            raise InputError(f"k = {max(ks)} but the gallery holds {size} {name}")


def true_pairs(image_of_text: npt.NDArray[np.integer] | Tensor, images: int, texts: int) -> tuple[Pairs, Pairs]:
    """The true pairs of both directions, where every text belongs to one image or (-1) to none."""
    given = image_of_text.cpu().numpy() if isinstance(image_of_text, Tensor) else np.asarray(image_of_text)
    if given.shape != (texts,) or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"image_of_text: expected {texts} integers, one per text; got shape {given.shape}, {given.dtype}"
        )
    owners = given.astype(np.int64)
    outside = np.flatnonzero((owners < -1) | (owners >= images))
    if len(outside):
        raise InputError(
            f"image_of_text[{outside[0]}] = {owners[outside[0]]}, expected 0 to {images - 1}, "
            "or -1 for a text without image"
        )
    if (owners < 0).all():
        raise InputError("image_of_text: no text has an image, so there is nothing to retrieve")
    paired = np.flatnonzero(owners >= 0)
    return Pairs.of(owners[paired], paired), Pairs.of(paired, owners[paired])


def query_scores(found: Found, ks: Sequence[int], grades: Floats | None = None, relevant_from: float = 0) -> QueryScores:
    """Score every query of a direction from the ranks of its judged items.

    ``grades`` (P,) are the judgements of ``found.pairs``; None: all are plain relevance. Items graded above
    ``relevant_from`` are the true answers; a query without one is no query.
    """
    judged = np.ones(len(found.pairs)) if grades is None else grades
    true = judged > relevant_from
    owner, ranks = found.pairs.query[true], found.ranks[true]
    order = np.lexsort((ranks, owner))
    owner, ranks = owner[order], ranks[order]
    queries, start, count = np.unique(owner, return_index=True, return_counts=True)
    best = ranks[start]
    place = np.arange(len(owner)) - np.repeat(start, count) + 1
    precision = np.add.reduceat(place / ranks, start) if len(start) else np.empty(0)
    values: dict[str, Floats] = {f"R@{k}": (best <= k).astype(np.float64) for k in ks}
    values |= {"mAP": precision / count, "MRR": 1 / best, "mean_rank": best.astype(np.float64)}
    if grades is not None:
        values |= _graded(found, grades, queries, max(ks))
    occurrence = np.zeros(0, np.int64)
    if found.top_ids.shape[1]:
        # Every row of the query side has a list; those that are no query of the protocol do not count.
        occurrence = np.bincount(found.top_ids[queries].ravel(), minlength=found.gallery)
    return QueryScores(queries, best, values, occurrence)


def _graded(found: Found, grades: Floats, queries: Ints, k: int) -> dict[str, Floats]:
    """nDCG@k with linear gains (Jarvelin and Kekalainen 2002), and Spearman's correlation of score and grade."""
    from scipy.stats import spearmanr

    start = np.searchsorted(found.pairs.query, queries)
    stop = np.searchsorted(found.pairs.query, queries, side="right")
    ndcg, spearman = np.empty(len(queries)), np.full(len(queries), np.nan)
    for i, judged in enumerate(slice(a, b) for a, b in zip(start, stop, strict=True)):
        gain, rank, score = grades[judged], found.ranks[judged], found.scores[judged]
        listed = rank <= k
        ideal = np.sort(gain)[::-1][:k]
        ndcg[i] = (gain[listed] / np.log2(1 + rank[listed])).sum() / (ideal / np.log2(2 + np.arange(len(ideal)))).sum()
        if len(set(gain)) > 1 and len(set(score)) > 1:
            spearman[i] = spearmanr(score, gain).statistic
    return {f"nDCG@{k}": ndcg, "spearman": spearman}


def summarise(directions: Mapping[str, QueryScores]) -> Metrics:
    """The numbers of a whole evaluation: per direction, and the RSum over both."""
    result: Metrics = {}
    for name, scored in directions.items():
        means: dict[str, float | int] = {}
        for metric, values in scored.values.items():
            if metric == "mean_rank":
                means["median_rank"] = float(np.median(scored.ranks))
            means[metric] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        hubness = {"hubness": skewness(scored.occurrence)} if len(scored.occurrence) else {}
        result[name] = {**means, **hubness, "queries": len(scored.queries)}
    recalls = [value for numbers in result.values() for name, value in numbers.items() if name.startswith("R@")]
    result["both"] = {"RSum": 100 * float(sum(recalls))}
    return result


def skewness(occurrence: Ints) -> float:
    """The third standardised moment; 0 where all counts are equal."""
    centred = occurrence - occurrence.mean()
    spread = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean() / spread**3) if spread > 0 else 0.0
