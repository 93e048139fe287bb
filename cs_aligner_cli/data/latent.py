"""Paired features from one latent variable, with a gap of a chosen size: a toy on which everything is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]


def draw_pairs(
    count: int, *, dim: int, latent_dim: int, noise: float, gap: float, rng: np.random.Generator, basis: Features
) -> tuple[Features, Features]:
    """Image and text features (count, dim) each, row by row a pair.

    Both are ``basis @ z + noise e +- gap / 2 u`` with the same z ~ N(0, I) of ``latent_dim``, their own
    e ~ N(0, I / dim), and u, a direction outside the latent's span: the last column of ``basis`` (dim, latent_dim + 1),
    whose other columns are scaled so that the latent's part has length 1 on average. The pair shares
    ``latent_dim / 2 log(1 / (1 - r^2))`` nats, r being the share of the variance that is not noise, whatever the gap.
    """
    z = rng.normal(size=(count, latent_dim)) / np.sqrt(latent_dim)
    shared = z @ basis[:, :latent_dim].T
    offset = gap / 2 * basis[:, latent_dim]
    features = [shared + noise * rng.normal(size=(count, dim)) / np.sqrt(dim) + sign * offset for sign in (1.0, -1.0)]
    return features[0].astype(np.float32), features[1].astype(np.float32)


def draw_basis(dim: int, latent_dim: int, rng: np.random.Generator) -> Features:
    """Orthonormal columns (dim, latent_dim + 1): the latent's span, and the direction of the gap."""
    return np.linalg.qr(rng.normal(size=(dim, latent_dim + 1)))[0].astype(np.float32)
