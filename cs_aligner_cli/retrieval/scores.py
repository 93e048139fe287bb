"""Inner products that depend on no position and no block size, so that equal rows tie exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows
from cs_aligner_cli.errors import InputError

# A float32 matrix product may give two equal rows scores that differ in the last bit, by where they stand in
# it. Summed in float64 and rounded once to float32 they agree, and no block size shows in a rank.
_BLOCK_ENTRIES = 2**23


def finite_rows(array: ArrayLike, name: str) -> Tensor:
    """Return array (N, d) as a finite float32 tensor on the CPU, outside the graph; else raise InputError."""
    rows = as_rows(array, name).detach().cpu().float().contiguous()
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise InputError(f"{name}: row {int(finite.int().argmin())} holds NaN or infinity (as float32)")
    return rows


def query_blocks(queries: int, entries: int) -> Iterator[slice]:
    """Cut ``queries`` rows into slices such that ``entries`` values for each of them stay within a budget."""
    step = max(1, _BLOCK_ENTRIES // entries)
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def candidate_scores(queries: Tensor, gallery: Tensor, ids: Tensor) -> Tensor:
    """Return the float32 scores (Q, c) of queries (Q, d) with each one's own gallery rows, ids (Q, c)."""
    return torch.bmm(gallery[ids].double(), queries.double().unsqueeze(2)).squeeze(2).float()


def dense_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the float32 scores (Q, N) of queries (Q, d) with every row of gallery (N, d).

    Widens the gallery tile by tile; the caller keeps Q small (``query_blocks``).
    """
    scores = torch.empty(len(queries), len(gallery))
    wide = queries.double()
    for tile in query_blocks(len(gallery), max(gallery.shape[1], len(queries))):
        scores[:, tile] = (wide @ gallery[tile].double().T).float()
    return scores
