"""Linear maps between two modalities that have a closed form, from the second moments of their paired rows.

All take centred rows x (n, d) and y (n, e) in float64, row by row a pair, and return maps that rows are multiplied
with from the right: ``x @ map``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cs_aligner_cli.common.types import Floats


def shrunk_covariance(x: Floats, shrinkage: float) -> Floats:
    """(d, d) covariance of centred rows plus ``shrinkage`` times its mean eigenvalue on the diagonal."""
    covariance = x.T @ x / len(x)
    mean_eigenvalue = np.trace(covariance) / len(covariance)
    # Rows that all coincide have no covariance; any multiple of the identity leaves their zeros as they are.
    shrunk: Floats = covariance + (shrinkage * mean_eigenvalue or 1.0) * np.eye(len(covariance))
    return shrunk


def whitening(x: Floats, shrinkage: float) -> Floats:
    """(d, d) inverse symmetric square root of the shrunk covariance (ZCA)."""
    values, axes = np.linalg.eigh(shrunk_covariance(x, shrinkage))
    root: Floats = axes / np.sqrt(values) @ axes.T
    return root


def principal_whitening(x: Floats, shrinkage: float) -> Floats:
    """(d, d) whose columns are the principal axes, the widest first, each over its standard deviation (PCA)."""
    values, axes = np.linalg.eigh(shrunk_covariance(x, shrinkage))
    columns: Floats = (axes / np.sqrt(values))[:, ::-1]
    return columns


def procrustes(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(d, k) and (e, k), k = min(d, e): the singular axes of the cross-covariance (Schoenemann 1966).

    ``x_map @ y_map.T`` is the orthogonal map that brings x nearest to y.
    """
    return procrustes_of_covariance(x.T @ y / len(x))


def procrustes_of_covariance(cross: Floats) -> tuple[Floats, Floats]:
    """``procrustes`` from the cross-covariance (d, e)."""
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    return left, right.T


def cca_of_covariances(
    of_x: Floats, of_y: Floats, cross: Floats, shrinkages: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """(d, k) and (e, k), k = min(d, e): the canonical axes (Hotelling 1936), weighted by their correlations.

    For several shrinkages, from covariances (d, d), (e, e) and (d, e). The weights are those of Gong et al. 2014 (arXiv
    1212.4522), so that cosines count an axis by what it shares.

    Weighted axes need neither eigenvectors nor singular ones of the wider side, which cost most where features are
    wide: with W whitening the narrower side, a system of equations gives C_xx^-1 C_xy W, and that the maps.
    """
    if len(of_x) < len(of_y):
        return [(left, right) for right, left in cca_of_covariances(of_y, of_x, cross.T, shrinkages)]
    values, axes = np.linalg.eigh(of_y)
    mean_x = np.trace(of_x) / len(of_x)
    turned = cross @ axes
    found = []
    for shrinkage in shrinkages:
        scales = np.sqrt(values + (shrinkage * values.mean() or 1.0))
        white, shared = axes / scales, turned / scales
        shrunk = of_x + (shrinkage * mean_x or 1.0) * np.eye(len(of_x))
        solved = np.linalg.solve(shrunk, shared)
        squares, turns = np.linalg.eigh(shared.T @ solved)
        rho = np.sqrt(np.maximum(squares, 0))
        found.append(((solved @ turns)[:, ::-1], (white @ turns * rho)[:, ::-1]))
    return found


def cca(x: Floats, y: Floats, shrinkage: float, spread: tuple[Floats, Floats] | None = None) -> tuple[Floats, Floats]:
    """The maps of ``cca_of_covariances``, from rows: ``canonical_axes`` weighted with their correlations."""
    ((left, right, rho),) = canonical_axes(x, y, [shrinkage], spread)
    return left * rho, right * rho


def canonical_axes(
    x: Floats, y: Floats, shrinkages: Sequence[float], spread: tuple[Floats, Floats] | None = None
) -> list[tuple[Floats, Floats, Floats]]:
    """The canonical axes (d, k) and (e, k) of centred rows x (n, d) and y (n, e) at each shrinkage, and their
    correlations (k,), the largest first; all share the covariances and their eigenvectors.

    ``spread``: centred rows (m, d) and (l, e), paired or not, from which the covariances are taken in place of x and y.
    """
    (of_x, axes_x), (of_y, axes_y) = (np.linalg.eigh(z.T @ z / len(z)) for z in spread or (x, y))
    # Whitening scales the principal axes, whatever the shrinkage: they are changed to once.
    cross = axes_x.T @ (x.T @ y / len(x)) @ axes_y
    found = []
    for shrinkage in shrinkages:
        # Rows that all coincide have no covariance; any multiple of the identity leaves their zeros as they are.
        root_x, root_y = (1 / np.sqrt(v + (shrinkage * v.mean() or 1.0))[:, None] for v in (of_x, of_y))
        left, correlations, right = np.linalg.svd(root_x * cross * root_y.T, full_matrices=False)
        found.append((axes_x @ (root_x * left), axes_y @ (root_y * right.T), correlations))
    return found


def ridge(x: Floats, y: Floats, shrinkage: float, spread: Floats | None = None) -> Floats:
    """(d, e) least squares map from x to y, the covariance of x, or of ``spread`` (m, d), being shrunk."""
    covariance = shrunk_covariance(x if spread is None else spread, shrinkage)
    solution: Floats = np.asarray(np.linalg.solve(covariance, x.T @ y / len(x)), np.float64)
    return solution
