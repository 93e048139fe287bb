"""What the terms of one step see: rows of every modality, which of them are pairs, memory, tokens, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.row_exchange import ONE_PROCESS, RowExchange, Shares, even_counts, own_slice
from cs_aligner_cli.common.token_sequences import lengthened

Edge: TypeAlias = tuple[str, str]
IMAGE_TEXT: Edge = ("image", "text")


class Logits(NamedTuple):
    """What turns cosines into logits: ``scale * cosine + bias``, both 0-d tensors."""

    scale: Tensor
    bias: Tensor


class Pairs(NamedTuple):
    """Which rows of two modalities belong together: row ``first[p]`` and row ``second[p]``, (P,) each.

    None stands for all rows in order. Pairs of one of the (P,) ``groups`` are no negatives of each other.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Clouds:
    """The embeddings that the terms of one step see.

    ``rows``: modality to (N, d), N being any number for each. ``pairs``: for every edge, which rows are pairs; what
    is in no pair is seen by no pairwise term, unless as a negative. ``memory``: modality to (K, d) further rows that
    divergences see, and that no gradient reaches; ``memory_pairs`` which of these were pairs: for an edge, (Q, 2) row
    numbers. ``tokens``: modality to the tokens (N, L, d) behind the rows, padded with NaN
    (``token_sequences.pad_tokens``), where a term sees them. ``features``: modality to what the rows (N, D) were before
    the map that is trained, where a term sees it; ``memory_features`` those of the memory's rows.

    Where several ranks share a batch, ``rows``, ``tokens`` and ``features`` are this rank's of ``exchange``, one
    after another as in the batch, ``counts[modality]`` how many each rank has; pairs and memory are of the whole.
    ``shared_pairs`` and ``shared_clouds`` give sums over pairs their part; all else is for clouds that are ``whole``.
    """

    rows: Mapping[str, Tensor]
    pairs: Mapping[Edge, Pairs]
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    memory_features: Mapping[str, Tensor] = field(default_factory=dict)
    memory_pairs: Mapping[Edge, Tensor] = field(default_factory=dict)
    exchange: RowExchange = ONE_PROCESS
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of_pairs(cls, image: Tensor, text: Tensor, groups: Tensor | None = None) -> Clouds:
        """Images (N, d) and texts (N, d), row by row a pair."""
        return cls({"image": image, "text": text}, {IMAGE_TEXT: Pairs(groups=groups)})

    def pair(self, edge: Edge) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of one edge, row by row (P, d) each, and their groups."""
        first, second, groups = self.pairs[edge]
        x, y = (self.rows[modality] for modality in edge)
        return x if first is None else x[first], y if second is None else y[second], groups

    def memory_pair(self, edge: Edge) -> tuple[Tensor, Tensor] | None:
        """The pairs of one edge among the memory's rows, row by row (Q, d) each; None where there are none."""
        places = self.memory_pairs.get(edge)
        if places is None or not len(places):
            return None
        return self.memory[edge[0]][places[:, 0]], self.memory[edge[1]][places[:, 1]]

    def cloud(self, modality: str) -> Tensor:
        """All rows of a modality, its memory at the end."""
        return _joined(self.rows[modality], self.memory.get(modality))

    def feature_cloud(self, modality: str) -> Tensor:
        """The features of ``cloud``, row by row."""
        return _joined(self.features[modality], self.memory_features.get(modality))

    def unpaired(self, edge: Edge) -> tuple[Tensor | None, Tensor | None]:
        """The rows of both modalities that are in no pair of an edge, None where there are none."""
        return tuple(_without(self.rows[m], paired) for m, paired in zip(edge, self.pairs[edge][:2], strict=True))  # type: ignore[return-value]

    @cached_property
    def whole(self) -> Clouds:
        """The clouds with all ranks' rows, without graph."""
        if self.exchange.size == 1:
            return self
        gather = self.exchange.all_gather_rows
        tokens = {}
        for m, part in self.tokens.items():
            longest = int(self.exchange.all_reduce(part.new_tensor(part.shape[1]), "max"))
            tokens[m] = gather(lengthened(part, longest), self.counts[m])
        return replace(
            self,
            rows={m: gather(rows, self.counts[m]) for m, rows in self.rows.items()},
            tokens=tokens,
            features={m: gather(features, self.counts[m]) for m, features in self.features.items()},
            exchange=ONE_PROCESS,
        )

    def own(self, of_all: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What belongs to this rank's rows, of something for all rows of every modality."""
        if self.exchange.size == 1:
            return dict(of_all)
        return {m: values[own_slice(self.counts[m], self.exchange.rank)] for m, values in of_all.items()}

    def shared_pairs(self, edge: Edge) -> tuple[Tensor, Tensor, Tensor | None, Shares]:
        """This rank's part of ``pair``: its pairs' rows (P, d) of both, wherever they lie, and the groups of all."""
        if self.exchange.size == 1:
            x, y, groups = self.pair(edge)
            return x, y, groups, Shares.alone(len(x), len(y))
        first, second, groups = self.pairs[edge]
        if first is None and second is None:
            counts = self.counts[edge[0]]
            return self.rows[edge[0]], self.rows[edge[1]], groups, Shares(self.exchange, counts, counts)
        pairs = next(
            sum(self.counts[m]) if at is None else len(at) for m, at in zip(edge, (first, second), strict=True)
        )
        counts = even_counts(pairs, self.exchange.size)
        own = own_slice(counts, self.exchange.rank)
        places = [torch.arange(pairs) if at is None else at for at in (first, second)]
        x, y = (
            _Taken.apply(self.rows[m], places[i][own].to(self.rows[m].device), self.counts[m], self.exchange)
            for i, m in enumerate(edge)
        )
        return x, y, groups, Shares(self.exchange, counts, counts)

    def shared_clouds(self, edge: Edge) -> tuple[Tensor, Tensor, Shares]:
        """This rank's part of ``cloud`` of both modalities: its own rows, and an even part of the memory's."""
        found, counts = [], []
        for m in edge:
            rows, past = self.rows[m], self.memory.get(m)
            of_past = even_counts(0 if past is None else len(past), self.exchange.size)
            found.append(_joined(rows, None if past is None else past[own_slice(of_past, self.exchange.rank)]))
            counts.append([a + b for a, b in zip(self._counts(m), of_past, strict=True)])
        return found[0], found[1], Shares(self.exchange, *counts)

    def evenly_spaced(self, sample: int) -> list[Tensor]:
        """At most ``sample`` evenly spaced rows of all clouds laid end to end, by modality."""
        counts = {m: self._counts(m) for m in self.rows}
        ends = {m: sum(counts[m]) + len(self.memory.get(m, ())) for m in self.rows}
        total, start, found = sum(ends.values()), 0, []
        kept = torch.linspace(0, total - 1, min(total, sample), dtype=torch.float64).round().long()
        for m, rows in self.rows.items():
            here = kept[(kept >= start) & (kept < start + ends[m])] - start
            places = [own_slice(counts[m], rank) for rank in range(self.exchange.size)]
            of_rank = [here[(here >= place.start) & (here < place.stop)] - place.start for place in places]
            taken = rows[of_rank[self.exchange.rank].to(rows.device)]
            taken = self.exchange.all_gather_rows(taken, [len(each) for each in of_rank])
            past = here[here >= sum(counts[m])] - sum(counts[m])
            found.append(_joined(taken, self.memory[m][past.to(rows.device)] if len(past) else None))
            start += ends[m]
        return found

    def _counts(self, modality: str) -> Sequence[int]:
        return self.counts[modality] if self.exchange.size > 1 else [len(self.rows[modality])]

    @property
    def only_pairs(self) -> bool:
        """Whether there are just images and texts, row by row a pair, so that both kinds of terms see the same."""
        pairs = self.pairs.get(IMAGE_TEXT, Pairs())
        return len(self.rows) == 2 and pairs.first is pairs.second is None and not self.memory


class _Taken(torch.autograd.Function):
    """The rows of ``index`` (P,) among those of all ranks, of which ``rows`` are this one's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, counts: Sequence[int], exchange: RowExchange) -> Tensor:
        ctx.taken = index, counts, exchange
        ctx.rows = rows.detach()
        found = rows.new_empty((len(index), *rows.shape[1:]))
        for rank, block, _ in exchange.blocks(ctx.rows, counts):
            here, place = _of_block(index, counts, rank)
            found[here] = block[place]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        index, counts, exchange = ctx.taken
        grads = torch.zeros_like(ctx.rows)
        for rank, _, grad in exchange.blocks(ctx.rows, counts, grads):
            here, place = _of_block(index, counts, rank)
            grad.index_add_(0, place, upstream[here])
        return grads, None, None, None


def _of_block(index: Tensor, counts: Sequence[int], rank: int) -> tuple[Tensor, Tensor]:
    """Which of the rows of ``index`` a rank holds, and where among its own."""
    own = own_slice(counts, rank)
    here = (index >= own.start) & (index < own.stop)
    return here, index[here] - own.start


def _joined(rows: Tensor, past: Tensor | None) -> Tensor:
    return rows if past is None else torch.cat([rows, past.to(rows)])


def _without(rows: Tensor, paired: Tensor | None) -> Tensor | None:
    if paired is None:
        return None
    others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    others[paired] = False
    return rows[others] if others.any() else None
