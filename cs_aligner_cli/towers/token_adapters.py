"""Towers that read tokens: adapters applied to every token, and a small transformer over all of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.recipe.towers import TransformerAdapter as TransformerSpec


class Mapped(NamedTuple):
    """What a token tower makes of B items: ``pooled`` (B, d), ``tokens`` (B, L, d) of which ``mask`` (B, L) says
    which count."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class ReadsSequence(nn.Module):
    """An adapter that reads all tokens of an item at once, with their mask, and gives ``Mapped``."""


class TransformerAdapter(ReadsSequence):
    """Pre-norm transformer blocks over L2-normalised tokens, between linear maps into their width and out of it.

    The form of ECLIPSE's prior (Patel et al., arXiv 2312.04655). No position embedding: an encoder's tokens know
    their places already. The embedding is the mean of the mapped tokens, or what a learned query attends to.
    """

    def __init__(self, spec: TransformerSpec, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(in_dim, spec.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                spec.width, spec.heads, 4 * spec.width, spec.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.project = nn.Linear(spec.width, out_dim)
        self.query, self.attend = None, None
        if spec.pooling == "query":
            self.query = nn.Parameter(torch.randn(1, 1, spec.width) / spec.width**0.5)
            self.attend = nn.MultiheadAttention(spec.width, spec.heads, batch_first=True)
        # Unit rows have entries of size 1/sqrt(d); this makes the first map see entries of size 1.
        self.input_scale = in_dim**0.5

    def forward(self, tokens: Tensor, mask: Tensor) -> Mapped:
        """(B, L, in_dim), zeros where ``mask`` (B, L) is False, to (B, out_dim) and (B, L, out_dim)."""
        x = self.enter(l2_normalize(tokens) * self.input_scale)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=~mask)
        x = self.norm(x)
        mapped = self.project(x)
        if self.attend is None or self.query is None:
            return Mapped(masked_mean(mapped, mask), mapped, mask)
        pooled, _ = self.attend(self.query.expand(len(x), -1, -1), x, x, key_padding_mask=~mask, need_weights=False)
        return Mapped(self.project(pooled.squeeze(1)), mapped, mask)


class TokenTower(nn.Module):
    """From padded tokens (``token_sequences.pad_tokens``), or a live encoder that gives them, to an embedding and
    tokens in the shared space."""

    def __init__(self, encoder: nn.Module | None, adapter: nn.Module) -> None:
        super().__init__()
        self.encoder, self.adapter = encoder, adapter

    def forward(self, inputs: Tensor) -> Tensor:
        """The embeddings (B, d), not normalised."""
        return self.mapped(inputs).pooled

    def mapped(self, inputs: Tensor) -> Mapped:
        """Embeddings and tokens; what stands in padding has no influence on either, nor on any gradient."""
        padded = inputs if self.encoder is None else self.encoder(inputs)
        mask = token_mask(padded)
        if isinstance(self.adapter, ReadsSequence):
            found: Mapped = self.adapter(padded.masked_fill(~mask.unsqueeze(2), 0.0), mask)
            return found
        # Only the tokens go through the adapter: most of a batch of short captions is padding.
        flat = self.adapter(padded[mask])
        tokens = flat.new_zeros(*mask.shape, flat.shape[1])
        tokens[mask] = flat
        return Mapped(masked_mean(tokens, mask), tokens, mask)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, d) mean of the tokens (B, L, d) that ``mask`` (B, L) keeps, in float32 or wider."""
    wide = tokens if tokens.dtype == torch.float64 else tokens.float()
    kept = wide.masked_fill(~mask.unsqueeze(2), 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True)
