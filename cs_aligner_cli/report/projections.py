"""Projections that keep neighbourhoods rather than distances: t-SNE and UMAP of both modalities together."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.report.canvas import Picture, legend, panels
from cs_aligner_cli.report.figures import MAX_POINTS, Stores, drawn_pairs, scatter_pairs

_PERPLEXITY, _NEIGHBOURS = 30.0, 15


def neighbour_projection(stores: Stores, kind: str, seed: int = 0) -> Picture:
    """Draw image and text rows of each store where t-SNE ("tsne") or UMAP ("umap") puts them, fitted on both together.

    ``stores`` as in ``figures.projection``, of which the same pairs are drawn: at most 1,000. Distances are Euclidean,
    between unit rows; both begin from the two main axes, so that one seed gives one picture; perplexity is 30,
    neighbours are 15. Axes mean nothing: who is beside whom does. Raises InputError as ``measure_gap`` does, without
    any store, and where umap-learn is not installed.
    """
    if kind == "umap":
        require_package("umap", "UMAP", "or take t-SNE")
    place = {"tsne": _tsne, "umap": _umap}[kind]
    placed = {name: place(np.concatenate([x, y]), seed) for name, x, y in drawn_pairs(stores, MAX_POINTS, seed)}
    with panels(list(placed)) as (figure, axes):
        for ax, points in zip(axes, placed.values(), strict=True):
            centred = points - (points.max(axis=0) + points.min(axis=0)) / 2
            scatter_pairs(ax, centred / (np.abs(centred).max() or 1.0))
            ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
        legend(figure, axes, marker_scale=2.5)
        return Picture(figure)


def _tsne(rows: Floats, seed: int) -> Floats:
    """van der Maaten & Hinton, JMLR 2008."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    fitted = TSNE(2, perplexity=perplexity, init=_start(rows), random_state=seed).fit_transform(rows)
    placed: Floats = np.asarray(fitted, np.float64)
    return placed


def _umap(rows: Floats, seed: int) -> Floats:
    """McInnes, Healy & Melville, arXiv 1802.03426."""
    with warnings.catch_warnings():
        # It says at import that TensorFlow, which is not needed here, is missing.
        warnings.simplefilter("ignore")
        import umap

        neighbours = min(_NEIGHBOURS, len(rows) - 1)
        # A gap leaves a graph of two parts, for which its usual spectral start has no answer of its own.
        threads = torch.get_num_threads()
        fitted = umap.UMAP(neighbours, init=_start(rows), random_state=seed, n_jobs=1).fit_transform(rows)
        # numba sets the number of OpenMP's threads for the whole process, and with it the order of torch's sums.
        torch.set_num_threads(threads)
    placed: Floats = np.asarray(fitted, np.float64)
    return placed


def _start(rows: Floats) -> str:
    return "pca" if rows.shape[1] > 1 else "random"
