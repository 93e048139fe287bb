"""Exact inner-product search with FAISS under one written tie rule, and the index file."""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.retrieval.scores import candidate_scores, dense_scores, finite_rows, query_blocks

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# Fetched beyond k, so that a few equal scores at the cut need no second look.
_MARGIN = 8


def build_index(vectors: ArrayLike) -> faiss.IndexFlatIP:
    """Return an exact inner-product index of vectors (N, d); row i gets id i.

    Values are stored as float32 and used as given: normalise the rows first for cosine scores. Raises
    InputError unless vectors are a non-empty, finite, floating-point (N, d) array.
    """
    rows = finite_rows(vectors, "vectors")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    return index


def search(index: faiss.IndexFlatIP, queries: ArrayLike, k: int) -> tuple[Scores, Ids]:
    """Return scores (Q, k) float32 and ids (Q, k) int64 of the k best rows for each of queries (Q, d).

    The order is: higher score first, then smaller row id. The score is the inner product of float32 rows,
    summed in float64 and rounded to float32, so that equal rows get equal scores; FAISS proposes the
    candidates, and where its own rounding could hide one, all rows are scored.

    Raises InputError for queries that are not finite floating-point rows of the index's dimension, for a k
    below 1 or above the number of rows, and where inner products would overflow.
    """
    rows = finite_rows(queries, "queries")
    if rows.shape[1] != index.d:
        raise InputError(f"queries have dimension {rows.shape[1]}, the rows of the index {index.d}")
    if not 1 <= k <= index.ntotal:
        raise InputError(f"k = {k} but the index holds {index.ntotal} rows")
    gallery = _stored_rows(index)
    bound = _rounding_bound(rows, gallery)
    fetched = min(k + _MARGIN, index.ntotal)
    proposed, candidates = index.search(rows.numpy(), fetched)
    scores = np.empty((len(rows), k), dtype=np.float32)
    ids = np.empty((len(rows), k), dtype=np.int64)
    for block in query_blocks(len(rows), fetched * index.d):
        exact = candidate_scores(rows[block], gallery, torch.from_numpy(candidates[block])).numpy()
        scores[block], ids[block] = _best(exact, candidates[block], k)
    if fetched < index.ntotal:
        # No row outside the candidates scores above this; one that reaches the k-th may belong in the list.
        ceiling = proposed[:, -1] + bound
        unsure = np.flatnonzero(ceiling >= scores[:, -1])
        scores[unsure], ids[unsure] = _dense_search(rows[unsure], gallery, k)
    return scores, ids


def _stored_rows(index: faiss.IndexFlatIP) -> Tensor:
    """The index's own (N, d) float32 rows without a copy; valid as long as the index is."""
    flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return torch.from_numpy(flat.reshape(index.ntotal, index.d))


def _rounding_bound(queries: Tensor, gallery: Tensor) -> Scores:
    """How far FAISS' float32 score of a query (Q,) can lie from the exact one: d 2^-24 |q| max |g|.

    The bound on a dot product in any order of summation (Higham, Accuracy and Stability, section 3.1), with
    a little added for its second-order terms and for rounding the exact score.
    """
    longest = torch.linalg.vector_norm(gallery, dim=1).max()
    reach = torch.linalg.vector_norm(queries, dim=1) * longest
    if not reach.isfinite().all():
        raise InputError("queries: inner products would overflow float32", "Scale or normalise the rows.")
    bound: Scores = (reach * (1.01 * (gallery.shape[1] + 4) * 2.0**-24)).numpy()
    return bound


def _best(scores: Scores, ids: Ids, k: int) -> tuple[Scores, Ids]:
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _dense_search(queries: Tensor, gallery: Tensor, k: int) -> tuple[Scores, Ids]:
    """The k best of all rows, by scoring all of them."""
    scores = np.empty((len(queries), k), dtype=np.float32)
    ids = np.empty((len(queries), k), dtype=np.int64)
    for block in query_blocks(len(queries), len(gallery)):
        dense = dense_scores(queries[block], gallery)
        cuts = dense.topk(k, dim=1).values[:, -1]
        for row, (values, cut) in enumerate(zip(dense.numpy(), cuts.numpy(), strict=True), start=block.start):
            contenders = np.flatnonzero(values >= cut)
            ids[row] = contenders[np.argsort(-values[contenders], kind="stable")[:k]]
            scores[row] = values[ids[row]]
    return scores, ids


def write_index(index: faiss.Index, path: str | Path) -> None:
    """Write the index as a FAISS file that any FAISS program can read; it appears whole or not at all."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        faiss.write_index(index, str(aside))
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_index(path: str | Path) -> faiss.IndexFlatIP:
    """Read a flat inner-product index from a FAISS file; raise InputError if that is not what it holds."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:  # FAISS' own text is the source line that failed
        raise InputError(f"{path}: not a FAISS index, or damaged") from None
    if not isinstance(index, faiss.IndexFlatIP):
        raise InputError(f"{path}: holds a FAISS {type(index).__name__}, expected IndexFlatIP")
    return index
