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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.divergences import cs_divergence
from cs_aligner_cli.objectives.pairwise import checked_pairs

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
    (parts,) = _split(pairs, [logit_scale])
    found = _described(pairs, parts)
    if divergence is None:
        return found
    return found | _with(parts, _pull_of(divergence, pairs), [weight])[0]


def conflict_sweep(
    image: ArrayLike,
    text: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
    bandwidths: Sequence[float] = BANDWIDTHS,
    weights: Sequence[float] = WEIGHTS,
) -> list[dict[str, float]]:
    """``conflict`` with D_CS for every temperature, bandwidth and weight, as rows with these three among their keys."""
    pairs = _pairs(image, text)
    divergences = {s: _pull_of(partial(cs_divergence, bandwidth=s), pairs) for s in bandwidths}
    rows = []
    split = _split(pairs, [1 / temperature for temperature in temperatures])
    for temperature, parts in zip(temperatures, split, strict=True):
        found = _described(pairs, parts)
        for bandwidth, divergence in divergences.items():
            for weight, changed in zip(weights, _with(parts, divergence, weights), strict=True):
                setting = {"temperature": temperature, "bandwidth": bandwidth, "weight": weight}
                rows.append({**setting, **found, **changed})
    return rows


def mutual_information(image: ArrayLike, text: ArrayLike, temperatures: Sequence[float] = TEMPERATURES) -> float:
    """The largest lower bound log N - InfoNCE, in nats, over temperatures, for unit rows (N, d) that are pairs.

    van den Oord et al. (2018); it cannot exceed log N, and is 0 where no temperature gives more. Computed in the
    rows' precision. Raises InputError as ``infonce``.
    """
    x, y, *_ = checked_pairs(image, text, 1.0, None)
    precision = torch.promote_types(x.dtype, torch.float32)
    x, y = x.detach().to(precision), y.detach().to(precision)
    scales = [1 / temperature for temperature in temperatures]
    return max(0.0, math.log(len(x)) - float(_losses((x, y), scales, *_log_sums(x, y, scales)).min()))


class _Parts(NamedTuple):
    """InfoNCE, the mean share of the pair in its softmax, the tangential gradients of pull and push (2N, d), and the
    inner products of each with itself and of both."""

    loss: float
    saturation: float
    pull: Tensor
    push: Tensor
    of_pull: float
    of_push: float
    between: float


class _Divergence(NamedTuple):
    """A divergence, its tangential gradient (2N, d), the inner product of that with itself, and how fast it moves the
    gap and the distance of pairs."""

    value: float
    gradient: Tensor
    of_gradient: float
    rates: dict[str, float]


def _split(pairs: tuple[Tensor, Tensor], scales: Sequence[float]) -> list[_Parts]:
    """The parts at every scale of the logits, whose products are taken once for all of them."""
    x, y = pairs
    n = len(x)
    of_rows, of_columns = _log_sums(x, y, scales)
    losses = _losses(pairs, scales, of_rows, of_columns)
    pushes = x.new_zeros(len(scales), 2 * n, x.shape[1])
    for rows, products in _products(x, y):
        for scale, push, over_texts, over_images in zip(scales, pushes, of_rows, of_columns, strict=True):
            highest, powers = _powers(products, scale)
            if powers is None:
                logits = scale * products
                shares = (logits - over_texts[rows, None]).exp_() + (logits - over_images).exp_()
            else:
                shares = powers.mul_((highest - over_texts[rows, None]).exp_() + (highest - over_images).exp_())
            shares.diagonal(rows.start).zero_()  # what is no negative
            push[rows] = shares @ y
            push[n:] += shares.T @ x[rows]
    found = []
    for scale, push, loss, *sums in zip(scales, pushes, losses, of_rows, of_columns, strict=True):
        own = (scale * (x * y).sum(dim=1) - torch.stack(sums)).exp()
        # Both softmaxes, over texts and over images, pull at both rows of a pair.
        strength = (scale / n) * (1 - own.mean(dim=0))[:, None]
        pull = torch.cat([_tangential(-strength * y, x), _tangential(-strength * x, y)])
        push = _tangential(push.mul_(scale / (2 * n)), torch.cat(pairs))
        inner = _inner(pull, pull), _inner(push, push), _inner(pull, push)
        found.append(_Parts(float(loss), float(own.mean()), pull, push, *inner))
    return found


def _products(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The inner products of some images (B, N) with all texts at a time, and which images they are."""
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        yield rows, x[rows] @ y.T


def _log_sums(x: Tensor, y: Tensor, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(S, N) log-sums of the exponents of every image's logits over texts, and of every text's over images."""
    of_rows = x.new_empty(len(scales), len(x))
    of_columns = x.new_full((len(scales), len(y)), -math.inf)
    for rows, products in _products(x, y):
        for number, scale in enumerate(scales):
            highest, powers = _powers(products, scale)
            sums = (
                [(scale * products).logsumexp(dim=axis) for axis in (1, 0)]
                if powers is None
                else [powers.sum(dim=axis).log_().add_(highest) for axis in (1, 0)]
            )
            of_rows[number, rows] = sums[0]
            of_columns[number] = torch.logaddexp(of_columns[number], sums[1])
    return of_rows, of_columns


def _powers(products: Tensor, scale: float) -> tuple[float, Tensor | None]:
    """The highest logit of a block (B, N), and exp(logit - highest), which sums both ways may be taken of.

    None in the place of the latter where the lowest logit is so far below that its power could be no normal number.
    """
    lowest, highest = (scale * float(bound) for bound in products.aminmax())
    if highest - lowest > -0.9 * math.log(torch.finfo(products.dtype).tiny):
        return highest, None
    return highest, (scale * products).sub_(highest).exp_()


def _losses(pairs: tuple[Tensor, Tensor], scales: Sequence[float], of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """(S,) InfoNCE at every scale."""
    of_pairs = (pairs[0] * pairs[1]).sum(dim=1).mean()
    return (of_rows.mean(dim=1) + of_columns.mean(dim=1)) / 2 - of_pairs.new_tensor(scales) * of_pairs


def _described(pairs: tuple[Tensor, Tensor], parts: _Parts) -> dict[str, float]:
    between = _compared(parts.of_pull, parts.of_push, parts.between)
    return {
        "infonce": parts.loss,
        "mutual_information": math.log(len(pairs[0])) - parts.loss,
        "saturation": parts.saturation,
        "cosine": between[0],
        "cancelled": between[1],
        **_rates(pairs, "pull", parts.pull),
        **_rates(pairs, "push", parts.push),
    }


def _with(parts: _Parts, divergence: _Divergence, weights: Sequence[float]) -> list[dict[str, float]]:
    """Pull against push and divergence together at every weight, from inner products that are taken once."""
    with_pull, with_push = (_inner(part, divergence.gradient) for part in (parts.pull, parts.push))
    found = []
    for weight in weights:
        together = max(0.0, parts.of_push + 2 * weight * with_push + weight**2 * divergence.of_gradient)
        cosine, cancelled = _compared(parts.of_pull, together, parts.between + weight * with_pull)
        rates = {name: weight * rate for name, rate in divergence.rates.items()}
        found.append({"divergence": divergence.value, "cosine_with": cosine, "cancelled_with": cancelled, **rates})
    return found


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


def _pull_of(divergence: Divergence, pairs: tuple[Tensor, Tensor]) -> _Divergence:
    leaves = [rows.clone().requires_grad_() for rows in pairs]
    with torch.enable_grad():
        value = divergence(*leaves)
    grads = torch.autograd.grad(value, leaves)
    gradient = torch.cat([_tangential(g, rows) for g, rows in zip(grads, pairs, strict=True)])
    rates = _rates(pairs, "divergence", gradient)
    return _Divergence(float(value.detach()), gradient, _inner(gradient, gradient), rates)


def _tangential(gradient: Tensor, row: Tensor) -> Tensor:
    return gradient - (gradient * row).sum(dim=1, keepdim=True) * row


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))


def _compared(of_pull: float, of_push: float, between: float) -> tuple[float, float]:
    """The cosine of pull and push, and the share of the pull that the push takes back, from their inner products."""
    lengths = math.sqrt(of_pull * of_push)
    return (between / lengths if lengths else 0.0, -between / of_pull if of_pull else 0.0)
