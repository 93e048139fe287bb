"""Improved precision and recall: are generated features among the real ones, and do they cover them."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.samples import samples

_TILE = 2048


def precision_recall(generated: ArrayLike, real: ArrayLike, neighbours: int = 3) -> dict[str, float]:
    """Improved precision and recall of generated (M, d) against real (N, d) features (Kynkaanniemi et al. 2019).

    Precision is the share of generated rows that lie within the distance of some real row to its ``neighbours``-th
    nearest other real row; recall is the same with the roles exchanged. Both depend on M and N: compare at equal sizes.

    Raises InputError for rows that do not fit together or are not finite, and for a sample of no more rows than
    ``neighbours``.
    """
    x, y = samples(generated, real, ("generated", "real"))
    for name, rows in (("generated", x), ("real", y)):
        if len(rows) <= neighbours:
            raise InputError(f"{name}: {neighbours} neighbours need more than {len(rows)} rows")
    return {
        "precision": _share_inside(x, y, _radii(y, neighbours)),
        "recall": _share_inside(y, x, _radii(x, neighbours)),
    }


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Differences, not inner products: a row's distance to itself must be 0, or it would count as a neighbour.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """(N,) each row's distance to its k-th nearest other row."""
    return torch.cat([_distances(part, rows).kthvalue(neighbours + 1).values for part in torch.split(rows, _TILE)])


def _share_inside(queries: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(_distances(part, centres) <= radii).any(dim=1) for part in torch.split(queries, _TILE)]
    return float(torch.cat(inside).double().mean())
