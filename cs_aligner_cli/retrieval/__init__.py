"""Image-text retrieval: exact ranks and metrics, intervals and tests, FAISS indexes and score corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cs_aligner_cli.common.lazy import lazy_names

if TYPE_CHECKING:
    from cs_aligner_cli.retrieval.evaluation import evaluate_mixed, evaluate_retrieval, true_ranks
    from cs_aligner_cli.retrieval.index import build_index, plan_index, read_index, search, write_index
    from cs_aligner_cli.retrieval.metrics import QueryScores
    from cs_aligner_cli.retrieval.rerank import Reranker
    from cs_aligner_cli.retrieval.rows import Rows

__all__ = [
    "QueryScores",
    "Reranker",
    "Rows",
    "build_index",
    "evaluate_mixed",
    "evaluate_retrieval",
    "plan_index",
    "read_index",
    "search",
    "true_ranks",
    "write_index",
]
# Imported when they are first used: ranks need no FAISS.
_WHERE = {
    **dict.fromkeys(("evaluate_mixed", "evaluate_retrieval", "true_ranks"), "evaluation"),
    **dict.fromkeys(("build_index", "plan_index", "read_index", "search", "write_index"), "index"),
    "QueryScores": "metrics",
    "Reranker": "rerank",
    "Rows": "rows",
}

__getattr__ = lazy_names(__name__, _WHERE)
