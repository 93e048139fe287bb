"""Alignment at the level of tokens and of groups of tokens: late interaction between pairs, clouds of groups."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import pad_tokens, token_mask
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Clouds, Logits
from cs_aligner_cli.objectives.pairwise import scalar
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks
from cs_aligner_cli.objectives.terms import TermLoss
from cs_aligner_cli.objectives.tiles import hide_same_group


def group_tokens(tokens: Tensor, size: int) -> Tensor:
    """Unit means (B, ceil(L / size), d) of every ``size`` places of padded sequences (B, L, d), padded with NaN.

    A group in which no token stands is padding; ``size`` 1 gives the tokens themselves, scaled to unit length.
    """
    mask = token_mask(tokens)
    missing = -tokens.shape[1] % size
    kept = torch.nn.functional.pad(tokens.masked_fill(~mask.unsqueeze(2), 0.0), (0, 0, 0, missing))
    shape = len(tokens), -1, size
    groups = kept.reshape(*shape, tokens.shape[2]).sum(dim=2)  # the length of a mean is taken away in any case
    stands = torch.nn.functional.pad(mask, (0, missing)).reshape(shape).any(dim=2)
    return pad_tokens(l2_normalize(groups), stands)


def late_interaction_infonce(
    image: Tensor, text: Tensor, logit_scale: float | Tensor, groups: Tensor | None = None
) -> Tensor:
    """Return InfoNCE of pairs of token sequences as a scalar tensor, their similarity being FILIP's.

    image (N, L, d) and text (N, K, d) are unit tokens padded with NaN, row by row a pair. Image i is as similar to text
    j as its tokens u are to the nearest token v of j, ``mean_u max_v u . v``, and text j to image i as its tokens to
    the nearest of i (Yao et al., ICLR 2022, arXiv 2111.07783, eq. 5 and 6): two cross-entropies of ``logit_scale``
    times these, and their mean. Pairs of one of the (N,) ``groups`` are no negatives of each other. Computed for
    blocks of rows: memory is linear in N. Raises InputError for sequences that are not pairs or hold no token.
    """
    masks = [token_mask(tokens) for tokens in (image, text)]
    if image.shape[0] != text.shape[0] or image.shape[2] != text.shape[2]:
        raise InputError(f"image {tuple(image.shape)} and text {tuple(text.shape)} differ in number or dimension")
    if not all(bool(mask.any(dim=1).all()) for mask in masks):
        raise InputError("a sequence has no token")
    size = len(image)
    x, y = (z.masked_fill(~mask.unsqueeze(2), 0.0) for z, mask in zip((image, text), masks, strict=True))
    scale = scalar(logit_scale, x, "logit_scale")
    total = x.new_zeros(())
    for own, other, own_mask, other_mask in ((x, y, *masks), (y, x, *reversed(masks))):

        def loss(
            block: slice,
            own: Tensor,
            other: Tensor,
            scale: Tensor,
            mine: Tensor = own_mask,
            theirs: Tensor = other_mask,
        ) -> Tensor:
            cosines = torch.einsum("bld,nkd->blnk", own[block], other).masked_fill(~theirs, -math.inf)
            nearest = cosines.amax(dim=3).masked_fill(~mine[block].unsqueeze(2), 0.0)
            logits = scale * nearest.sum(dim=1) / mine[block].sum(dim=1, keepdim=True)
            hide_same_group(logits, groups, block, slice(0, size))
            own_place = torch.arange(block.start, block.stop, device=logits.device)
            return torch.nn.functional.cross_entropy(logits, own_place, reduction="sum") / (2 * size)

        columns = other.shape[0] * other.shape[1] * own.shape[1]
        total = total + sum_over_blocks(loss, size, columns, own, other, scale)
    return total


def on_level(size: int) -> TermLoss:
    """``late_interaction_infonce`` of the pairs' tokens in groups of ``size``."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        first, second, labels = clouds.pairs[IMAGE_TEXT]
        x, y = (group_tokens(clouds.tokens[modality], size) for modality in IMAGE_TEXT)
        x, y = x if first is None else x[first], y if second is None else y[second]
        return late_interaction_infonce(x, y, logits.scale, labels)

    return term


def on_group_clouds(divergence: TermLoss, size: int) -> TermLoss:
    """A divergence of clouds, whose rows are all tokens of a step's images and texts, in groups of ``size``."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        groups = {modality: group_tokens(clouds.tokens[modality], size) for modality in IMAGE_TEXT}
        rows = {modality: found[token_mask(found)] for modality, found in groups.items()}
        return divergence(replace(clouds, rows=rows, memory={}), logits)

    return term
