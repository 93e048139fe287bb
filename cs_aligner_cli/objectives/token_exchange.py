"""Token exchange: items some of whose tokens are the other modality's are drawn to the items as they were."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Clouds, Logits
from cs_aligner_cli.objectives.pairwise import infonce
from cs_aligner_cli.objectives.terms import TermLoss
from cs_aligner_cli.objectives.tiles import slices

# Rows whose nearest ones are looked up at once.
_BLOCK = 1024


def token_exchange(
    tokens: Tensor,
    partners: Tensor,
    rows: Tensor,
    chosen: Tensor,
    logit_scale: float | Tensor,
    groups: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE between items with exchanged tokens and the items' own embeddings, as a scalar tensor.

    Every token of ``tokens`` (N, L, d) that ``chosen`` (N, L) marks gives way to the nearest token of the item's
    partner, ``partners`` (N, K, d), both unit tokens padded with NaN; the unit mean of what comes out is ranked against
    ``rows`` (N, d), both ways. It is VLMixer's cross-modal CutMix (Wang et al., ICML 2022, arXiv 2206.08919) on the
    tokens that towers give: there words give way to patches of the same concept before a joint encoder. The choice of
    the nearest token has no gradient. Rows of one of the (N,) ``groups`` are no negatives of each other. Raises
    InputError where the number of rows differs.
    """
    if not len(tokens) == len(partners) == len(rows) == len(chosen):
        raise InputError(
            f"tokens, partners, rows and chosen differ in number: {len(tokens)}, {len(partners)}, {len(rows)} and"
            f" {len(chosen)}"
        )
    mask, theirs = token_mask(tokens), token_mask(partners)
    own, other = tokens.masked_fill(~mask.unsqueeze(2), 0.0), partners.masked_fill(~theirs.unsqueeze(2), 0.0)
    cosines = (own.detach() @ other.detach().mT).masked_fill(~theirs.unsqueeze(1), -math.inf)
    nearest = other.gather(1, cosines.argmax(dim=2, keepdim=True).expand_as(own))
    mixed = torch.where((chosen & mask).unsqueeze(2), nearest, own)
    return infonce(l2_normalize(mixed.sum(dim=1)), rows, logit_scale, groups)


def on_token_exchange(share: float, partner: Literal["pair", "nearest"]) -> TermLoss:
    """``token_exchange`` of images with texts and of texts with images, their mean.

    Each token is chosen with probability ``share``, by torch's global generator of the CPU. Partners are the items of
    the pairs (``pair``), or for every item, paired or not, the one of the other modality whose embedding is nearest.
    """

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        first, second, labels = clouds.pairs[IMAGE_TEXT]
        values = []
        for own, other, own_pairs, other_pairs in ((*IMAGE_TEXT, first, second), (*IMAGE_TEXT[::-1], second, first)):
            tokens, rows, partners = clouds.tokens[own], clouds.rows[own], clouds.tokens[other]
            of, groups = other_pairs, labels
            if partner == "nearest":
                of = _nearest(rows.detach(), clouds.rows[other].detach())
                groups = _groups_of_all(len(rows), own_pairs, labels)
            elif own_pairs is not None:
                tokens, rows = tokens[own_pairs], rows[own_pairs]
            chosen = (torch.rand(tokens.shape[:2]) < share).to(rows.device)
            partners = partners if of is None else partners[of]
            values.append(token_exchange(tokens, partners, rows, chosen, logits.scale, groups))
        return torch.stack(values).mean()

    return term


def _nearest(rows: Tensor, others: Tensor) -> Tensor:
    """(N,) the row of ``others`` (M, d) with the largest inner product."""
    return torch.cat([(rows[block] @ others.T).argmax(dim=1) for block in slices(0, len(rows), _BLOCK)])


def _groups_of_all(size: int, paired: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """The pairs' groups, spread over all rows of a modality; a row in no pair is of a group of its own."""
    if labels is None:
        return None
    groups = torch.arange(size, device=labels.device) + labels.max() + 1
    groups[slice(len(labels)) if paired is None else paired] = labels
    return groups
