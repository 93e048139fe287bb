"""From the recipe to what a training run works with: towers, their inputs, batches, and the pairs to validate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of, hold_out
from cs_aligner_cli.data.text_groups import text_groups
from cs_aligner_cli.encoders import Encoder, load_encoders, pick_device
from cs_aligner_cli.recipe.few_pairs import Teacher as TeacherSpec
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.retrieval.rerank import Reranker
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import Pairing, read_pairing
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers import adapter_init
from cs_aligner_cli.towers.blocks import checkpoint_blocks
from cs_aligner_cli.towers.embedder import pick_precision
from cs_aligner_cli.towers.matching_head import Matcher
from cs_aligner_cli.towers.towers import Inputs, Towers, embed_split, plan_towers
from cs_aligner_cli.training.batches import TrainingBatches
from cs_aligner_cli.training.self_training import SelfTraining
from cs_aligner_cli.training.step import logit_specs
from cs_aligner_cli.training.teacher import MAX_PAIRS, Teacher, fit_teacher

# How many first hits a matching head puts in order when it is validated.
_RERANKED = 10


@dataclass(frozen=True, eq=False)
class Validation:
    """The images to validate on, with all their captions; ``batch_size`` is how many are embedded at a time."""

    split: Split
    rows: Ints
    device: torch.device
    batch_size: int
    groups: Literal["image", "text"] = "image"

    def recall(self, towers: Towers, inputs: Inputs, match: Matcher | None = None) -> dict[str, float]:
        """R@1 of both directions, on all captions, the first hits being reranked where there is a ``match``."""
        captions = captions_of(self.split, self.rows)
        image, text = self._embed(towers, inputs, captions)
        owner = np.searchsorted(self.rows, self.split.image_of_caption[captions])
        groups = text_groups(self.split.captions["text"].iloc[captions]) if self.groups == "text" else None
        reranker = Reranker(_RERANKED, lambda i, t: match(self.rows[i], captions[t])) if match else None
        found = evaluate_retrieval(image, text, owner, (1,), text_groups=groups, reranker=reranker)
        return {direction: found[direction]["R@1"] for direction in ("i2t", "t2i")}

    def pairs(self, towers: Towers, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (N, d) of the images and of the first caption of each."""
        captions = captions_of(self.split, self.rows)
        _, firsts = np.unique(self.split.image_of_caption[captions], return_index=True)
        image, text = self._embed(towers, inputs, captions[firsts])
        return torch.from_numpy(image), torch.from_numpy(text)

    def _embed(self, towers: Towers, inputs: Inputs, captions: Ints) -> list[npt.NDArray[np.float32]]:
        rows = {"image": self.rows, "text": captions}
        return [embed_split(towers, inputs, m, self.split, rows[m], self.device, self.batch_size) for m in MODALITIES]


@dataclass(frozen=True, eq=False)
class Setup:
    """What one run trains with; ``split`` and ``train_rows`` are the images that its pairs come from."""

    device: torch.device
    split: Split
    train_rows: Ints
    validation: Validation
    batches: TrainingBatches
    encoders: dict[str, Encoder]
    towers: Towers
    inputs: Inputs
    steps: int
    teacher: Teacher | None
    self_training: SelfTraining | None

    def left_out(self, key: str, wanted: int) -> list[str]:
        """What to say where ``wanted``, a batch size, exceeds the images, and of images outside all batches."""
        pairs, said = self.batches.pairs, []
        if wanted > pairs.images:
            said.append(f"{key} {wanted} exceeds {counted(pairs.images, 'images')}: batches of those")
        if pairs.left_out:
            said.append(
                f"{counted(pairs.left_out, 'images', 'are', of=pairs.images)} left out of every epoch"
                " (incomplete batch; train.last_batch: keep takes them, too)"
            )
        return said

    def start_adapters(self, spec: Train) -> None:
        """Put the adapters where the recipe begins, in place: nothing to do for a plain start."""
        if spec.start != "plain":
            unpaired = {m: pool.part(adapter_init.MAX_PAIRS) for m, pool in self.batches.pools.items()}
            adapter_init.start_adapters(
                spec.start, self.towers, self.inputs, self.split, self.train_rows, spec.start_moments, unpaired
            )


def set_up(recipe: Recipe, spec: Train, layout: Layout, ranks: Ranks) -> Setup:
    """Read and make what training ``spec`` takes. Raises InputError if there are too few pairs or parts do not fit."""
    device = pick_device(spec.device)
    data = PreparedData(layout.prepared.path)
    pairing = read_pairing(layout.pairing.path) if layout.pairing else None
    split = data.split(spec.split, "train.split", layout.modalities)
    truth = split.image_of_caption  # also of what the pairing takes apart
    split = pairing.limited(split) if pairing else split
    val_split = data.split(spec.val_split, "train.val_split") if spec.val_split else split
    train_rows, val_rows = _parts(recipe, spec, split, val_split)
    batches = TrainingBatches(layout, spec, split, train_rows, pairing, ranks)
    encoders = load_encoders(recipe, data, device, [m for m in layout.modalities if spec.tower(m).live])
    towers, inputs = _towers(recipe, spec, layout, pairing, encoders, device)
    taught, rounds = spec.objective.teacher, spec.self_training
    unpaired = {m: pool.part(MAX_PAIRS) for m, pool in batches.pools.items()} if taught or rounds else {}

    def fitted(by: TeacherSpec) -> Teacher:
        return fit_teacher(by, inputs, split, train_rows, unpaired, ranks, towers.plans)

    self_training = None
    if rounds is not None:
        compared = {m: pool.part(rounds.max_items) for m, pool in batches.pools.items()}
        judges = [fitted(TeacherSpec(kind=kind)) for kind in rounds.agreement]
        self_training = SelfTraining(rounds, compared, split.name, truth, judges, batches.pairs.steps_per_epoch)
    return Setup(
        device,
        split,
        train_rows,
        Validation(val_split, val_rows, device, spec.micro_batch_size or batches.pairs.batch_size, recipe.data.groups),
        batches,
        encoders,
        towers,
        inputs,
        batches.pairs.steps_per_epoch * spec.epochs,
        fitted(taught).to(device) if taught else None,
        self_training,
    )


def _parts(recipe: Recipe, spec: Train, split: Split, val_split: Split) -> tuple[Ints, Ints]:
    """Image rows to train on and to validate on."""
    modalities = recipe.encoders.modalities[1:]
    train_rows, held_out = hold_out(split, spec.val_fraction, recipe.data_seed, modalities)
    if spec.val_split:
        train_rows = np.union1d(train_rows, held_out)
        held_out = np.unique(val_split.image_of_caption[val_split.image_of_caption >= 0])
    if len(train_rows) < 2:
        what = " and ".join({"text": "captions"}.get(modality, modality) for modality in modalities)
        raise InputError(f"train.split: split {spec.split!r} leaves {len(train_rows)} images with {what} to train on")
    return train_rows, held_out


def _towers(
    recipe: Recipe,
    spec: Train,
    layout: Layout,
    pairing: Pairing | None,
    encoders: dict[str, Encoder],
    device: torch.device,
) -> tuple[Towers, Inputs]:
    """The towers as they begin, and where their inputs come from."""
    pooled = spec.cached_reading("pooled", layout.modalities)
    reading_tokens = spec.cached_reading("tokens", layout.modalities)
    frozen = spec.reads_frozen(layout.modalities)
    stores = {s: Store(layout.frozen(s).path) for s in layout.training_splits if frozen}
    if frozen and pairing:
        stores |= {name: Store(store.path) for name, store in layout.unpaired_stores.items()}
    tokens = {s: TokenStore(layout.tokens(s).path) for s in layout.training_splits if reading_tokens}
    torch.manual_seed(recipe.seed)
    read_from: dict[str, Store | TokenStore] = {
        m: tokens[spec.split] if m in reading_tokens else stores[spec.split] for m in (*pooled, *reading_tokens)
    }
    dims = {m: _dim(m, spec, encoders, read_from) for m in layout.modalities}
    plans = plan_towers(spec, dims, {m: _identity(m, encoders, read_from) for m in layout.modalities})
    scale, bias = logit_specs(spec.objective.pairwise)
    logits = scale.init if scale else 1.0, bias.init if bias else 0.0
    towers = Towers(plans, encoders, *logits, pick_precision(spec.precision, device)).to(device)
    for modality, encoder in encoders.items():
        if spec.tower(modality).grad_checkpointing:
            checkpoint_blocks(encoder.backbone, f"train.{modality}.grad_checkpointing")
    return towers, Inputs(plans, encoders, stores, tokens)


def _identity(modality: str, live: dict[str, Encoder], stores: dict[str, Store | TokenStore]) -> dict[str, Any]:
    if modality in live:
        return live[modality].identity
    identity: dict[str, Any] = stores[modality].identity[modality]
    return identity


def _dim(modality: str, spec: Train, live: dict[str, Encoder], stores: dict[str, Store | TokenStore]) -> int:
    """The dimension of what a tower reads."""
    if modality in live:
        encoder, reads = live[modality], spec.tower(modality).reads
        return encoder.token_reader(f"train.{modality}.reads").dim if reads == "tokens" else encoder.dim
    store = stores[modality]
    return store.array(modality).dim if isinstance(store, TokenStore) else store.array(modality).shape[1]
