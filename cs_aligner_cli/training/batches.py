"""What each training step is taken on: pairs and unpaired items, as the towers' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.data.text_groups import linked_groups, text_groups
from cs_aligner_cli.encoders.inputs import joined
from cs_aligner_cli.objectives import Pairs
from cs_aligner_cli.objectives.clouds import Edge
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import OWN, UNPAIRED, Pairing, unpaired_splits
from cs_aligner_cli.towers.towers import Inputs
from cs_aligner_cli.training.mixup import Mixing
from cs_aligner_cli.training.optimizer import step_seed
from cs_aligner_cli.training.samplers import DrawnPairs, PairBatches, Pool
from cs_aligner_cli.training.self_training import AcceptedPairs
from cs_aligner_cli.training.step import Batch

Items = list[tuple[Split, Ints]]
# Keeps the draws of accepted pairs apart from those of unpaired items.
_ACCEPTED = 104729


class TrainingBatches:
    """The batches of one run, a function of the step: this rank's share of the inputs, and which items are pairs."""

    def __init__(
        self, layout: Layout, spec: Train, split: Split, image_rows: Ints, pairing: Pairing | None, ranks: Ranks
    ) -> None:
        recipe = layout.recipe
        captions = spec.captions if isinstance(spec.captions, str) else spec.captions.weights
        further = layout.modalities[len(MODALITIES) :]
        least = max(2, ranks.size) if spec.last_batch == "keep" else None
        self.pairs = PairBatches(split, image_rows, spec.batch_size, recipe.seed, captions, further, least)
        # Terms of weight 0 are trained without, so what they alone would see is not even drawn.
        in_steps, in_start = spec.objective.sees_unpaired, bool(spec.start_moments and spec.start_moments.unpaired)
        drawn = pairing if in_steps or in_start or spec.self_training else None
        self._unpaired = _unpaired_items(drawn, layout, split) if drawn else {}
        self._spec, self._seed, self._pairs_per_step = spec, recipe.seed, self.pairs.batch_size if in_steps else 0
        self.pools = self._pools(self._unpaired)
        self._accepted: AcceptedPairs | None = None
        self._order: Pool | None = None
        self._mixup = Mixing(spec.mixup, recipe.seed) if spec.mixup else None
        self._split, self._edges, self._ranks = split, recipe.edges, ranks
        self._micro, self._sees_features = spec.micro_batch_size, spec.objective.sees_features
        self._groups: Ints | None = None
        if recipe.data.groups == "text":
            self._groups = linked_groups(split) if captions == "all" else text_groups(split.captions["text"])

    @property
    def unpaired_items(self) -> dict[str, int]:
        """How many items of each modality are in no pair of the data, where steps or the start see them."""
        return {m: sum(len(rows) for _, rows in items) for m, items in self._unpaired.items()}

    def accept(self, pairs: AcceptedPairs, number: int) -> None:
        """Train on these pairs, too, from now on, in place of those of the round before; they are unpaired no more."""
        spec = self._spec.self_training
        assert spec is not None
        taken = {m: {split.name: rows for split, rows in pairs.rows(m)} for m in MODALITIES}
        self.pools = self._pools(
            {
                m: [(split, np.setdiff1d(rows, taken[m].get(split.name, np.arange(0)))) for split, rows in items]
                for m, items in self._unpaired.items()
            }
        )
        self._accepted = pairs if len(pairs.right) else None
        every = np.arange(len(pairs.right))
        per_step = max(1, round(spec.per_pair * self.pairs.batch_size))
        self._order = Pool([(self._split, every)], per_step, step_seed(self._seed, _ACCEPTED, number))

    def _accepted_at(self, step: int) -> Ints:
        """Which of the accepted pairs a step takes, those of the same sources together."""
        if self._accepted is None or self._order is None:
            return np.arange(0)
        return np.unique(self._order.rows(step)[0][1])  # one that ends a round may begin the next

    def _groups_of(self, accepted: Ints) -> Ints:
        """(P,) the groups of accepted pairs: those of the captions of the training split, where there are such."""
        groups = -1 - np.arange(len(accepted))
        if self._groups is not None and self._accepted is not None:
            start = 0
            for split, rows in self._accepted.drawn("text", accepted):
                if split is self._split:
                    groups[start : start + len(rows)] = self._groups[rows]
                start += len(rows)
        return groups

    def _pools(self, items: Mapping[str, Items]) -> dict[str, Pool]:
        """The unpaired items of images and texts, of which a step takes so many per pair."""
        per_pair = {"image": self._spec.unpaired_per_pair.image, "text": self._spec.unpaired_per_pair.text}
        return {
            m: Pool(parts, round(per_pair[m] * self._pairs_per_step), step_seed(self._seed, MODALITIES.index(m)))
            for m, parts in items.items()
        }

    def load(self, step: int, inputs: Inputs) -> Batch:
        """The batch of one step."""
        drawn = self.pairs.pairs(step)
        rows = {"image": drawn.images, "text": drawn.captions, **drawn.further}
        mixed = self._mixup.drawn(step, drawn) if self._mixup else None
        accepted = self._accepted_at(step)
        loaded, features, sizes = {}, {}, {}
        for modality, paired in rows.items():
            items: Items = [(self._split, paired)]
            if self._accepted is not None:
                items += self._accepted.drawn(modality, accepted)
            if modality in self.pools:
                items += self.pools[modality].rows(step)
            sizes[modality] = sum(len(part) for _, part in items)
            share = self._ranks.share_of_batch(sizes[modality], self._micro)
            own = [*_sliced(items, share.rows)]
            loaded[modality] = joined([inputs(modality, split, part) for split, part in own])
            if mixed is not None:
                load = partial(inputs, modality, self._split)
                loaded[modality] = mixed.mix(modality, paired, loaded[modality], load, share.rows)
            if self._sees_features:
                features[modality] = inputs.features(modality, own, loaded[modality])
        groups = self._groups_of(accepted)
        edges = {edge: pairs_of_edge(edge, drawn, sizes, self._groups, groups) for edge in self._edges}
        return Batch(loaded, sizes, edges, features)


def _unpaired_items(pairing: Pairing, layout: Layout, split: Split) -> dict[str, Items]:
    sources: dict[str, tuple[Split, Sequence[str]]] = {OWN: (split, MODALITIES), **unpaired_splits(layout)}
    return {
        m: [(part, pairing.rows(m, UNPAIRED, name)) for name, (part, taken) in sources.items() if m in taken]
        for m in MODALITIES
    }


def _sliced(items: Items, share: slice) -> Iterator[tuple[Split, Ints]]:
    """The rows that a slice of all of them, one after another, holds."""
    start = 0
    for split, rows in items:
        part = rows[max(0, share.start - start) : max(0, share.stop - start)]
        start += len(rows)
        if len(part):
            yield split, part


def pairs_of_edge(
    edge: Edge, drawn: DrawnPairs, sizes: dict[str, int], groups: Ints | None = None, accepted: Ints | None = None
) -> Pairs:
    """Which items of a step are the pairs of an edge; paired items come before unpaired ones.

    Pairs are of one group if they have one image or, where there are ``groups`` of captions, captions of one group. The
    pairs that self-training ``accepted`` come after those of the data, with a group for each of them.
    """
    beyond = np.arange(0) if accepted is None else accepted
    each = np.arange(len(drawn.images) + len(beyond))
    own = drawn.owner if "text" in edge and drawn.owner is not None else each[: len(drawn.images)]
    owner = np.concatenate([own, each[len(drawn.images) :]])
    in_order = np.arange(len(owner))
    places = [in_order if modality == "text" else owner for modality in edge]
    first, second = (
        None if sizes[modality] == len(owner) and np.array_equal(place, in_order) else torch.from_numpy(place)
        for modality, place in zip(edge, places, strict=True)
    )
    labels = drawn.images[own] if groups is None or "text" not in edge else groups[drawn.captions]
    return Pairs(first, second, torch.from_numpy(np.concatenate([labels, beyond])))
