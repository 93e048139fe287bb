"""Image-text matching: is it a pair, or a hard negative? The loss of a matching head, and what it is trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cs_aligner_cli.common.errors import InputError

# Similarities that are in memory at once while negatives are drawn.
_ENTRIES = 2**19


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
    exp(cosine / ``temperature``) within the batch (ALBEF, section 3.2), by torch's global generator, a block of rows at
    a time. What is of one of the (N,) ``groups`` is no negative of each other, nor is a pair; rows without any negative
    have none.
    """
    every = torch.arange(len(image), device=image.device)
    labels = every if groups is None else groups
    pairs = []
    for ours, theirs in ((image, text), (text, image)):
        blocks = []
        for own in torch.split(every, max(1, _ENTRIES // max(1, len(image)))):
            logits = (ours[own] @ theirs.T / temperature).masked_fill(labels[own, None] == labels, -math.inf)
            having = (logits > -math.inf).any(dim=1)
            some, weights = own[having], logits[having].softmax(dim=1)
            drawn = torch.multinomial(weights, number, replacement=True) if len(some) else some
            blocks.append((some.repeat_interleave(number), drawn.flatten()))
        pairs.append([torch.cat(part) for part in zip(*blocks, strict=True)])
    (images, of_images), (texts, of_texts) = pairs
    return torch.cat([images, of_texts]), torch.cat([of_images, texts])
