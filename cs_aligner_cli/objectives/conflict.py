"""The conflict inside InfoNCE: alignment pulls pairs together, uniformity over negatives pushes the clouds apart.

Row i of InfoNCE, softmax weights p_ij over the texts of image i, has the gradient ``-scale ((1 - p_ii) y_i - sum_{j
!= i} p_ij y_j)``: the pull towards its pair and the push from its negatives, both of which shrink together as the
pair's own share p_ii nears 1. The conflict is taken between these two. (Wang & Isola's split, ICML 2020, taken across
modalities as in Yin et al., arXiv 2502.17028, has the pair itself in the uniformity term: what that takes back of
alignment is mostly p_ii, the saturation of the softmax, whether there is a gap or not.) A divergence pulls the clouds
together, and so gives back some of what the push takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.divergences import cs_divergence
from cs_aligner_cli.objectives.pairwise import infonce

TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5)
BANDWIDTHS = (0.5, 0.7071, 1.0)
WEIGHTS = (1.0, 10.0)
# Rows whose logits are held at a time.
_ROWS = 1024

Divergence = Callable[[Tensor, Tensor], Tensor]


def conflict(
    image: ArrayLike, text: ArrayLike, logit_scale: float, divergence: Divergence | None = None, weight: float = 1.0
) -> dict[str, float]:
    """Split InfoNCE's gradient at the pairs (image_i, text_i), (N, d) each, and compare its two parts.

    Rows are scaled to unit length, and gradients are those with respect to the rows, without their radial part, which
    a row of fixed length cannot follow. Returned, in this order:

    - ``infonce``; ``mutual_information``: log N - infonce, its lower bound in nats (van den Oord et al., 2018).
    - ``saturation``: the mean of p_ii, the part of the pull on a pair that its own rank has used up.
    - ``cosine``: between the gradients of pull and push; -1: the push does nothing but undo the pull.
    - ``cancelled``: the share of the pull that the push takes back, ``-<push, pull> / |pull|^2``.
    - ``gap_rate_pull``, ``gap_rate_push``: how fast each moves the centroid gap, d ||mx - my|| / dt, in the gradient
      flow dz / dt = -N dL/dz; ``distance_rate_pull``, ``distance_rate_push``: the same of mean |x_i - y_i|^2. Below 0
      it closes.
    - with a ``divergence`` D (of image and text, as ``objectives.cs_divergence`` with its bandwidth): ``divergence``,
      ``cosine_with`` and ``cancelled_with``, which have the push and weight D in the push's place, and
      ``gap_rate_divergence``, ``distance_rate_divergence``.

    Computed in float64, in memory linear in N. Raises InputError on rows that are not pairs, and for fewer than two.
    """
    pairs = _pairs(image, text)
    parts = _split(pairs, logit_scale)
    found = _described(pairs, parts)
    if divergence is None:
        return found
    return found | _with(pairs, parts, *_value_and_gradient(divergence, pairs), weight)


def conflict_sweep(
    image: ArrayLike,
    text: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
    bandwidths: Sequence[float] = BANDWIDTHS,
    weights: Sequence[float] = WEIGHTS,
) -> list[dict[str, float]]:
    """``conflict`` with D_CS for every temperature, bandwidth and weight, as rows with these three among their keys."""
    pairs = _pairs(image, text)
    divergences = {s: _value_and_gradient(partial(cs_divergence, bandwidth=s), pairs) for s in bandwidths}
    rows = []
    for temperature in temperatures:
        parts = _split(pairs, 1 / temperature)
        found = _described(pairs, parts)
        for bandwidth, divergence in divergences.items():
            for weight in weights:
                setting = {"temperature": temperature, "bandwidth": bandwidth, "weight": weight}
                rows.append({**setting, **found, **_with(pairs, parts, *divergence, weight)})
    return rows


def mutual_information(image: ArrayLike, text: ArrayLike, temperatures: Sequence[float] = TEMPERATURES) -> float:
    """The largest lower bound log N - InfoNCE, in nats, over temperatures, for unit rows (N, d) that are pairs.

    van den Oord et al. (2018); it cannot exceed log N, and is 0 where no temperature gives more. Computed in the
    rows' precision. Raises InputError as ``infonce``.
    """
    with torch.no_grad():
        losses = [float(infonce(image, text, 1 / temperature)) for temperature in temperatures]
    return max(0.0, math.log(len(image)) - min(losses))


class _Parts(NamedTuple):
    """InfoNCE, the mean share of the pair in its softmax, and the tangential gradients of pull and push (2N, d)."""

    loss: float
    saturation: float
    pull: Tensor
    push: Tensor


def _split(pairs: tuple[Tensor, Tensor], logit_scale: float) -> _Parts:
    x, y = pairs
    loss, whole = _value_and_gradient(lambda image, text: infonce(image, text, logit_scale), pairs)
    own = torch.stack([_own_share(x, y, logit_scale), _own_share(y, x, logit_scale)])
    # Both softmaxes, over texts and over images, pull at both rows of a pair.
    strength = (logit_scale / len(x)) * (1 - own.mean(dim=0))[:, None]
    pull = torch.cat([_tangential(-strength * y, x), _tangential(-strength * x, y)])
    return _Parts(loss, float(own.mean()), pull, whole - pull)


def _own_share(queries: Tensor, gallery: Tensor, logit_scale: float) -> Tensor:
    """(N,) softmax weight of the pair among each query's logits."""
    shares = []
    for start in range(0, len(queries), _ROWS):
        logits = logit_scale * queries[start : start + _ROWS] @ gallery.T
        shares.append((logits.diagonal(start) - logits.logsumexp(dim=1)).exp())
    return torch.cat(shares)


def _described(pairs: tuple[Tensor, Tensor], parts: _Parts) -> dict[str, float]:
    return {
        "infonce": parts.loss,
        "mutual_information": math.log(len(pairs[0])) - parts.loss,
        "saturation": parts.saturation,
        "cosine": _cosine(parts.pull, parts.push),
        "cancelled": _cancelled(parts.pull, parts.push),
        **_rates(pairs, "pull", parts.pull),
        **_rates(pairs, "push", parts.push),
    }


def _with(
    pairs: tuple[Tensor, Tensor], parts: _Parts, value: float, gradient: Tensor, weight: float
) -> dict[str, float]:
    push = parts.push + weight * gradient
    return {
        "divergence": value,
        "cosine_with": _cosine(parts.pull, push),
        "cancelled_with": _cancelled(parts.pull, push),
        **_rates(pairs, "divergence", weight * gradient),
    }


def _rates(pairs: tuple[Tensor, Tensor], term: str, gradient: Tensor) -> dict[str, float]:
    """How fast a term's gradient flow moves the centroid gap and the mean squared distance of pairs."""
    x, y = pairs
    flow = -len(x) * gradient
    flow_x, flow_y = flow[: len(x)], flow[len(x) :]
    apart = x.mean(dim=0) - y.mean(dim=0)
    gap = float(apart.norm())
    moved = float(apart @ (flow_x.mean(dim=0) - flow_y.mean(dim=0)))
    return {
        f"gap_rate_{term}": moved / gap if gap else 0.0,
        f"distance_rate_{term}": 2 * float(((x - y) * (flow_x - flow_y)).sum(dim=1).mean()),
    }


def _pairs(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """Unit rows in float64, detached from any graph."""
    x, y = as_rows(image, "image"), as_rows(text, "text")
    same_width(x, y)
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"the conflict needs at least 2 pairs, row by row, got {len(x)} image and {len(y)} text rows")
    return l2_normalize(double(x.detach())), l2_normalize(double(y.detach()))


def _value_and_gradient(loss: Divergence, pairs: tuple[Tensor, Tensor]) -> tuple[float, Tensor]:
    """A loss, and its tangential gradient with respect to all rows, images first."""
    leaves = [rows.clone().requires_grad_() for rows in pairs]
    with torch.enable_grad():
        value = loss(*leaves)
    grads = torch.autograd.grad(value, leaves)
    return float(value.detach()), torch.cat([_tangential(g, rows) for g, rows in zip(grads, pairs, strict=True)])


def _tangential(gradient: Tensor, row: Tensor) -> Tensor:
    return gradient - (gradient * row).sum(dim=1, keepdim=True) * row


def _cosine(pull: Tensor, push: Tensor) -> float:
    lengths = float(pull.norm() * push.norm())
    return float((pull * push).sum()) / lengths if lengths else 0.0


def _cancelled(pull: Tensor, push: Tensor) -> float:
    strength = float(pull.square().sum())
    return -float((pull * push).sum()) / strength if strength else 0.0
