"""Features of several modalities from one latent variable, with gaps of a chosen size: a toy where all is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
# How strongly a nonlinear view bends: the latent variable's coordinates have size 1 before the tangent.
_GAIN = 2.0


def draw_views(
    count: int,
    views: int,
    *,
    dim: int,
    latent_dim: int,
    noise: float,
    gap: float,
    rng: np.random.Generator,
    curvature: float = 0.0,
) -> list[Features]:
    """Features (count, dim) of every view, row by row of the same item.

    View v is ``B f_v(z) + noise e + o_v`` with the same z ~ N(0, I / latent_dim), its own e ~ N(0, I / dim), the
    orthonormal columns of B, and o_v, the corners of a regular simplex with edge ``gap`` outside the latent's span.
    ``f_v(z) = (1 - curvature) z + curvature g_v(z)``, g_v being a rotation and a tangent of its own, of length 1 on
    average. Two linear views share ``latent_dim / 2 log(1 / (1 - r^2))`` nats, r being the share of the variance that
    is not noise, whatever the gap.
    """
    basis = np.linalg.qr(rng.normal(size=(dim, latent_dim + views - 1)))[0].astype(np.float32)
    z = rng.normal(size=(count, latent_dim)) / np.sqrt(latent_dim)
    corners = _simplex(views) * gap
    bends = [np.linalg.qr(rng.normal(size=(latent_dim, latent_dim)))[0] for _ in range(views)] if curvature else []
    features = []
    for view in range(views):
        shared = z
        if curvature:
            bent = np.tanh(_GAIN * np.sqrt(latent_dim) * z @ bends[view])
            shared = (1 - curvature) * z + curvature * bent / np.linalg.norm(bent, axis=1).mean()
        rows = shared @ basis[:, :latent_dim].T + noise * rng.normal(size=(count, dim)) / np.sqrt(dim)
        features.append((rows + corners[view] @ basis[:, latent_dim:].T).astype(np.float32))
    return features


def draw_tokens(
    count: int, images: int, texts: int, *, rng: np.random.Generator, **options: Any
) -> tuple[list[Features], list[npt.NDArray[np.bool_]]]:
    """Tokens (count, L, dim) of images and of texts, and which of them stand: (count, L).

    An item has as many parts as the larger of ``images`` and ``texts``, each with a latent variable of its own and the
    two views of ``draw_views`` (its ``options``). Its image shows the first ``images`` of them, its text names some of
    the first ``texts``, drawn anew: half of them at least, in order.
    """
    parts = max(images, texts)
    views = [view.reshape(count, parts, -1) for view in draw_views(count * parts, 2, rng=rng, **options)]
    tokens = [view[:, :length] for view, length in zip(views, (images, texts), strict=True)]
    named = rng.integers((texts + 1) // 2, texts + 1, count)
    rank = rng.random((count, texts)).argsort(axis=1).argsort(axis=1)
    return tokens, [np.ones((count, images), bool), rank < named[:, None]]


def _simplex(corners: int) -> npt.NDArray[np.float64]:
    """(corners, corners - 1) coordinates of a regular simplex with edge 1 around the origin."""
    if corners == 2:
        return np.array([[0.5], [-0.5]])
    centred = (np.eye(corners) - 1 / corners) / np.sqrt(2)
    left, scales, _ = np.linalg.svd(centred)
    return np.asarray((left * scales)[:, : corners - 1])
