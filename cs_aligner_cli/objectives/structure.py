"""Structure preservation: what lies near what within one modality stays so on the way through its tower."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, l2_normalize
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks

# In the place of a row's similarity to itself: exp() of it is 0, and differences of two of them are finite.
_LEFT_OUT = -1e9


def structure(features: ArrayLike, rows: ArrayLike, kind: str = "js", temperature: float = 0.05) -> Tensor:
    """Return how much the geometry of ``rows`` (N, d) differs from that of their ``features`` (N, D), a scalar tensor.

    The features are what the rows were before the map that is trained; no gradient reaches them. They are taken as the
    unit vectors from their mean: frozen features lie in a narrow cone, and rows that kept its similarities would keep
    the cone, and with it the gap. Rows are used as given, unit rows being expected. With the similarities S = z z^T of
    both the kinds are:

    - ``js``: the mean over rows of the Jensen-Shannon divergence between softmax(S / temperature) of both, in nats: the
      regulariser of STRUCTURE (Groeger et al. 2025) at its first level, but without a row's similarity to itself, which
      is no neighbourhood and would outweigh all others at a low temperature. Between 0 and log 2.
    - ``kl``: the same with KL(features || rows), whose gradient is that of a cross-entropy towards soft labels.
    - ``cka``: 1 - linear centred kernel alignment (Kornblith et al., ICML 2019), between 0 and 1.
    - ``distance``: the mean over all pairs of the squared difference of the two similarities.

    0 for rows that are the features' directions from their mean, turned by any rotation. Memory is linear in N (``cka``
    and ``distance`` take D x d matrices instead). Computed in float32, or float64 where rows are, whatever the
    autocast. Raises InputError for rows that do not fit together, fewer than two rows, an unknown kind and a
    temperature not above 0.
    """
    before, after = as_rows(features, "features").detach(), as_rows(rows, "rows")
    if len(before) != len(after):
        raise InputError(f"features and rows differ in number: {len(before)} against {len(after)}")
    if len(after) < 2:
        raise InputError(f"structure needs at least 2 rows, got {len(after)}")
    if kind not in STRUCTURES:
        raise InputError(f"kind: unknown name {kind!r}{did_you_mean(kind, list(STRUCTURES))}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature: expected a number above 0, got {temperature:g}")
    with torch.autocast(device_type=after.device.type, enabled=False):
        unit = l2_normalize(before.to(after))
        return STRUCTURES[kind](l2_normalize(unit - unit.mean(dim=0)), after, temperature)


def _neighbourhoods(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The mean over rows of a divergence between two softmaxes, given as logarithms (rows, N)."""

    def term(before: Tensor, after: Tensor, temperature: float) -> Tensor:
        size = len(after)

        def loss(block: slice, before: Tensor, after: Tensor) -> Tensor:
            own = torch.arange(block.start, block.stop, device=after.device).unsqueeze(1)
            log_p, log_q = (
                (z[block] @ z.T / temperature).scatter(1, own, _LEFT_OUT).log_softmax(dim=1) for z in (before, after)
            )
            return divergence(log_p, log_q) / size

        return sum_over_blocks(loss, size, size, before, after)

    return term


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)).sum() / 2


def _kullback_leibler(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def _cka(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    cross, of_before, of_after = _squared_products(*(z - z.mean(dim=0) for z in (before, after)))
    least = torch.finfo(after.dtype).tiny  # rows that all coincide are aligned with nothing
    return 1 - cross / (of_before * of_after).clamp(min=least).sqrt()


def _distance(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    cross, of_before, of_after = _squared_products(before, after)
    return (of_before + of_after - 2 * cross) / len(after) ** 2


def _squared_products(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_ij S_ij T_ij, sum_ij S_ij^2 and sum_ij T_ij^2 of the similarities S before and T after, by products of
    dimensions in place of rows."""
    return (
        (before.T @ after).square().sum(),
        (before.T @ before).square().sum(),
        (after.T @ after).square().sum(),
    )


# Each takes unit rows before (N, D) and after (N, d), and the temperature.
STRUCTURES: Final[dict[str, Callable[[Tensor, Tensor, float], Tensor]]] = {
    "js": _neighbourhoods(_jensen_shannon),
    "kl": _neighbourhoods(_kullback_leibler),
    "cka": _cka,
    "distance": _distance,
}
