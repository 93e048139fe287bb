"""Reranking: the first hits of a search in the order of another score, which is too dear to be taken of all items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.scan import Found
from cs_aligner_cli.retrieval.scores import Scores


def by_score(scores: Scores) -> Ints:
    """(Q, k) the places of every query's first hits in their new order: higher score first, equal ones as they were."""
    return np.argsort(-scores, axis=1, kind="stable")


@dataclass(frozen=True)
class Reranker:
    """Puts the first ``top_k`` items of every query in the order of ``score(image, text)``: (P,) of P pairs of rows."""

    top_k: int
    score: Callable[[Ints, Ints], Scores]

    def reranked(self, found: Found, direction: str, queries: Ints, items: Ints) -> Found:
        """A pass ("i2t" or "t2i") with its first items by score, higher first, and equal ones as they were.

        Of ``found.top_ids`` (Q, k) the first ``top_k`` columns are put in order, or all where k is less; whatever lies
        beyond keeps its rank. ``queries`` (Q,) and ``items`` (N,) are the rows of the split that stand in the pass.
        Scores of pairs become minus their ranks, which order them as the ranks do.
        """
        top = found.top_ids[:, : self.top_k]
        count, width = top.shape
        query, item = np.repeat(queries, width), items[top.ravel()]
        scores = self.score(query, item) if direction == "i2t" else self.score(item, query)
        order = by_score(scores.reshape(count, width))
        new_place = np.argsort(order, axis=1)
        ranks, near = found.ranks.copy(), found.ranks <= width
        ranks[near] = new_place[found.pairs.query[near], found.ranks[near] - 1] + 1
        ids = np.hstack([np.take_along_axis(top, order, axis=1), found.top_ids[:, width:]])
        return replace(found, ranks=ranks, top_ids=ids, scores=-ranks.astype(np.float32))
