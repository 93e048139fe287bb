"""t-SNE and UMAP of both modalities together."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from cs_aligner_cli.report.projections import _tsne, _umap, neighbour_projection

# UMAP compiles itself for half a minute before it places a point.
_UMAP = [pytest.mark.slow, pytest.mark.skipif(find_spec("umap") is None, reason="no umap-learn")]
KINDS = ["tsne", pytest.param("umap", marks=_UMAP)]
PLACE = {"tsne": _tsne, "umap": _umap}


def islands(each=40, seed=0):
    """Three far clusters of unit rows, and which row is in which."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(3), each)
    rows = np.eye(10)[of] + 0.05 * rng.standard_normal((len(of), 10))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), of


@pytest.mark.parametrize("kind", KINDS)
def test_near_rows_stay_near_and_the_seed_decides_alone(kind):
    rows, of = islands()
    placed = PLACE[kind](rows, seed=3)
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=2) + 1e9 * np.eye(len(rows))
    assert (of[distances.argmin(axis=1)] == of).mean() > 0.98
    assert placed == pytest.approx(PLACE[kind](rows, seed=3))


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_ordinary_and_degenerate_stores(kind):
    rows, _ = islands(each=6)
    stores = {"a $ store": (rows, rows[::-1].copy()), "few": (rows[:4], -rows[:4]), "flat": (rows[:, :1], rows[:, :1])}
    picture = neighbour_projection(stores, kind)
    assert Image.open(io.BytesIO(picture.drawn("png"))).width > 600
    assert b"<svg" in picture.svg
