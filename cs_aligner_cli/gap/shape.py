"""The shape of the clouds: spectra, effective rank, linear CKA, each with its influence function."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.results import Smooth

_PERMUTATIONS = 4
# Of the largest eigenvalue: roots of those above it keep five digits.
_LEAST_SQUARE = 1e-10


class Spectrum(NamedTuple):
    """The singular values of rows (n, d), largest first, as ``shares`` (r,) of their sum: zeros where rows coincide.

    ``changes`` (n, r): by how much each share's singular value grows with the weight of each row, as a share too; none
    where they are not wanted.
    """

    shares: Floats
    changes: Floats | None


def spectrum(x: Tensor, centred: bool = True, changes: bool = True) -> Spectrum:
    """The spectrum of x (N, d), float64, of centred rows or of rows as they are; r = min(N, d).

    A singular value s with left vector u grows by s u_i^2 / 2 per weight of row i (first-order perturbation of
    X^T W X; that the mean moves along with the weights is of second order).
    """
    rows = x - x.mean(dim=0) if centred else x
    tall = len(rows) >= rows.shape[1]
    # numpy multiplies a matrix with itself in half the time: the products are symmetric.
    array = rows.numpy()
    products = torch.from_numpy(array.T @ array if tall else array @ array.T)
    values = None if changes else _roots(torch.linalg.eigvalsh(products).flip(0), _different(x) - centred)
    scores = None
    if values is None:
        scores, values = _scores(rows, products, tall)
        values, order = values.sort(descending=True)
        scores = scores[:, order]
    total = float(values.sum())
    # Rows that coincide leave rounding behind when their mean is taken away.
    if not total > 1e-9 * len(x):
        return Spectrum(np.zeros(len(values)), np.zeros((len(x), len(values))) if changes else None)
    grown = scores.square() / (2 * values.clamp(min=1e-300)) / total if changes and scores is not None else None
    return Spectrum((values / total).numpy(), None if grown is None else grown.numpy())


def _different(x: Tensor) -> int:
    """How many rows do not repeat the one before: an image stands there once for each of its captions."""
    return 1 + int((x[1:] != x[:-1]).any(dim=1).sum())


def _roots(squares: Tensor, rank: int) -> Tensor | None:
    """The roots of eigenvalues, largest first, zeros beyond the ``rank``; none where rounding would take four of their
    digits from some, or all."""
    there = squares[:rank]
    if not (there > _LEAST_SQUARE * squares[0]).all():
        return None
    return torch.cat([there.sqrt(), torch.zeros_like(squares[rank:])])


def _scores(rows: Tensor, products: Tensor, tall: bool) -> tuple[Tensor, Tensor]:
    """The rows on their main axes (n, r), and the singular values (r,)."""
    axes = torch.linalg.eigh(products).eigenvectors.flip(1)
    if tall:
        scores = rows @ axes
        # As lengths, not as roots of eigenvalues: small ones would lose half of their digits.
        return scores, scores.norm(dim=0)
    values = (axes.T @ rows).norm(dim=1)
    return axes * values, values


def effective_rank(found: Spectrum) -> Smooth:
    """exp(H(p)) of a spectrum's shares p (Roy & Vetterli 2007); 0.0 for a cloud without extent.

    Without the spectrum's changes it has no influence either.
    """
    kept = found.shares > 0
    p = found.shares[kept]
    logs = np.log(p)
    entropy = -float((p * logs).sum())
    rank = float(np.exp(entropy)) if len(p) else 0.0
    if found.changes is None:
        return Smooth(rank, np.zeros(0))
    return Smooth(rank, -rank * found.changes[:, kept] @ (logs + entropy))


def linear_cka(x: Tensor, y: Tensor) -> Smooth:
    """||Xc^T Yc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) of row-paired x (N, d), y (N, e); 0.0 for a constant one.

    Kornblith et al., ICML 2019. It is blind to the gap: centred, and free of rotations.
    """
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    cross, of_a, of_b = a.T @ b, a.T @ a, b.T @ b
    own = _own(of_a, of_b, len(a))
    if not own:
        return Smooth(0.0, np.zeros(len(x)))
    shared = float(cross.square().sum())
    value = min(shared / own, 1.0)  # rounding may go beyond
    growth = 2 * _forms(a, cross, b) / max(shared, 1e-300)
    growth -= _forms(a, of_a, a) / of_a.square().sum() + _forms(b, of_b, b) / of_b.square().sum()
    return Smooth(value, value * growth.numpy())


def _forms(a: Tensor, matrix: Tensor, b: Tensor) -> Tensor:
    """(n,) a_i . matrix b_i."""
    return ((a @ matrix) * b).sum(dim=1)


def shuffled_cka(x: Tensor, y: Tensor, seed: int) -> float:
    """The mean CKA after shuffling the pairs, which is far from 0 where dimensions are many and pairs few."""
    rng = np.random.default_rng(seed)
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    own = _own(a.T @ a, b.T @ b, len(a))
    a, b = a.float(), b.float()  # a level needs no more digits
    shuffled = [(a.T @ b[torch.from_numpy(rng.permutation(len(b)))]).square().sum() for _ in range(_PERMUTATIONS)]
    return float(torch.stack(shuffled).mean()) / own if own else 0.0


def _own(of_a: Tensor, of_b: Tensor, rows: int) -> float:
    """||a^T a||_F ||b^T b||_F of centred rows; 0.0 where rounding is all that is left of constant ones."""
    own = float(of_a.norm() * of_b.norm())
    return own if own > 1e-18 * rows**2 else 0.0
