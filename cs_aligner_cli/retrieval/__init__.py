"""Exact retrieval: FAISS indexes and the metrics of image-text retrieval."""

from cs_aligner_cli.retrieval.index import build_index, read_index, search, write_index
from cs_aligner_cli.retrieval.metrics import QueryRanks, evaluate_retrieval, true_ranks

__all__ = [
    "QueryRanks",
    "build_index",
    "evaluate_retrieval",
    "read_index",
    "search",
    "true_ranks",
    "write_index",
]
