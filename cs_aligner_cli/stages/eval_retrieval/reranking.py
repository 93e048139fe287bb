"""Reranking by a matching head: what puts a store's first hits in order, and what that adds to its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cs_aligner_cli.common.estimates import holm
from cs_aligner_cli.common.shares import SHARE, cut_off, of_difference
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.experiments.statistics import crossed_estimate, per_image
from cs_aligner_cli.retrieval.protocol import Evaluated
from cs_aligner_cli.retrieval.rerank import Reranker
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.towers.matching_head import load_matcher


def reranker_of(layout: Layout, store: str, split: Split, device: str) -> Reranker | None:
    """The reranker of a trained store; None where none is wanted, or the store is the frozen one."""
    wanted = layout.recipe.eval_retrieval.rerank
    if wanted is None or store not in layout.variants:
        return None
    return Reranker(wanted.top_k, load_matcher(layout, store, split, device))


def gains(
    before: Mapping[str, Evaluated], after: Mapping[str, Evaluated], clusters: Mapping[str, Ints]
) -> dict[str, dict[str, Any]]:
    """What every R@K of every direction gains, with a paired test over clusters (Q,) of the queries, and Holm's p."""
    found: dict[str, dict[str, Any]] = {}
    for way, plain in before.items():
        _, owner = np.unique(clusters[way], return_inverse=True)
        for metric, values in plain.scores.values.items():
            if not metric.startswith("R@"):
                continue
            others = after[way].scores.values[metric]
            sums, counts = (
                np.bincount(owner, part).astype(np.float64) for part in (others - values, np.ones_like(values))
            )
            estimate = crossed_estimate(per_image(sums[None], counts))
            interval = [_known(bound) for bound in cut_off(estimate.mean, estimate.interval, of_difference(SHARE))]
            found.setdefault(way, {})[metric] = {
                "before": float(values.mean()),
                "after": float(others.mean()),
                "difference": estimate.mean,
                "interval": interval,
                "p": _known(estimate.p),
            }
    every = [gain for metrics in found.values() for gain in metrics.values()]
    corrected = holm([math.nan if gain["p"] is None else gain["p"] for gain in every])
    for gain, p in zip(every, corrected, strict=True):
        gain["p_holm"] = _known(p)
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
