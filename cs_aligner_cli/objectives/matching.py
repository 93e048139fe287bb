"""Image-text matching: is it a pair, or a hard negative? The loss of a matching head, and what it is trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cs_aligner_cli.common.errors import InputError


def matching_loss(positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the mean of -log p over pairs and of -log(1 - p) over negatives, all together, as a scalar tensor.

    ``positives`` (N,) and ``negatives`` (M,) are logits of "these two match", p their sigmoids: FLAVA's and ALBEF's
    image-text matching loss (Singh et al., CVPR 2022, arXiv 2112.04482; Li et al., NeurIPS 2021, arXiv 2107.07651, eq.
    4). Raises InputError where there are neither.
    """
    if not len(positives) + len(negatives):
        raise InputError("positives and negatives: there are neither")
    total = softplus(-positives).sum() + softplus(negatives).sum()
    return total / (len(positives) + len(negatives))


def hard_negatives(
    image: Tensor, text: Tensor, number: int, temperature: float, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return pairs that are none: rows (M,) of ``image`` and rows (M,) of ``text``, of unit rows (N, d) that are pairs.

    For every image ``number`` texts, then for every text as many images, are drawn with replacement in proportion to
    exp(cosine / ``temperature``) within the batch (ALBEF, section 3.2), by torch's global generator. What is of one of
    the (N,) ``groups`` is no negative of each other, nor is a pair; rows without any negative have none.
    """
    size = len(image)
    labels = torch.arange(size, device=image.device) if groups is None else groups
    logits = (image @ text.T / temperature).masked_fill(labels[:, None] == labels, -math.inf)
    own = torch.arange(size, device=image.device)
    pairs = []
    for scores in (logits, logits.T):
        some = own[(scores > -math.inf).any(dim=1)]
        drawn = torch.multinomial(scores[some].softmax(dim=1), number, replacement=True) if len(some) else some
        pairs.append((some.repeat_interleave(number), drawn.flatten()))
    (images, of_images), (texts, of_texts) = pairs
    return torch.cat([images, of_texts]), torch.cat([of_images, texts])
