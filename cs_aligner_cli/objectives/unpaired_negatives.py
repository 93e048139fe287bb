"""Pairwise terms in which unpaired rows are further negatives: rectangular InfoNCE and SigLIP."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, same_width
from cs_aligner_cli.objectives.pairwise import Groups, checked_pairs, infonce, scalar, siglip
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks
from cs_aligner_cli.objectives.tiles import hide_same_group


def infonce_with_negatives(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    groups: Groups | None = None,
    unpaired_image: ArrayLike | None = None,
    unpaired_text: ArrayLike | None = None,
) -> Tensor:
    """Return ``infonce`` of the pairs, whose softmaxes also run over unpaired rows, as a scalar tensor.

    Image i is told from the texts of the other pairs and the ``unpaired_text`` (V, d), text i from the images of the
    other pairs and the ``unpaired_image`` (U, d): N x (N + V) and N x (N + U) logits (the queue of MoCo, arXiv
    1911.05722, filled with items of no pair; for few pairs in SOTAlign, arXiv 2602.23353). Nothing is asked of unpaired
    rows among themselves. Without unpaired rows it is ``infonce``, whose arguments and errors it has; memory is linear
    in the rows.
    """
    if unpaired_image is None and unpaired_text is None:
        return infonce(image, text, logit_scale, groups)
    x, y, scale, labels = checked_pairs(image, text, logit_scale, groups)

    def loss(block: slice, queries: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
        logits = scale * (queries[block] @ candidates.T)
        hide_same_group(logits[:, : len(x)], labels, block, slice(0, len(x)))  # columns beyond the pairs have no group
        own = torch.arange(block.start, block.stop, device=logits.device)
        return cross_entropy(logits, own, reduction="sum") / (2 * len(x))

    total = x.new_zeros(())
    for queries, partners, further in ((x, y, unpaired_text), (y, x, unpaired_image)):
        candidates = partners if further is None else torch.cat([partners, _further(further, partners)])
        total = total + sum_over_blocks(loss, len(x), len(candidates), queries, candidates, scale)
    return total


def siglip_with_negatives(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    groups: Groups | None = None,
    unpaired_image: ArrayLike | None = None,
    unpaired_text: ArrayLike | None = None,
) -> Tensor:
    """Return ``siglip`` of the pairs plus the same sigmoid loss of paired with unpaired rows, none of them a pair.

    ``siglip + 1/N [sum_iv softplus(z(image_i, unpaired_text_v)) + sum_ju softplus(z(unpaired_image_u, text_j))]`` with
    ``z(a, b) = logit_scale a . b + logit_bias`` (SOTAlign, arXiv 2602.23353, has this form), as a scalar tensor.
    Arguments, memory and errors are those of ``infonce_with_negatives``.
    """
    total = siglip(image, text, logit_scale, logit_bias, groups)
    x, y, scale, _ = checked_pairs(image, text, logit_scale, None)
    bias = scalar(logit_bias, x, "logit_bias")

    def loss(block: slice, queries: Tensor, further: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return softplus(scale * (queries[block] @ further.T) + bias).sum() / len(x)

    for queries, further in ((x, unpaired_text), (y, unpaired_image)):
        if further is not None:
            rows = _further(further, queries)
            total = total + sum_over_blocks(loss, len(x), len(rows), queries, rows, scale, bias)
    return total


def _further(rows: ArrayLike, like: Tensor) -> Tensor:
    unpaired = as_rows(rows, "unpaired")
    same_width(unpaired, like)
    return unpaired.to(like)
