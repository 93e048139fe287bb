"""Token sequences of different lengths: padded with rows of NaN to one tensor, or ragged, laid end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Ints

# What fills the rows of a padded sequence. No stored value and no embedding may be NaN, so one tensor says both what
# the tokens are and how many there are: it can be cut, moved and cached like any other.
PADDING_TOKEN = math.nan


def pad_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """``tokens`` (B, L, d) with NaN rows where ``mask`` (B, L) is False, in float32 or wider.

    NaN in a token itself becomes infinity: an error for whoever reads it, and not padding.
    """
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    finite = tokens.nan_to_num(math.inf, math.inf, -math.inf)
    return finite.masked_fill(~mask.unsqueeze(-1), PADDING_TOKEN)


def token_mask(padded: Tensor) -> Tensor:
    """(B, L) bool: which rows of padded sequences (B, L, d) are tokens."""
    return ~padded[..., 0].isnan()


def join_padded(parts: Sequence[Tensor]) -> Tensor:
    """Batches of padded sequences (B_i, L_i, d) as one (sum B_i, max L_i, d)."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([lengthened(part, longest) for part in parts])


def lengthened(part: Tensor, length: int) -> Tensor:
    """Padded sequences (B, L, d) as (B, length, d)."""
    return torch.nn.functional.pad(part, (0, 0, 0, length - part.shape[1]), value=PADDING_TOKEN)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences laid end to end: ``values`` (sum of lengths, d) and ``lengths`` (n,), each at least 1."""

    values: npt.NDArray[Any]
    lengths: Ints

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Ints:
        """(n,) where each sequence begins in ``values``."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths, np.int64)

    @classmethod
    def from_padded(cls, padded: npt.NDArray[np.float32]) -> Ragged:
        """The tokens of padded sequences (n, L, d)."""
        mask = ~np.isnan(padded[..., 0])
        return cls(padded[mask], mask.sum(1))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The sequences of several in one."""
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]))

    def take(self, rows: Ints) -> Ragged:
        """Some sequences, in the given order."""
        lengths = self.lengths[rows]
        if (length := self._one_length()) is not None:
            blocks = self.values.reshape(len(self), length, -1)
            return Ragged(blocks[rows].reshape(-1, blocks.shape[2]), lengths)
        return Ragged(self.values[np.repeat(self.starts[rows], lengths) + _counted(lengths)], lengths)

    def pad_into(self, padded: npt.NDArray[np.float32], rows: Ints | slice) -> None:
        """Write sequence i to ``padded[rows[i]]``, whose rows (L, d) are long enough and hold padding."""
        if (length := self._one_length()) is not None:
            padded[rows, :length] = self.values.reshape(len(self), length, -1)
            return
        places = np.arange(len(padded))[rows] if isinstance(rows, slice) else rows
        padded[np.repeat(places, self.lengths), _counted(self.lengths)] = self.values

    def _one_length(self) -> int | None:
        """The length of every sequence, where all have the same: a vision transformer's patches."""
        first = int(self.lengths[0]) if len(self) else None
        return first if first is not None and (self.lengths == first).all() else None


def _counted(lengths: Ints) -> Ints:
    """0, 1, ... anew for every length."""
    ends = np.cumsum(lengths)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths), np.int64)
