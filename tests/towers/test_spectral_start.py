"""The spectral start: a path's closed form, sparse against dense, and noiseless views that are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from samples import random_rows
from scipy.sparse import csr_array

from cs_aligner_cli.common.spectral import joint_graph, neighbour_graph, spectral_embedding
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.towers.spectral_start import spectral_maps


def two_views(n: int, dim: int = 8) -> tuple[Floats, Floats]:
    """One set of unit rows, turned in two ways: their cosines are the same in both."""
    rows = random_rows(0, n, dim).astype(np.float64)
    turns = [np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0] for seed in (1, 2)]
    return rows @ turns[0], rows @ turns[1]


def mapped(items: dict[str, Floats], pairs: int, axes: int) -> tuple[Floats, Floats]:
    same = np.arange(pairs)
    maps = spectral_maps(items, (same, same), axes, 1e-6)
    image, text = ((items[m] - mean) @ weight.T for m, (weight, mean) in maps.items())
    return image, text


@pytest.mark.parametrize("axes", [6, 30])
def test_a_path_has_the_cosines_of_its_angles(axes: int) -> None:
    """By Lanczos iteration (6) and by a dense decomposition (30)."""
    n, k = 60, np.arange(1, axes + 1)
    step = np.eye(n, k=1)
    coordinates, values = spectral_embedding(csr_array(step + step.T), axes)
    np.testing.assert_allclose(values, np.cos(np.pi * k / (n - 1)), atol=1e-8)
    waves = np.cos(np.pi * np.outer(np.arange(n), k) / (n - 1))
    np.testing.assert_allclose(np.abs(coordinates), np.abs(waves * coordinates[0]), atol=1e-6)


def test_a_graph_of_neighbours_is_that_of_plain_numpy() -> None:
    rows = random_rows(0, 30, 5).astype(np.float64)
    cosines = rows @ rows.T
    expected = np.zeros((30, 30))
    for i in range(30):
        for j in np.argsort(-np.where(np.arange(30) == i, -np.inf, cosines[i]))[:4]:
            expected[i, j] = expected[j, i] = max(cosines[i, j], 0)
    np.testing.assert_allclose(neighbour_graph(rows, 4).toarray(), expected, atol=1e-12)


def test_sparse_eigenvectors_are_those_of_the_dense_laplacian_and_always_the_same() -> None:
    x, y = two_views(70)
    graph = joint_graph(x, y, np.arange(40), np.arange(40), 5)
    coordinates, values = spectral_embedding(graph, 9)
    dense = graph.toarray()
    degree = dense.sum(axis=1)
    laplacian = np.eye(140) - dense / np.sqrt(degree[:, None] * degree)
    np.testing.assert_allclose(1 - values, np.linalg.eigvalsh(laplacian)[1:10], atol=1e-8)
    np.testing.assert_allclose(dense @ coordinates / degree[:, None], coordinates * values, atol=1e-7)
    assert (spectral_embedding(graph, 9)[0] == coordinates).all()


def test_noiseless_views_of_pairs_are_recovered_exactly() -> None:
    x, y = two_views(90)
    image, text = mapped({"image": x, "text": y}, 90, 6)
    np.testing.assert_allclose(image, text, atol=1e-6)
    cosines = image @ text.T / np.linalg.norm(image, axis=1)[:, None] / np.linalg.norm(text, axis=1)
    assert (cosines.argmax(axis=1) == np.arange(90)).all()


@pytest.mark.parametrize("unpaired", [False, True])
def test_partners_that_the_start_was_not_given_are_found(unpaired: bool) -> None:
    x, y = two_views(200)
    known = 200 if unpaired else 60
    items = {"image": x[:known], "text": y[:known]}
    maps = spectral_maps(items, (np.arange(60), np.arange(60)), 8, 1e-3)
    image, text = ((z - maps[m][1]) @ maps[m][0].T for m, z in (("image", x), ("text", y)))
    unit = [z[60:] / np.linalg.norm(z[60:], axis=1, keepdims=True) for z in (image, text)]
    assert ((unit[0] @ unit[1].T).argmax(axis=1) == np.arange(140)).mean() > 0.9
