"""The metrics of image-text retrieval, per query and over all queries, from the ranks of the true answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.retrieval.scan import Found

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
    many of the queries' lists of 10 each item of the gallery stands (-1: not in it).
    """

    queries: Ints
    ranks: Ints
    values: Mapping[str, Floats]
    occurrence: Ints


def query_scores(
    found: Found, ks: Sequence[int], grades: Floats | None = None, relevant_above: float = 0
) -> QueryScores:
    """Score every query of a direction from the ranks of its judged items.

    ``grades`` (P,) are the judgements of ``found.pairs``; None: all are plain relevance. Items graded above
    ``relevant_above`` are the true answers; a query without one is no query.
    """
    judged = np.ones(len(found.pairs)) if grades is None else grades
    true = judged > relevant_above
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
    # Every row of the query side has a list; those that are no query of the protocol do not count.
    occurrence = np.bincount(found.top_ids[queries, :HUB_K].ravel(), minlength=found.gallery)
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
        hubness = skewness(scored.occurrence[scored.occurrence >= 0])
        result[name] = {**means, "hubness": hubness, "queries": len(scored.queries)}
    recalls = [value for numbers in result.values() for name, value in numbers.items() if name.startswith("R@")]
    result["both"] = {"RSum": 100 * float(sum(recalls))}
    return result


def skewness(occurrence: Ints) -> float:
    """The third standardised moment; 0 where all counts are equal."""
    centred = occurrence - occurrence.mean()
    spread = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean() / spread**3) if spread > 0 else 0.0
