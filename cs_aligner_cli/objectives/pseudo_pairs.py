"""Pseudo pairs: unpaired rows are drawn to the captions, or the images, of the pairs that they resemble."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, l2_normalize, same_width, type_of_all
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.objectives.pairwise import scalar
from cs_aligner_cli.objectives.plan_matching import SMALLEST_EPSILON, transport_plan
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks

# Sinkhorn's iterations for the labels, and how near the marginals must be: labels need no more.
_ITERATIONS, _TOLERANCE = 100, 1e-2


class Side(NamedTuple):
    """One modality's rows in pairs (N, d) and in none (U, d), and the features (N, D) and (U, D) of both."""

    paired: ArrayLike
    unpaired: ArrayLike | None
    paired_features: ArrayLike
    unpaired_features: ArrayLike | None


class _Rows(NamedTuple):
    """A ``Side`` as tensors that fit; ``unpaired`` None, or its rows (U, d) and their features (U, D)."""

    paired: Tensor
    features: Tensor
    unpaired: tuple[Tensor, Tensor] | None


def pseudo_pairs(
    image: Side, text: Side, logit_scale: float | Tensor, kind: str = "transport", temperature: float = 0.05
) -> Tensor:
    """Return the cross-entropy of unpaired rows towards soft labels over the pairs, as a scalar tensor.

    An unpaired image u has the label q_u over the N pairs: how near it lies to the pairs' images by the features of its
    own modality, which are taken as directions from the mean of all rows. It is asked to retrieve the pairs' texts
    accordingly: ``mean_u -sum_n q_un log softmax_n(logit_scale u . text_n)``, and unpaired texts the pairs' images; the
    mean over the modalities that have unpaired rows, 0 where none has (the caption-level pseudo-labels of S-CLIP, Mo et
    al., NeurIPS 2023, arXiv 2305.14095). No gradient reaches the labels. Kinds:

    - ``transport``: q are the rows of the entropic transport plan between unpaired and paired features, epsilon being
      ``temperature``: every pair gets the same share of all unpaired rows, as in S-CLIP.
    - ``softmax``: q = softmax_n(f_u . f_n / temperature).

    Memory is linear in N + U. Raises InputError for rows that do not fit together, an unknown kind and a temperature
    below 0.005.
    """
    if kind not in POTENTIALS:
        raise InputError(f"kind: unknown name {kind!r}{did_you_mean(kind, list(POTENTIALS))}")
    if not SMALLEST_EPSILON <= temperature < math.inf:
        raise InputError(f"temperature: expected a number of at least {SMALLEST_EPSILON}, got {temperature:g}")
    x, y = _checked(image, "image"), _checked(text, "text")
    same_width(x.paired, y.paired)
    if len(x.paired) != len(y.paired):
        raise InputError(f"image and text rows are not pairs: {len(x.paired)} against {len(y.paired)}")
    values = [
        _towards_labels(*side.unpaired, side.features, other.paired, logit_scale, kind, temperature)
        for side, other in ((x, y), (y, x))
        if side.unpaired is not None
    ]
    return torch.stack(values).mean() if values else x.paired.sum() * 0


def _checked(side: Side, name: str) -> _Rows:
    paired, features = as_rows(side.paired, f"{name}.paired"), as_rows(side.paired_features, f"{name}.paired_features")
    _refuse_other_length(paired, features, f"{name}.paired")
    if side.unpaired is None or side.unpaired_features is None:
        if side.unpaired is not side.unpaired_features:
            raise InputError(f"{name}: expected unpaired rows and their features, or neither; got one of both")
        return _Rows(paired, features, None)
    more = as_rows(side.unpaired, f"{name}.unpaired"), as_rows(side.unpaired_features, f"{name}.unpaired_features")
    _refuse_other_length(*more, f"{name}.unpaired")
    for one, other, kind in ((paired, more[0], "rows"), (features, more[1], "features")):
        if one.shape[1] != other.shape[1]:
            raise InputError(
                f"{name}: paired and unpaired {kind} differ in dimension: {one.shape[1]}, {other.shape[1]}"
            )
    return _Rows(paired, features, more)


def _refuse_other_length(rows: Tensor, features: Tensor, name: str) -> None:
    if len(rows) != len(features):
        raise InputError(f"{name} and its features differ in rows: {len(rows)} against {len(features)}")


def _towards_labels(
    unpaired: Tensor,
    unpaired_features: Tensor,
    paired_features: Tensor,
    targets: Tensor,
    scale: float | Tensor,
    kind: str,
    temperature: float,
) -> Tensor:
    known, new = _directions(paired_features, unpaired_features)
    potentials = POTENTIALS[kind](new, known, temperature)
    size, dtype = len(unpaired), type_of_all(unpaired, targets)
    unpaired, targets = unpaired.to(dtype), targets.to(dtype)

    def loss(block: slice, rows: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        labels = (new[block] @ known.T / temperature + potentials).softmax(dim=1).to(rows)
        return -(labels * (scale * (rows[block] @ targets.T)).log_softmax(dim=1)).sum() / size

    return sum_over_blocks(loss, size, len(targets), unpaired, targets, scalar(scale, targets, "logit_scale"))


def _directions(paired: Tensor, unpaired: Tensor) -> tuple[Tensor, Tensor]:
    unit = l2_normalize(double(torch.cat([paired, unpaired]).detach()))
    directions = l2_normalize(unit - unit.mean(dim=0))
    return directions[: len(paired)], directions[len(paired) :]


def _no_potentials(new: Tensor, known: Tensor, temperature: float) -> Tensor:
    return new.new_zeros(len(known))


def _transport_potentials(new: Tensor, known: Tensor, temperature: float) -> Tensor:
    # A row of a plan is a softmax of similarities / epsilon plus the columns' potentials.
    return transport_plan(new, known, temperature, _ITERATIONS, _TOLERANCE).v.log()


# What is added to the columns' logits of a label: (N,), from the unpaired and the paired directions.
POTENTIALS: Final[dict[str, Callable[[Tensor, Tensor, float], Tensor]]] = {
    "transport": _transport_potentials,
    "softmax": _no_potentials,
}
