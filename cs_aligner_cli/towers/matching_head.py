"""The matching head: whether an image and a text match, judged by the tokens that trained towers make of both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import join_padded, token_mask
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.retrieval.scores import Scores
from cs_aligner_cli.runs.layout import HEAD_FILE, Layout
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers.embedder import pick_precision
from cs_aligner_cli.towers.towers import Inputs, Towers
from cs_aligner_cli.towers.weights import FORMAT, described, load_towers, read_tensors, save_tensors

# Items that go through a tower together, numbers that the head's comparison may hold at once, and numbers of tokens of
# one modality that are kept while the other's pass by.
_ITEMS, _NUMBERS, _KEPT = 256, 2**24, 2**26
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
        """(P,) the logits of pairs: image[p] with text[p].

        Every item of the modality that has fewer goes through its tower once, and is kept; those of the other one once,
        or once for every ``_KEPT`` numbers that are kept.
        """
        rows, scores = {"image": image, "text": text}, np.empty(len(image), np.float32)
        fewer, other = sorted(rows, key=lambda modality: len(np.unique(rows[modality])))
        different, place = np.unique(rows[fewer], return_inverse=True)
        for first, kept in self._kept(fewer, different):
            pairs = np.flatnonzero((place >= first) & (place < first + len(kept.rows)))
            pairs = pairs[np.argsort(rows[other][pairs], kind="stable")]
            passing, starts = np.unique(rows[other][pairs], return_index=True)
            for start in range(0, len(passing), _ITEMS):
                some = passing[start : start + _ITEMS]
                block = pairs[starts[start] : starts[start + _ITEMS] if start + _ITEMS < len(starts) else None]
                found = {
                    fewer: (kept, place[block] - first),
                    other: (self.items(other, some), np.searchsorted(some, rows[other][block])),
                }
                scores[block] = self._logits(*found["image"], *found["text"])
        return scores

    @torch.inference_mode()
    def of_item(self, item: Items, modality: str, others: Ints) -> Scores:
        """(K,) the logits of one item of a modality with rows of the other one, from its ``items`` or ``new_items``."""
        other = "text" if modality == "image" else "image"
        scores = np.empty(len(others), np.float32)
        for start in range(0, len(others), _ITEMS):
            some = others[start : start + _ITEMS]
            pairs = {
                modality: (item, np.zeros(len(some), np.int64)),
                other: (self.items(other, some), np.arange(len(some))),
            }
            scores[start : start + _ITEMS] = self._logits(*pairs["image"], *pairs["text"])
        return scores

    def _logits(self, x: Items, at_x: Ints, y: Items, at_y: Ints) -> Scores:
        """(P,) the logits of pairs, by the places of their items."""
        longest = max(x.tokens.shape[1], y.tokens.shape[1])
        step = max(1, _NUMBERS // (4 * longest * self._head.dim))
        places = (torch.split(torch.from_numpy(at).to(self._device), step) for at in (at_x, at_y))
        logits = torch.cat([self._head(x.take(i), y.take(j)) for i, j in zip(*places, strict=True)])
        found: Scores = logits.float().cpu().numpy()
        return found

    def _kept(self, modality: str, rows: Ints) -> Iterator[tuple[int, Items]]:
        """Consecutive parts of some rows, as large as memory allows: the place of the first, and its items."""
        parts: list[Items] = []
        first = 0
        for start in range(0, len(rows), _ITEMS):
            parts.append(self.items(modality, rows[start : start + _ITEMS]))
            end = min(start + _ITEMS, len(rows))
            if end == len(rows) or sum(part.tokens.numel() for part in parts) >= _KEPT:
                yield first, Items(torch.cat([p.rows for p in parts]), join_padded([p.tokens for p in parts]))
                parts, first = [], end

    def items(self, modality: str, rows: Ints) -> Items:
        """What the towers make of some rows."""
        return self.new_items(modality, self._inputs(modality, self._split, rows))

    @torch.inference_mode()
    def new_items(self, modality: str, tokens: Tensor) -> Items:
        """What they make of padded tokens (B, L, d) as the encoder gives them, of items that are in no split."""
        return Items(*self._towers.forward_tokens(modality, tokens.to(self._device)))


def load_matcher(layout: Layout, store: str, split: Split, device: str) -> Matcher:
    """What judges pairs of a split by the head of a trained store, whose towers it reads, too."""
    tokens = TokenStore(layout.tokens(split.name).path)
    dims = {modality: tokens.array(modality).dim for modality in tokens.identity}
    # As the head was trained and validated, and the store was made.
    precision = pick_precision(layout.variants[store].precision, torch.device(device))
    towers = load_towers(layout.weights(store), {}, dims, precision=precision).to(device)
    head = load_head(layout.matching(store).path / HEAD_FILE).to(device)
    return Matcher(head, towers, Inputs(towers.plans, {}, {}, {split.name: tokens}), split)
