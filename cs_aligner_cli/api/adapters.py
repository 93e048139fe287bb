"""fit_adapter: a recipe's objective and towers on two arrays, in one call and without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.common.arguments import as_path
from cs_aligner_cli.common.arrays import ArrayLike, as_rows, in_range, refuse_not_finite
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.encoders import pick_device
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.recipe.messages import validate
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.recipe.strict_yaml import YamlFile, plain
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.retrieval.protocol import owners
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.towers.adapter_init import start_adapters
from cs_aligner_cli.towers.embedder import pick_precision
from cs_aligner_cli.towers.towers import Inputs, Towers, plan_towers
from cs_aligner_cli.towers.weights import load_towers, read_plans, save_weights
from cs_aligner_cli.training.batches import pairs_of_edge
from cs_aligner_cli.training.device_inputs import inputs_on
from cs_aligner_cli.training.mixup import Mixing
from cs_aligner_cli.training.optimizer import step_seed
from cs_aligner_cli.training.samplers import PairBatches, Pool
from cs_aligner_cli.training.scheduled_objective import ObjectiveState
from cs_aligner_cli.training.step import Batch, Stepper, logit_specs
from cs_aligner_cli.training.teacher import MAX_PAIRS, Teacher, fit_teacher

Embeddings: TypeAlias = npt.NDArray[np.float32]
# Keys of a recipe's section train that name splits, files, logs and rounds between epochs: nothing that arrays have.
_OF_RUNS = {
    *("split", "val_split", "val_fraction", "further", "edges", "pairwise_only", "log_steps", "conflict_steps"),
    *("checkpoint_steps", "checkpoint_minutes", "keep_checkpoints", "trackers", "from", "keep_states", "self_training"),
}
_BLOCK, _CHOSEN_ON = 4096, 1000
_SEEDS = 2**31  # as a recipe's


@dataclass(frozen=True, eq=False)
class FittedAdapter:
    """Trained adapters of both modalities; ``history`` holds what was logged of every tenth step (loss, terms, ...)."""

    towers: Towers
    history: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def apply(self, array: ArrayLike, modality: str) -> Embeddings:
        """Unit float32 rows (N, k) in the shared space, of features (N, d) of a modality: "image" or "text".

        ``array`` holds rows of the encoder that the adapter was trained on, of any length. Raises InputError on another
        modality or dimension, and on rows with NaN or infinity.
        """
        plans = self.towers.plans
        if modality not in list(plans):
            raise InputError(f"modality: got {modality!r}{did_you_mean(modality, list(plans))}")
        plan, rows = plans[modality], as_rows(array, modality)
        if rows.shape[1] != plan.in_dim:
            raise InputError(
                f"{modality}: rows have {rows.shape[1]} dimensions, but the {modality} adapter takes {plan.in_dim}"
            )
        refuse_not_finite(rows, modality)
        device = self.towers.log_logit_scale.device
        self.towers.eval()
        with torch.inference_mode():
            parts = [
                self.towers(modality, in_range(part).float().to(device)).cpu()
                for part in torch.split(rows.detach(), _BLOCK)
            ]
        found: Embeddings = torch.cat(parts).numpy()
        return found

    def save(self, path: str | Path) -> Path:
        """Write a self-describing safetensors file, atomically; ``load_adapter`` and ``csalign embed --adapter`` read
        it. Returns its path; raises InputError unless that ends in .safetensors in a folder that is there."""
        path = as_path(path, "path")
        if path.suffix.lower() != ".safetensors" or not path.parent.is_dir():
            raise InputError(f"{path}: expected a file name that ends in .safetensors, in a folder that is there")
        save_weights(path, self.towers)
        return path


def load_adapter(path: str | Path) -> FittedAdapter:
    """The adapters of a weights file: of ``FittedAdapter.save``, or a run's ``train/aligned/best.safetensors``.

    Raises InputError if it is no such file, is damaged, or holds whole encoders or adapters of tokens, which arrays of
    pooled features cannot go through.
    """
    path = as_path(path, "path")
    for modality, plan in read_plans(path).items():
        if plan.live or plan.reads == "tokens":
            what = "is an encoder that was trained itself" if plan.live else "reads tokens"
            raise InputError(
                f"{path}: its {modality} tower {what}, and takes no pooled features", "Use open_run(FOLDER).embed(...)."
            )
    return FittedAdapter(load_towers(path, {}, {}))


def fit_adapter(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: npt.NDArray[np.integer] | Tensor | None = None,
    *,
    objective: Mapping[str, Any] | Objective | None = None,
    train: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> FittedAdapter:
    """Train adapters on features that are already there: image (M, d) and text (N, e), as a recipe would.

    ``image_of_text`` (N,) integers: the row of each text's image, -1 for an unpaired text; None: text i belongs to
    image i, M = N. Images without text and texts without image are seen by all terms but
    those of pairs (``train.unpaired_per_pair``).

    ``objective`` is the recipe's section train.objective, ``train`` the other keys of its section train: epochs,
    batch_size, lr, image, text, embed_dim, start, captions, ...; docs/recipe.md lists them with their defaults, which
    hold here, too. Rows are scaled to unit length. All images are trained on, and the weights are the last ones: hold
    rows back to measure on. The same call gives the same weights on one machine, and leaves torch's random state alone.

    Raises InputError on arrays that do not fit together or hold NaN or infinity, on unknown or misspelt keys and those
    that only files have, and DivergedError where the loss becomes infinite or NaN.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(64, 4))
    >>> image, text = shared @ rng.normal(size=(4, 12)), shared @ rng.normal(size=(4, 8))
    >>> adapter = fit_adapter(image, text, train={"epochs": 2, "batch_size": 32, "embed_dim": 6})
    >>> adapter.apply(image, "image").shape, adapter.apply(text[:3], "text").shape
    ((64, 6), (3, 6))
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < _SEEDS:
        raise InputError(f"seed: expected an integer from 0 to {_SEEDS - 1}, got {seed!r}")
    spec = _spec(objective, train)
    rows = {"image": Rows(image, "image"), "text": Rows(text, "text")}
    counts = {m: len(rows[m]) for m in MODALITIES}
    if image_of_text is None:
        if counts["image"] != counts["text"]:
            raise InputError(
                f"image_of_text: without it rows are pairs; there are {counts['image']} images and {counts['text']} "
                "texts"
            )
        image_of_text = np.arange(counts["text"])
    device = pick_device(spec.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _Fit(spec, rows, owners(image_of_text, *counts.values()), seed, device).run()


def _spec(objective: Mapping[str, Any] | Objective | None, train: Mapping[str, Any] | None) -> Train:
    """The settings as a recipe's section; InputError names what is no key of it, or none for arrays."""
    for name, section in (("train", train), ("objective", objective)):
        if not isinstance(section, Mapping | Objective | None):
            raise InputError(f"{name}: expected a dict of the recipe's keys, got {section!r}")
    train = train or {}
    for key in train:
        if key in _OF_RUNS:
            raise InputError(f"train.{key}: is for runs from a recipe (csalign run), not for arrays")
    if isinstance(objective, Objective):
        objective = objective.model_dump(mode="json")
    given = {**train, **({} if objective is None else {"objective": dict(objective)})}
    spec = validate(Train, YamlFile(Path("fit_adapter"), plain(given)))
    for modality in MODALITIES:
        tower = spec.tower(modality)
        if tower.live or tower.reads == "tokens":
            key, found = ("tune", tower.tune) if tower.live else ("reads", "tokens")
            raise InputError(
                f"train.{modality}.{key}: {found} wants the encoder or its tokens, and arrays are pooled features",
                "Write a recipe for that: csalign recipe list.",
            )
    return spec


class _ArrayInputs(Inputs):
    """The towers' inputs from rows in memory."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self._rows = rows
        self.live, self.reads = {}, dict.fromkeys(rows, "pooled")

    def __call__(self, modality: str, split: Split, rows: Ints) -> Tensor:
        """Unit rows (len(rows), d), whichever split."""
        return self._rows[modality].take(rows)


class _Fit:
    """One training run on arrays: what ``training.loop`` is for files."""

    def __init__(self, spec: Train, rows: Mapping[str, Rows], owner: Ints, seed: int, device: torch.device) -> None:
        self._spec, self._inputs, self._device, self._seed = spec, _ArrayInputs(rows), device, seed
        self._step_inputs = inputs_on(device, self._inputs)
        captions = pd.DataFrame({"image_id": owner})
        self._split = Split("arrays", pd.DataFrame({"image_id": np.arange(len(rows["image"]))}), captions)
        self._paired = np.unique(owner[owner >= 0])
        if len(self._paired) < 2:
            raise InputError(f"image_of_text: pairs of at least 2 images are needed, got {len(self._paired)}")
        mode = spec.captions if isinstance(spec.captions, str) else spec.captions.weights
        least = 2 if spec.last_batch == "keep" else None
        self._pairs = PairBatches(self._split, self._paired, spec.batch_size, seed, mode, least=least)
        unpaired = {
            "image": np.setdiff1d(np.arange(len(rows["image"])), self._paired),
            "text": np.flatnonzero(owner < 0),
        }
        per_pair = {"image": spec.unpaired_per_pair.image, "text": spec.unpaired_per_pair.text}
        in_steps = spec.objective.sees_unpaired
        wanted = in_steps or bool(spec.start_moments and spec.start_moments.unpaired)
        self._mixup = Mixing(spec.mixup, seed) if spec.mixup else None
        self._pools = {
            m: Pool(
                [(self._split, unpaired[m])], round(per_pair[m] * self._pairs.batch_size * in_steps), step_seed(seed, i)
            )
            for i, m in enumerate(MODALITIES)
            if wanted and len(unpaired[m])
        }
        torch.manual_seed(seed)
        scale, bias = logit_specs(spec.objective.pairwise)
        logits = scale.init if scale else 1.0, bias.init if bias else 0.0
        plans = plan_towers(spec, {m: rows[m].dim for m in MODALITIES})
        self._towers = Towers(plans, {}, *logits, pick_precision(spec.precision, device)).to(device)

    def run(self) -> FittedAdapter:
        """Train to the end."""
        spec, steps = self._spec, self._pairs.steps_per_epoch * self._spec.epochs
        stepper = Stepper(spec, self._towers, steps, self._seed, self._device, teacher=self._teacher())
        if spec.start != "plain":
            unpaired = {m: pool.part(MAX_PAIRS) for m, pool in self._pools.items()}
            start_adapters(
                spec.start, self._towers, self._inputs, self._split, self._paired, spec.start_moments, unpaired
            )
        state = ObjectiveState()
        if stepper.objective.wants_start(state):
            state = stepper.objective.start(*self._some_pairs())
        history = []
        for step in range(steps):
            metrics, state = stepper.step(step, self._batch(step), state)
            if stepper.logs(step + 1):
                history.append({"step": step + 1, **metrics})
        return FittedAdapter(self._towers.eval(), history)

    def _batch(self, step: int) -> Batch:
        drawn = self._pairs.pairs(step)
        rows = {"image": drawn.images, "text": drawn.captions}
        for m, pool in self._pools.items():
            rows[m] = np.concatenate([rows[m], *(part for _, part in pool.rows(step))])
        sizes = {m: len(numbers) for m, numbers in rows.items()}
        loaded = {m: self._step_inputs(m, self._split, numbers) for m, numbers in rows.items()}
        if self._mixup:
            mixed = self._mixup.drawn(step, drawn)
            for m, paired in (("image", drawn.images), ("text", drawn.captions)):
                loaded[m] = mixed.mix(m, paired, loaded[m], partial(self._step_inputs, m, self._split))
        features = loaded if self._spec.objective.sees_features else {}
        return Batch(loaded, sizes, {IMAGE_TEXT: pairs_of_edge(IMAGE_TEXT, drawn, sizes)}, features)

    def _teacher(self) -> Teacher | None:
        spec = self._spec.objective.teacher
        if spec is None:
            return None
        unpaired = {m: pool.part(MAX_PAIRS) for m, pool in self._pools.items()}
        return fit_teacher(spec, self._inputs, self._split, self._paired, unpaired, ALONE, self._towers.plans).to(
            self._device
        )

    def _some_pairs(self) -> tuple[Tensor, Tensor]:
        """Embeddings of at most 1,000 images and of one text of each, to choose a bandwidth on."""
        images, texts = self._split.pairs
        some = np.linspace(0, len(images) - 1, min(len(images), _CHOSEN_ON)).astype(int)
        taken = {"image": images[some], "text": texts[some]}
        fitted = FittedAdapter(self._towers)
        found = {m: torch.from_numpy(fitted.apply(self._inputs(m, self._split, taken[m]), m)) for m in MODALITIES}
        return found["image"], found["text"]
