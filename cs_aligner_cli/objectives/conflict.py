"""The conflict inside InfoNCE: alignment pulls pairs together, cross-modal uniformity pushes them apart again.

InfoNCE is alignment ``A = -scale mean_i x_i . y_i`` plus cross-modal uniformity
``U = (mean_i log sum_j exp(scale x_i . y_j) + mean_j log sum_i exp(scale x_i . y_j)) / 2``: Wang & Isola's split (ICML
2020) taken across modalities, as in Yin et al., arXiv 2502.17028. U holds the pairs (i, i) too, and all images against
all texts: it takes back a part of what A does for a pair, and it pushes the two clouds apart. A divergence pulls the
clouds together, and so gives back some of what U takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.divergences import cs_divergence
from cs_aligner_cli.objectives.pairwise import infonce

TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5)
BANDWIDTHS = (0.5, 0.7071, 1.0)
WEIGHTS = (1.0, 10.0)

Divergence = Callable[[Tensor, Tensor], Tensor]


def conflict(
    image: ArrayLike, text: ArrayLike, logit_scale: float, divergence: Divergence | None = None, weight: float = 1.0
) -> dict[str, float]:
    """Split InfoNCE of the pairs (image_i, text_i), (N, d) each, and compare the gradients of its parts.

    Rows are scaled to unit length, and gradients are those with respect to the rows, without their radial part, which
    a row of fixed length cannot follow. Returned, in this order:

    - ``alignment``, ``uniformity``, ``infonce``: A, U and their sum.
    - ``mutual_information``: log N - infonce, InfoNCE's lower bound in nats (van den Oord et al., 2018).
    - ``cosine``: between the gradients of A and U; -1: U does nothing but undo A.
    - ``cancelled``: the share of A's gradient that U takes back, ``-<dU, dA> / |dA|^2``; above 1, pairs move apart.
    - with a ``divergence`` D (of image and text, as ``objectives.cs_divergence`` with its bandwidth), ``divergence``
      and the last two with ``U + weight D`` in U's place: ``cosine_with``, ``cancelled_with``.

    Computed in float64, in memory linear in N. Raises InputError on rows that are not pairs, and for fewer than two.
    """
    pairs = _pairs(image, text)
    found, pull, push = _split(pairs, logit_scale)
    if divergence is None:
        return found
    value, gradient = _value_and_gradient(divergence, pairs)
    return found | {"divergence": value} | _with(pull, push + weight * gradient)


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
        found, pull, push = _split(pairs, 1 / temperature)
        for bandwidth, (value, gradient) in divergences.items():
            for weight in weights:
                setting = {"temperature": temperature, "bandwidth": bandwidth, "weight": weight}
                rows.append({**setting, **found, "divergence": value, **_with(pull, push + weight * gradient)})
    return rows


def mutual_information(image: ArrayLike, text: ArrayLike, temperatures: Sequence[float] = TEMPERATURES) -> float:
    """The largest lower bound log N - InfoNCE, in nats, over temperatures, for unit rows (N, d) that are pairs.

    van den Oord et al. (2018); it cannot exceed log N, and is 0 where no temperature gives more. Computed in the
    rows' precision. Raises InputError as ``infonce``.
    """
    with torch.no_grad():
        losses = [float(infonce(image, text, 1 / temperature)) for temperature in temperatures]
    return max(0.0, math.log(len(image)) - min(losses))


def _split(pairs: tuple[Tensor, Tensor], logit_scale: float) -> tuple[dict[str, float], Tensor, Tensor]:
    """InfoNCE's parts, and the tangential gradients of alignment and of uniformity."""
    x, y = pairs
    loss, whole = _value_and_gradient(lambda image, text: infonce(image, text, logit_scale), pairs)
    scaled = logit_scale / len(x)
    pull = torch.cat([_tangential(-scaled * y, x), _tangential(-scaled * x, y)])
    push = whole - pull
    alignment = -scaled * float((x * y).sum())
    found = {
        "alignment": alignment,
        "uniformity": loss - alignment,
        "infonce": loss,
        "mutual_information": math.log(len(x)) - loss,
        "cosine": _cosine(pull, push),
        "cancelled": _cancelled(pull, push),
    }
    return found, pull, push


def _with(pull: Tensor, push: Tensor) -> dict[str, float]:
    return {"cosine_with": _cosine(pull, push), "cancelled_with": _cancelled(pull, push)}


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
