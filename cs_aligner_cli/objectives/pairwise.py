"""Objectives on pairs: which text belongs to which image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, refuse_masked, same_width, type_of_all, warn_unless_unit
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.gram import InfoNceLoss, LogMeanKernel
from cs_aligner_cli.objectives.kernels import Gaussian
from cs_aligner_cli.objectives.pairsums import row_sums, wide
from cs_aligner_cli.objectives.tiles import Dots, TiledRows, hide_same_group

Groups: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.str_] | Tensor | Sequence[str] | Sequence[int]


def infonce(image: ArrayLike, text: ArrayLike, logit_scale: float | Tensor, groups: Groups | None = None) -> Tensor:
    """Return the symmetric InfoNCE loss of the pairs (image_i, text_i) as a scalar tensor.

    The mean of the cross-entropies of image against texts and of text against images, with logits
    ``logit_scale * image @ text.T`` (Radford et al., arXiv 2103.00020; equal to open_clip's ClipLoss).

    image and text are (N, d) and used as given: normalise them first for cosine logits. ``logit_scale`` is
    the multiplicative scale itself (1 / temperature), a float or a tensor of one element. ``groups`` (N,) are integers
    or strings: rows of one group, such as the captions of one image or equal captions, are no negatives of each other.

    Computed tile by tile, in memory linear in N, in float32, or in float64 where image or text is or has
    entries beyond 1e9 (``type_of_all``), whatever the autocast.

    Raises InputError if the shapes do not fit together, the scale is not one number or groups are not N integers or
    strings; warns (NotUnitRowsWarning) where rows are not of unit length. Of one pair it is 0 up to rounding.
    """
    return InfoNceLoss.apply(*checked_pairs(image, text, logit_scale, groups))  # type: ignore[no-any-return]


def siglip(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    groups: Groups | None = None,
) -> Tensor:
    """Return the sigmoid loss of the pairs (image_i, text_i) as a scalar tensor.

    ``-1/N sum_ij log sigmoid(z_ij (logit_scale image_i . text_j + logit_bias))`` with z_ij = 1 for pairs and -1 for
    all others (Zhai et al., SigLIP, arXiv 2303.15343; equal to open_clip's SigLipLoss). Arguments, precision and
    errors are those of ``infonce``; pairs of one group that are not (i, i) are left out.
    """
    image, text = _pairs(image, text)
    scalars = scalar(logit_scale, image, "logit_scale"), scalar(logit_bias, image, "logit_bias")
    return _SigLip.apply(image, text, *scalars, _checked(groups, image))  # type: ignore[no-any-return]


def align_uniform(image: ArrayLike, text: ArrayLike, uniformity_weight: float = 1.0, t: float = 2.0) -> Tensor:
    """Return alignment plus intra-modal uniformity, the decoupled form of a contrastive loss, as a scalar tensor.

    ``mean_i ||x_i - y_i||^2 + uniformity_weight * (U(x) + U(y)) / 2`` with
    ``U(x) = log mean_{i != j} exp(-t ||x_i - x_j||^2)`` (Wang & Isola, ICML 2020, with alpha = 2; across modalities
    alignment alone acts, so nothing pushes the two clouds apart). image and text are (N, d) with N >= 2; precision
    and memory as in ``infonce``. Raises InputError if they do not fit together, or unless t > 0.
    """
    image, text = _pairs(image, text)
    if len(image) < 2:
        raise InputError("uniformity needs at least 2 pairs, got 1")
    if not (math.isfinite(t) and t > 0):
        raise InputError(f"t: expected a number above 0, got {t:g}")
    kernel = Gaussian((1 / math.sqrt(2 * t),))
    uniformity = LogMeanKernel.apply(image, kernel) + LogMeanKernel.apply(text, kernel)
    return _squared_distance(image, text) + uniformity_weight * uniformity / 2  # type: ignore[no-any-return]


def l2_contrastive(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    groups: Groups | None = None,
    contrastive_weight: float = 0.2,
) -> Tensor:
    """Return the squared distance within pairs plus a contrastive term, as a scalar tensor.

    ``mean_i ||x_i - y_i||^2 + contrastive_weight * infonce``: the objective of ECLIPSE's prior (Patel et al., arXiv
    2312.04655, with weight 0.2), which regresses one embedding on the other; here InfoNCE counts both directions.
    Arguments and errors are those of ``infonce``.
    """
    image, text = _pairs(image, text)
    return _squared_distance(image, text) + contrastive_weight * infonce(image, text, logit_scale, groups)


def _squared_distance(image: Tensor, text: Tensor) -> Tensor:
    return (image - text).square().sum(dim=1).mean()


def checked_pairs(
    image: ArrayLike, text: ArrayLike, logit_scale: float | Tensor, groups: Groups | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments of ``infonce`` as tensors of one dtype and device; its errors."""
    image, text = _pairs(image, text)
    warn_unless_unit(image, text, unit_of="the logit scale of cosines", depth=3)
    return image, text, scalar(logit_scale, image, "logit_scale"), _checked(groups, image)


def rows_of_pairs(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """Both as tensors, row by row a pair; InputError unless they are."""
    image, text = as_rows(image, "image"), as_rows(text, "text")
    same_width(image, text)
    if len(image) != len(text):
        raise InputError(f"image and text rows are not pairs: {len(image)} against {len(text)}")
    return image, text


def _pairs(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
    """``rows_of_pairs``, of one dtype."""
    image, text = rows_of_pairs(image, text)
    dtype = type_of_all(image, text)
    return image.to(dtype), text.to(dtype)


def scalar(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """A number or a tensor of one element as a 0-d tensor of the rows' dtype and device; InputError for any other."""
    try:
        found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: expected one number, got {value!r}") from None
    if found.numel() != 1:
        raise InputError(f"{name}: expected one number, got {tuple(found.shape)}")
    return found.reshape(())


def _checked(groups: Groups | None, image: Tensor) -> Tensor | None:
    if groups is None:
        return None
    if not isinstance(groups, Tensor):
        refuse_masked(groups, "groups")
        given = np.asarray(groups)
        if given.dtype.kind in "OU" and all(isinstance(name, str) for name in given.flat):
            groups = np.unique(given.astype(str), return_inverse=True)[1].reshape(given.shape)
        elif given.dtype.kind not in "iu":
            raise InputError(f"groups: expected {len(image)} integers or strings, got {given.dtype}")
    labels = torch.as_tensor(groups, device=image.device)
    if labels.shape != (len(image),) or labels.is_floating_point() or labels.dtype == torch.bool:
        found = f"shape {tuple(labels.shape)} of {labels.dtype}"
        raise InputError(f"groups: expected {len(image)} integers or strings, got {found}")
    return labels


class _SigLip(torch.autograd.Function):
    """One pass over tiles: the loss has no normaliser, so value and gradients come together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, groups: Tensor | None) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            rows = TiledRows(x, "fp32"), TiledRows(y, "fp32")
            dx, dy = torch.zeros_like(x), torch.zeros_like(y)
            loss, d_scale, d_bias = (x.new_zeros((), dtype=wide(x)) for _ in range(3))
            for i, j, dots in Dots(rows[0], keep=False).tiles(rows[1]):
                logits = hide_same_group(scale * dots + bias, groups, i, j)
                loss += row_sums(softplus(logits))
                weights = logits.sigmoid_()
                d_bias += row_sums(weights)
                rows[1].add_weighted(weights, j, dx[i])
                rows[0].add_weighted(weights.T, i, dy[j])
                d_scale += row_sums(weights.mul_(dots))
            # Of a pair, -log sigmoid(z) = softplus(z) - z.
            paired = row_sums(x * y)
            loss = (loss - scale * paired) / len(x) - bias
            ctx.grads = (
                dx.sub_(y).mul_(scale / len(x)),
                dy.sub_(x).mul_(scale / len(x)),
                ((d_scale - paired) / len(x)).to(scale.dtype),
                (d_bias / len(x) - 1).to(bias.dtype),
            )
        return loss.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(upstream * grad for grad in ctx.grads), None
