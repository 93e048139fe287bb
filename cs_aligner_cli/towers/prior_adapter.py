"""The text adapter of the paper's text-to-image runs: a causal transformer of the shape of ECLIPSE's prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.towers import PriorAdapter as PriorSpec
from cs_aligner_cli.towers.token_adapters import Mapped, ReadsSequence

# What follows the tokens: the pooled embedding, a learned vector, and the learned token whose output is the result.
_FURTHER = 3


class PriorAdapter(ReadsSequence):
    """Tokens, pooled embedding and learned output token through causal pre-norm blocks; the last output is the
    embedding.

    The shape of ECLIPSE's prior (Patel et al., arXiv 2312.04655; diffusers' PriorTransformer without time): 33.14 M
    parameters at 768 dimensions, 34.19 M at 1,280, with 10 blocks of width 512. Where ECLIPSE's reads Gaussian noise,
    this one reads a learned vector, so that one caption has one embedding. The pooled embedding is taken from the
    last token, of which CLIP's is a linear map: the adapter's own map of it stands for both.
    """

    def __init__(self, spec: PriorSpec, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.max_tokens = spec.max_tokens
        self.enter, self.enter_pooled = nn.Linear(in_dim, spec.width), nn.Linear(in_dim, spec.width)
        self.learned, self.enter_learned = nn.Parameter(torch.randn(out_dim)), nn.Linear(out_dim, spec.width)
        self.output = nn.Parameter(torch.randn(spec.width) * 0.02)
        self.places = nn.Parameter(torch.randn(spec.max_tokens + _FURTHER, spec.width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                spec.width, spec.heads, 4 * spec.width, spec.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.project = nn.Linear(spec.width, out_dim)
        # Unit rows have entries of size 1/sqrt(d); this makes the maps see entries of size 1.
        self.input_scale = in_dim**0.5

    def forward(self, tokens: Tensor, mask: Tensor) -> Mapped:
        """(B, L, in_dim), zeros where ``mask`` (B, L) is False, to (B, out_dim) and (B, L, out_dim).

        Raises InputError for more tokens than the adapter has places for.
        """
        batch, length, _ = tokens.shape
        if length > self.max_tokens:
            raise InputError(
                f"train.text.adapter: prior has places for {self.max_tokens} tokens, but a caption has {length}",
                f"Set max_tokens: {length}, or cut captions in the encoder.",
            )
        unit = l2_normalize(tokens) * self.input_scale
        last = unit[torch.arange(batch, device=unit.device), mask.sum(dim=1) - 1]
        learned = self.enter_learned(self.learned).expand(batch, -1)
        further = torch.stack([self.enter_pooled(last), learned, self.output.expand(batch, -1)], dim=1)
        places = torch.cat([self.places[:length], self.places[-_FURTHER:]])
        x = torch.cat([self.enter(unit), further], dim=1) + places
        padding = torch.cat([~mask, mask.new_zeros(batch, _FURTHER)], dim=1)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=later, src_key_padding_mask=padding)
        x = self.project(self.norm(x))
        return Mapped(x[:, -1], x[:, :length], mask)
