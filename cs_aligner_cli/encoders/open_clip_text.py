"""Captions for open_clip's text towers: tokenised once, and computed no further than the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.transformer import TextTransformer, Transformer
from torch import Tensor, nn

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.encoders.inputs import PADDING
from cs_aligner_cli.encoders.tokens import end_of_text

# Captions whose token ids are kept: some 80 MB. Of more, each is tokenised again whenever it is read.
_KEPT = 2**18


class CaptionIds:
    """Captions to the token ids (B, L) of an open_clip tower.

    Where no token sees a later one and the tower pools at the end of the text, what follows the end changes nothing: L
    is then that of the longest caption of the batch, others padded with PADDING, instead of the context (77, mostly).
    """

    def __init__(self, tower: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.tower, self.tokenizer = tower, tokenizer
        self.cuts = _is_causal(tower)
        self._kept: dict[str, Ints] = {}
        if self.cuts:
            tower.register_forward_pre_hook(_without_padding)
            tower.get_submodule("transformer").register_forward_pre_hook(_with_mask_cut, with_kwargs=True)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) int64."""
        if not self.cuts:
            return self.tokenizer([*texts])
        new = [*dict.fromkeys(text for text in texts if text not in self._kept)]
        known = dict(zip(new, self._read(new), strict=True)) if new else {}
        if len(self._kept) + len(new) <= _KEPT:
            self._kept |= known
        rows = [known[text] if text in known else self._kept[text] for text in texts]
        padded = np.full((len(rows), max(map(len, rows))), PADDING, np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return torch.from_numpy(padded)

    def _read(self, texts: list[str]) -> list[Ints]:
        """The ids of each caption up to the end of its text."""
        ids = self.tokenizer(texts)
        ends = end_of_text(self.tower, ids)
        assert ends is not None
        return [row[: end + 1].copy() for row, end in zip(ids.numpy(), ends.tolist(), strict=True)]


def _is_causal(tower: Any) -> bool:
    """Whether a tower is one of open_clip's own in which no token sees a later one, pooled at the end of the text."""
    return (
        isinstance(tower, TextTransformer)
        and isinstance(tower.transformer, Transformer)
        and tower.attn_mask is not None
        and end_of_text(tower, torch.zeros(1, 1, dtype=torch.int64)) is not None
    )


def _without_padding(tower: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return args[0].masked_fill(args[0] == PADDING, tower.pad_id), *args[1:]


def _with_mask_cut(
    _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The mask for the positions that are there; the tower passes that of the whole context."""
    mask, length = kwargs.get("attn_mask"), args[0].shape[1]
    return args, kwargs if mask is None else {**kwargs, "attn_mask": mask[..., :length, :length]}
