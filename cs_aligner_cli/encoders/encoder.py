"""One tower before training, of whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.hub import describe_encoder


@dataclass
class TokenReader:
    """How an encoder gives its tokens in place of one embedding.

    ``load(rows)`` is as ``Encoder.load``; ``module`` maps its input to (B, L, dim) float32 tokens, padded with NaN
    (``token_sequences.pad_tokens``). ``about`` says in words which tokens they are, for the store's identity.
    """

    module: nn.Module
    load: Callable[[pd.DataFrame], Tensor]
    example: Callable[[], Tensor] = field(repr=False)
    about: str

    @cached_property
    def dim(self) -> int:
        """The dimension of a token, by trying an input."""
        parameter = next(self.module.parameters(), torch.empty(0))
        with torch.inference_mode():
            return int(self.module(self.example().to(parameter.device)).shape[2])


@dataclass(frozen=True)
class CaptionLimit:
    """The most tokens that a text tower reads, ``tokens``, and the function that counts those of captions; special
    tokens and the prompt's are among both."""

    tokens: int
    lengths: Callable[[Sequence[str]], list[int]]


@dataclass
class Encoder:
    """One tower.

    ``load(rows)`` turns rows of the modality's table into a model input (a CPU tensor, first axis the
    items); ``module`` maps that input to (B, dim) embeddings, not normalised; ``identity`` says exactly
    what this tower is; ``backbone`` is the library's own model inside ``module``, as its users know it;
    ``clip`` is the whole open_clip model that the tower belongs to, None for other kinds; ``tokens`` reads its tokens,
    None where it has none; ``caption_limit`` counts what it would cut, None where nothing is known of that.
    """

    modality: str
    dim: int
    module: nn.Module
    load: Callable[[pd.DataFrame], Tensor]
    identity: dict[str, Any]
    backbone: Any = field(repr=False)
    clip: Any = field(default=None, repr=False)
    tokens: TokenReader | None = None
    caption_limit: CaptionLimit | None = None

    def token_reader(self, key: str) -> TokenReader:
        """``tokens``; InputError, naming the recipe's ``key`` that asks for them, where the encoder has none."""
        if self.tokens is None:
            hint = "Name a transformer, or a manifest of kind embeddings with token features (docs/tokens.md)."
            raise InputError(
                f"{key}: tokens, but encoders.{self.modality} ({describe_encoder(self.identity)}) gives none", hint
            )
        return self.tokens

    @property
    def reads_captions(self) -> bool:
        """Whether the input of a row is its caption and nothing else."""
        return self.modality == "text" and self.identity["kind"] != "features"
