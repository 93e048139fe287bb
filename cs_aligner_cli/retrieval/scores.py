"""Inner products that depend on no position and no block size, and the one rule by which results are ordered.

The score of two rows is the inner product of their float32 values, summed in float64 and rounded once to float32;
results are ordered by score, higher first, then by id, smaller first. A float32 matrix product may give two equal
rows scores that differ in the last bits, by where they stand in it; here equal rows get equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.rows import Rows

Scores = npt.NDArray[np.float32]

# Small enough that the allocator hands out the same memory again and again.
_BLOCK_ENTRIES = 2**19
# Listed beyond k, so that a few equal scores at the cut need no second look.
MARGIN = 8


def query_blocks(queries: int, entries: int) -> Iterator[slice]:
    """Cut ``queries`` rows into slices such that ``entries`` values for each of them stay within a budget."""
    step = max(1, _BLOCK_ENTRIES // max(1, entries))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def pair_scores(queries: Rows, items: Rows, query: Ints, item: Ints) -> Scores:
    """The scores (P,) of pairs: query[p] with item[p]."""
    scores = np.empty(len(query), np.float32)
    for block in query_blocks(len(query), queries.dim):
        product = queries.take(query[block]).double() * items.take(item[block]).double()
        scores[block] = product.sum(dim=1).float().numpy()
    return scores


def exact_tile(queries: Tensor, items: Tensor) -> Tensor:
    """The scores (B, C) of float32 queries (B, d) with items (C, d)."""
    return (queries.double() @ items.double().T).float()


def rounding_bound(longest_query: float, longest_item: float, dim: int) -> float:
    """How far a float32 inner product of rows of at most these norms can lie from the score: d 2^-24 |q| |g|.

    The bound on a dot product in any order of summation (Higham, Accuracy and Stability, section 3.1), with a little
    added for its second-order terms and for rounding the score and the bound itself. Raises InputError where products
    would overflow.
    """
    reach = longest_query * longest_item
    if not reach < 1e38:
        raise InputError("queries: inner products would overflow float32", "Scale or normalise the rows.")
    # The last term keeps rows of zeros, whose scores all tie, inside their own bound.
    return reach * 1.01 * (dim + 8) * 2.0**-24 + 1e-30


def settle(queries: Rows, items: Rows, proposed: Ints, products: Scores, bound: float, k: int) -> Ints:
    """The ids (Q, k) of the k best items of every query, in order.

    ``proposed`` (Q, c) are the c > k best by float32 products (or all items), in any order, ``products`` (Q, c) those
    products and ``bound`` how wrong each may be. Only what lies too close to a neighbour is scored; where an item
    left out could belong to the k, all are.
    """
    by_product = np.argsort(-products, axis=1)
    ids, values = np.take_along_axis(proposed, by_product, axis=1), np.take_along_axis(products, by_product, axis=1)
    apart = values[:, :-1] - values[:, 1:] > 2 * bound
    edge = np.ones((len(ids), 1), bool)
    query, place = np.nonzero(~(np.hstack([edge, apart]) & np.hstack([apart, edge])))
    values[query, place] = pair_scores(queries, items, query, ids[query, place])
    cut = products.min(axis=1) + bound
    order = np.lexsort((ids, -values), axis=-1)[:, :k]
    ids, kth = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order[:, -1:], axis=1)[:, 0]
    if proposed.shape[1] < len(items):
        unsure = np.flatnonzero(cut + bound >= kth)
        ids[unsure] = _search_all(queries, items, unsure, k)
    return ids


def _search_all(queries: Rows, items: Rows, rows: Ints, k: int) -> Ints:
    """The k best items of some queries, by scoring all of them."""
    ids = np.empty((len(rows), k), np.int64)
    for block in query_blocks(len(rows), len(items)):
        few = queries.take(rows[block])
        dense = torch.empty(len(few), len(items))
        for tile in query_blocks(len(items), max(items.dim, len(few))):
            dense[:, tile] = exact_tile(few, items.take(tile))
        cuts = dense.topk(k, dim=1).values[:, -1]
        for row, (values, cut) in enumerate(zip(dense.numpy(), cuts.numpy(), strict=True), start=block.start):
            contenders = np.flatnonzero(values >= cut)
            ids[row] = contenders[np.argsort(-values[contenders], kind="stable")[:k]]
    return ids
