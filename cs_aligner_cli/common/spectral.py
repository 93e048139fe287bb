"""Spectral embedding of two modalities at once: neighbours within each, partners across, Laplacian eigenvectors."""

from __future__ import annotations

import numpy as np
from scipy.sparse import block_array, coo_array, csr_array, diags_array
from scipy.sparse.linalg import eigsh

from cs_aligner_cli.common.types import Floats, Ints

# Rows whose similarities to all others are in memory at once.
_BLOCK = 1024
# Eigenvectors beyond this share of the graph's nodes are found faster by a dense decomposition.
_DENSE_SHARE = 0.2


def neighbour_graph(rows: Floats, neighbours: int) -> csr_array:
    """(n, n) symmetric weights of unit rows (n, d): the cosine, at least 0, where one is among the other's nearest."""
    n = len(rows)
    k = min(neighbours, n - 1)
    single = rows.astype(np.float32)
    found = []
    for start in range(0, n, _BLOCK):
        cosines = single[start : start + _BLOCK] @ single.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        found.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k] if k else np.zeros((len(cosines), 0), np.int64))
    nearest = np.concatenate(found)
    first, second = np.repeat(np.arange(n), k), nearest.ravel()
    weights = np.maximum((rows[first] * rows[second]).sum(axis=1), 0.0)
    one_way = coo_array((weights, (first, second)), shape=(n, n)).tocsr()
    return csr_array(one_way.maximum(one_way.T))


def joint_graph(x: Floats, y: Floats, x_of: Ints, y_of: Ints, neighbours: int) -> csr_array:
    """(m + n, m + n) weights over the unit rows x (m, d) and then y (n, e).

    ``neighbour_graph`` within each; rows ``x_of`` (P,) and ``y_of`` (P,) are partners, tied by the mean of all rows'
    sums of weights to their neighbours: a random walk from one of them changes the modality about every other time.
    """
    inside = neighbour_graph(x, neighbours), neighbour_graph(y, neighbours)
    tie = float(np.mean(np.concatenate([graph.sum(axis=1) for graph in inside])))
    across = coo_array((np.full(len(x_of), tie or 1.0), (x_of, y_of)), shape=(len(x), len(y))).tocsr()
    return csr_array(block_array([[inside[0], across], [across.T, inside[1]]], format="csr"))


def spectral_embedding(graph: csr_array, axes: int) -> tuple[Floats, Floats]:
    """(n, axes) smooth coordinates of a graph's nodes and their (axes,) eigenvalues, the largest first.

    Eigenvectors of the random walk D^-1 W, whose 1 - eigenvalue are those of the normalised Laplacian (Shi and Malik,
    2000; Belkin and Niyogi, 2003); the first one, which is constant, is left out. Nodes without an edge are at 0. Of
    exactly equal eigenvalues of a large graph (Lanczos iteration) some may come once only.
    """
    n = graph.shape[0]
    axes = min(axes, n - 1)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    root = np.zeros(n)
    np.divide(1.0, np.sqrt(degree), out=root, where=degree > 0)
    walk = diags_array(root) @ graph @ diags_array(root)
    if axes + 1 > _DENSE_SHARE * n:
        values, vectors = np.linalg.eigh(walk.toarray())
    else:
        begin = np.random.default_rng(0).standard_normal(n)  # the same every time, and no eigenvector
        values, vectors = eigsh(walk, k=axes + 1, which="LA", v0=begin, tol=1e-10)
    order = np.argsort(-values, kind="stable")[1 : axes + 1]
    coordinates: Floats = root[:, None] * vectors[:, order]
    found: Floats = values[order]
    return coordinates, found
