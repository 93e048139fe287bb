"""How sure the numbers of one evaluation are, over images: R@K by Wilson's score, all else by bootstrap.

An image and its captions are one thing, since their queries are not independent. R@K is a share, whose percentiles
would be too narrow near 1. Every other metric is a function of sums over what is drawn (a mean of a sum and a count, a
median of a histogram, a skewness of four moments); so a draw is a row of weights, and all draws are one matrix product.
Where all images score alike no draw differs, which is no certainty: means have Wilson's interval of none that do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import sparse
from scipy.special import stdtrit

from cs_aligner_cli.common.shares import SHARE, Bounds, cut_off, share_interval, where_all_agree
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.retrieval.metrics import QueryScores

# (direction, metric), as in the dict of evaluate_retrieval
Key = tuple[str, str]
_LEVEL = 0.95
# Draws of equal values differ by less.
_ROUNDING = 1e-9
_BLOCK_ENTRIES = 2**23
# What one query can score, where that is not between 0 and 1.
_OWN_BOUNDS: Final[Mapping[str, Bounds]] = {"spearman": (-1.0, 1.0)}


@dataclass(frozen=True, eq=False)
class Statistic:
    """A metric as a function of sums: ``sums`` (C, r), dense or sparse, one row for each of the C clusters (an image
    with its captions); ``finish`` makes (B,) values of (B, r) weighted sums. ``share``: it is one of hits, and the sums
    are hits and queries. ``bounds``: of a mean over queries, the least and the most that one of them can score."""

    sums: Any
    finish: Callable[[Floats], Floats]
    share: bool = False
    bounds: Bounds | None = None


def statistics(
    scores: Mapping[str, QueryScores],
    query_clusters: Mapping[str, Ints],
    item_clusters: Mapping[str, Ints],
    ranks: Mapping[str, Ints] | None = None,
) -> dict[Key, Statistic]:
    """Every metric of an evaluation as a Statistic, in the order of ``summarise``.

    ``query_clusters``: direction to (Q,) the cluster of each query; ``item_clusters``: direction to (N,) that of each
    item of its gallery. ``ranks``: direction to all ranks that may occur, equal for evaluations that are compared.
    """
    count = 1 + max(int(part.max()) for part in (*query_clusters.values(), *item_clusters.values()))
    found: dict[Key, Statistic] = {}
    for direction, scored in scores.items():
        clusters = query_clusters[direction]
        for metric, values in scored.values.items():
            if metric == "mean_rank":
                found[direction, "median_rank"] = _median(
                    scored.ranks, clusters, count, np.unique(scored.ranks if ranks is None else ranks[direction])
                )
            bounds = _OWN_BOUNDS.get(metric, SHARE) if metric != "mean_rank" else (1.0, len(item_clusters[direction]))
            found[direction, metric] = _mean_of(metric, values, clusters, count, bounds)
        inside = scored.occurrence >= 0
        n = scored.occurrence[inside].astype(float)
        moments = _summed([np.ones_like(n), n, n**2, n**3], item_clusters[direction][inside], count)
        found[direction, "hubness"] = Statistic(moments, skewness_of_sums)
    recalls = [key for key in found if key[1].startswith("R@")]
    sums = np.hstack([found[key].sums for key in recalls])
    found["both", "RSum"] = Statistic(sums, _rsum, bounds=(0.0, 100.0 * len(recalls)))
    return found


def mean_statistics(values: Mapping[Key, Floats], clusters: Ints) -> dict[Key, Statistic]:
    """Means over queries as Statistics: key to (Q,) values, NaN where a query does not count; clusters (Q,)."""
    count = 1 + int(clusters.max())
    return {key: _mean_of(key[1], column, clusters, count, SHARE) for key, column in values.items()}


def _mean_of(metric: str, values: Floats, clusters: Ints, count: int, bounds: Bounds) -> Statistic:
    there = np.isfinite(values)
    sums = _summed([np.where(there, values, 0.0), there.astype(float)], clusters, count)
    return Statistic(sums, _mean, share=metric.startswith("R@"), bounds=bounds)


def _summed(columns: list[Floats], clusters: Ints, count: int) -> Floats:
    return np.stack([np.bincount(clusters, column, minlength=count) for column in columns], axis=1)


def _mean(sums: Floats) -> Floats:
    # A draw without any query of a direction says nothing of it: NaN, and _interval leaves it out.
    with np.errstate(invalid="ignore"):
        mean: Floats = sums[:, 0] / sums[:, 1]
    return mean


def _rsum(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        total: Floats = 100 * (sums[:, ::2] / sums[:, 1::2]).sum(axis=1)
    return total


def skewness_of_sums(sums: Floats) -> Floats:
    """(B,) skewness of counts from the weighted sums (B, 4) of their powers 0 to 3; 0 where all counts are equal."""
    first, second, third = (sums[:, i] / sums[:, 0] for i in (1, 2, 3))
    variance = second - first**2
    centred = third - 3 * first * second + 2 * first**3
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-12, centred / np.maximum(variance, 0) ** 1.5, 0.0)


def _median(ranks: Ints, clusters: Ints, count: int, distinct: Ints) -> Statistic:
    """The median of a weighted histogram of ranks: the mean of the two middle ones, as numpy's."""
    place = np.searchsorted(distinct, ranks)
    histogram = sparse.csr_array((np.ones(len(ranks)), (clusters, place)), shape=(count, len(distinct)))

    def finish(sums: Floats) -> Floats:
        below = np.cumsum(sums, axis=1)
        total = below[:, -1:]
        lower, upper = (below < total / 2).sum(axis=1), (below <= total / 2).sum(axis=1)
        last = len(distinct) - 1
        middle: Floats = (distinct[np.minimum(lower, last)] + distinct[np.minimum(upper, last)]) / 2
        return middle

    return Statistic(histogram, finish)


def intervals(found: Mapping[Key, Statistic], draws: int = 1000, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """The 95% interval [low, high] of every metric, by direction and metric: of shares Wilson's, of others the
    percentiles of bootstrap draws."""
    others = {key: statistic for key, statistic in found.items() if not statistic.share}
    drawn = _values(others, _resamples(_clusters(found), draws, seed)) if others else {}
    result: dict[str, dict[str, list[float]]] = {}
    for (direction, metric), statistic in found.items():
        span = _score_interval(statistic.sums) if statistic.share else _interval(statistic, drawn[direction, metric])
        result.setdefault(direction, {})[metric] = span
    return result


def _score_interval(sums: Floats) -> list[float]:
    """Of a share from (C, 2) hits and queries of every cluster; the variance is that of a ratio of sums."""
    hits, queries = sums[sums[:, 1] > 0].T
    units, total = len(queries), queries.sum()
    if not units:
        return [float("nan"), float("nan")]
    share = float(hits.sum() / total)
    between = float((((hits - share * queries) / total) ** 2).sum())
    variance, freedom = (units / (units - 1) * between, units - 1) if units > 1 else (0.0, 1)
    return share_interval(share, variance, units, float(stdtrit(freedom, (1 + _LEVEL) / 2)))


def _interval(statistic: Statistic, values: Floats) -> list[float]:
    if not np.isfinite(values).any():
        return [float("nan"), float("nan")]
    low, high = (float(q) for q in np.nanquantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))
    if statistic.bounds is None or high - low > _ROUNDING:
        return [low, high]
    least, most = statistic.bounds
    units = int((statistic.sums[:, 1::2] > 0).any(axis=1).sum())
    return cut_off(low, where_all_agree(low, units, most - least)[0], statistic.bounds)


def _clusters(found: Mapping[Key, Statistic]) -> int:
    return int(next(iter(found.values())).sums.shape[0])


def _resamples(count: int, draws: int, seed: int) -> Iterator[Floats]:
    """Weights (some draws, C): how often each cluster was drawn, C times with replacement."""
    rng = np.random.default_rng(seed)
    for part in _blocks(count, draws):
        drawn = rng.integers(count, size=(part, count)) + count * np.arange(part)[:, None]
        yield np.bincount(drawn.ravel(), minlength=part * count).reshape(part, count).astype(float)


def _blocks(count: int, draws: int) -> Iterator[int]:
    step = max(1, _BLOCK_ENTRIES // count)
    return (min(step, draws - start) for start in range(0, draws, step))


def _values(found: Mapping[Key, Statistic], weights: Any) -> dict[Key, Floats]:
    values: dict[Key, list[Floats]] = {key: [] for key in found}
    for block in weights:
        for key, statistic in found.items():
            values[key].append(statistic.finish(block @ statistic.sums))
    return {key: np.concatenate(parts) for key, parts in values.items()}
