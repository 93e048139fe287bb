"""The matching head: whether an image and a text match, judged by the tokens that trained towers make of both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.retrieval.scores import Scores
from cs_aligner_cli.towers.towers import Inputs, Towers
from cs_aligner_cli.towers.weights import FORMAT, described, read_tensors, save_tensors

# Pairs whose items go through the towers together, and numbers that the head's comparison may hold at once.
_PAIRS, _NUMBERS = 512, 2**24
# Where cosines begin as logits, and as the logits of attention.
_SCALE = 10.0


class Items(NamedTuple):
    """Items as towers give them: ``rows`` (N, d), and ``tokens`` (N, L, d) padded with NaN, all of unit length."""

    rows: Tensor
    tokens: Tensor

    def take(self, at: Tensor) -> Items:
        """Some of them, by their places."""
        return Items(self.rows[at], self.tokens[at])


class MatchingHead(nn.Module):
    """Logits of "these two match", from the tokens of both.

    Every token attends to those of the other item, by their cosines and a learned temperature: the towers have brought
    both into one space, so that no projection has to be learned for it (stacked cross attention, Lee et al., ECCV 2018,
    arXiv 1803.08024). A token u and what it found, v, are compared as [u, v, u v, u - v] (Chen et al., ACL 2017, arXiv
    1609.06038) by a perceptron, whose mean over the tokens of either item is what is judged. To that comes the cosine
    of the items, scaled; since the judgement begins at 0, so does reranking with the order of the search.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.log_attention = nn.Parameter(torch.tensor(_SCALE).log())
        self.compare = nn.Sequential(nn.Linear(4 * dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.judge = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.judge.weight)
        nn.init.constant_(self.judge.bias, -_SCALE / 2)
        self.log_scale = nn.Parameter(torch.tensor(_SCALE).log())
        self.dim, self.width = dim, width

    def forward(self, image: Items, text: Items) -> Tensor:
        """(N,) logits of N images with N texts, row by row."""
        found = torch.cat([self._compared(image.tokens, text.tokens), self._compared(text.tokens, image.tokens)], dim=1)
        cosines = (image.rows * text.rows).sum(dim=1)
        logits: Tensor = self.log_scale.exp() * cosines + self.judge(found).squeeze(1)
        return logits

    def _compared(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(N, width) the mean of every token's comparison with what it attends to."""
        mask, theirs = token_mask(tokens), token_mask(others)
        u, kept = tokens.masked_fill(~mask.unsqueeze(2), 0.0), others.masked_fill(~theirs.unsqueeze(2), 0.0)
        attention = (self.log_attention.exp() * u @ kept.mT).masked_fill(~theirs.unsqueeze(1), -math.inf)
        v = attention.softmax(dim=2) @ kept
        root = u.shape[2] ** 0.5  # unit rows have entries of size 1/sqrt(d); the first map sees entries of size 1
        compared: Tensor = self.compare(torch.cat([root * u, root * v, root**2 * u * v, root * (u - v)], dim=2))
        return compared.masked_fill(~mask.unsqueeze(2), 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that training changes."""
        return self.state_dict()

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``own_state``; RuntimeError if a name or a shape does not fit."""
        self.load_state_dict(dict(state))


def save_head(path: Path, head: MatchingHead) -> str:
    """Write a head as one self-describing safetensors file, atomically; return its checksum."""
    about = {"format": FORMAT, "dim": head.dim, "width": head.width}
    return save_tensors(path, head.own_state(), {"csalign_matching": json.dumps(about)})


def load_head(path: Path, checksum: str | None = None) -> MatchingHead:
    """The head in a file; raise InputError if it is none, or damaged, or not of the checksum, where one is given."""
    verify_file(path)
    tensors, about = read_tensors(path, checksum), described(path, "csalign_matching")
    try:
        head = MatchingHead(about["dim"], about["width"])
        head.load_own_state(tensors)
    except (KeyError, TypeError, RuntimeError):
        raise InputError(f"{path}: is no matching head of this csalign") from None
    return head


class Matcher:
    """The logits of images with texts, by their rows in the tables of a split."""

    def __init__(self, head: MatchingHead, towers: Towers, inputs: Inputs, split: Split) -> None:
        self._head, self._towers, self._inputs, self._split = head, towers.eval(), inputs, split
        self._device = towers.log_logit_scale.device

    @torch.inference_mode()
    def __call__(self, image: Ints, text: Ints) -> Scores:
        """(P,) the logits of pairs: image[p] with text[p]."""
        scores = np.empty(len(image), np.float32)
        for start in range(0, len(image), _PAIRS):
            block = slice(start, start + _PAIRS)
            (x, at_x), (y, at_y) = self._items("image", image[block]), self._items("text", text[block])
            longest = max(x.tokens.shape[1], y.tokens.shape[1])
            step = max(1, _NUMBERS // (4 * longest * self._head.dim))
            parts = zip(torch.split(at_x, step), torch.split(at_y, step), strict=True)
            logits = torch.cat([self._head(x.take(i), y.take(j)) for i, j in parts])
            scores[block] = logits.float().cpu().numpy()
        return scores

    def _items(self, modality: str, rows: Ints) -> tuple[Items, Tensor]:
        """What the towers make of the different ones of some rows, and the place of each row among those."""
        different, places = np.unique(rows, return_inverse=True)
        inputs = self._inputs(modality, self._split, different).to(self._device)
        return Items(*self._towers.forward_tokens(modality, inputs)), torch.from_numpy(places).to(self._device)
