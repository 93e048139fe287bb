"""train: the training loop, readable from top to bottom, over cached features and live encoders alike."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.prefetch import prefetched
from cs_aligner_cli.common.signals import noticed_interrupts
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, captions_of, hold_out
from cs_aligner_cli.encoders import Encoder, load_encoders, pick_device
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.runs.distributed import current
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import read_pairing
from cs_aligner_cli.stages.making import make
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers.adapter_init import start_adapters
from cs_aligner_cli.towers.blocks import checkpoint_blocks
from cs_aligner_cli.towers.embedder import out_of_memory_explained, pick_precision
from cs_aligner_cli.towers.export import export_towers
from cs_aligner_cli.towers.towers import Inputs, Towers, count_parameters, embed_split, plan_towers
from cs_aligner_cli.towers.weights import load_weights, save_weights
from cs_aligner_cli.training.batches import TrainingBatches
from cs_aligner_cli.training.checkpoint import load_state, save_state
from cs_aligner_cli.training.metrics_log import FILE, TrainingLog
from cs_aligner_cli.training.step import Batch, DivergedError, Stepper, logit_specs
from cs_aligner_cli.training.trackers import TrackedRun, Trackers, require_trackers

_LESS_MEMORY = (
    "A smaller train.micro_batch_size or train.batch_size helps; with live towers also grad_checkpointing: true, "
    "train.precision: bf16, and tune: lora in place of full."
)
_SHARED = "run_dir must be one folder that all machines share."


def train(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Train every variant of a recipe; return {"status": done or fresh, "runs": {variant: summary}}.

    A run that was interrupted goes on from its last checkpoint and ends as if it had not been. Raises InputError if
    the recipe trains nothing or what it trains on is missing or stale, DivergedError on a non-finite loss.
    """
    layout = Layout(recipe)
    if not layout.variants:
        why = "embed.weights names weights" if recipe.train else "train is null"
        raise InputError(f"this recipe trains nothing: {why}")
    if recipe.train is not None:
        require_trackers(recipe.train.trackers)
    runs: dict[str, Any] = {}
    for name, spec in layout.variants.items():
        made = make(
            layout.trained(name),
            lambda build, spec=spec, name=name: _Run(recipe, spec, layout, build, console, name).run(),  # type: ignore[misc]
            force=force,
            ranks=current(),
        )
        runs[name] = {"status": made.status, "seconds": made.record["seconds"], **made.summary}
    done = any(run["status"] == "done" for run in runs.values())
    return {"status": "done" if done else "fresh", "runs": runs}


class _Run:
    """One training run: what it trains on, and the loop."""

    def __init__(self, recipe: Recipe, spec: Train, layout: Layout, build: Build, console: Console, name: str) -> None:
        self.recipe, self.spec, self.name, self.console = recipe, spec, name, console
        self.seed, self.folder, self.ranks = recipe.seed, build.folder, current()
        self.device = pick_device(spec.device)
        data = PreparedData(layout.prepared.path)
        self.split = data.split(spec.split, "train.split", layout.modalities)
        pairing = read_pairing(layout.pairing.path) if layout.pairing else None
        if pairing:
            self.split = pairing.limited(self.split)
        self.val_split = data.split(spec.val_split, "train.val_split") if spec.val_split else self.split
        self.train_rows, self.val_rows = self._parts()
        self.training = TrainingBatches(layout, spec, self.split, self.train_rows, pairing, self.ranks)
        self.batches = self.training.pairs
        self.steps = self.batches.steps_per_epoch * spec.epochs

        pooled = spec.cached_reading("pooled", layout.modalities)
        reading_tokens = spec.cached_reading("tokens", layout.modalities)
        stores = {s: Store(layout.frozen(s).path) for s in layout.training_splits if pooled}
        if pooled and pairing:
            stores |= {name: Store(store.path) for name, store in layout.unpaired_stores.items()}
        tokens = {s: TokenStore(layout.tokens(s).path) for s in layout.training_splits if reading_tokens}
        encoders = load_encoders(recipe, data, self.device, [m for m in layout.modalities if spec.tower(m).live])
        torch.manual_seed(recipe.seed)
        read_from: dict[str, Store | TokenStore] = {
            m: tokens[spec.split] if m in reading_tokens else stores[spec.split] for m in (*pooled, *reading_tokens)
        }
        dims = {m: _dim(m, spec, encoders, read_from) for m in layout.modalities}
        plans = plan_towers(spec, dims, {m: _identity(m, encoders, read_from) for m in layout.modalities})
        scale, bias = logit_specs(spec.objective.pairwise)
        logits = scale.init if scale else 1.0, bias.init if bias else 0.0
        precision = pick_precision(spec.precision, self.device)
        self.towers = Towers(plans, encoders, *logits, precision).to(self.device)
        for modality, encoder in encoders.items():
            if spec.tower(modality).grad_checkpointing:
                checkpoint_blocks(encoder.backbone, f"train.{modality}.grad_checkpointing")
        self.inputs, self.encoders = Inputs(plans, encoders, stores, tokens), encoders
        self.stepper = Stepper(spec, self.towers, self.steps, recipe.seed, self.device, recipe.edges, self.ranks)
        self.objective = self.stepper.objective

    def _parts(self) -> tuple[Ints, Ints]:
        """Image rows to train on and to validate on."""
        spec = self.spec
        modalities = self.recipe.encoders.modalities[1:]
        train_rows, held_out = hold_out(self.split, spec.val_fraction, self.seed, modalities)
        if spec.val_split:
            train_rows = np.union1d(train_rows, held_out)
            held_out = np.unique(self.val_split.image_of_caption[self.val_split.image_of_caption >= 0])
        if len(train_rows) < 2:
            what = " and ".join({"text": "captions"}.get(modality, modality) for modality in modalities)
            raise InputError(
                f"train.split: split {spec.split!r} leaves {len(train_rows)} images with {what} to train on"
            )
        return train_rows, held_out

    def run(self) -> dict[str, Any]:
        """Train to the end; return the summary for the stage's record."""
        state = self._begin()
        remaining = range(state["step"], self.steps)
        with (
            noticed_interrupts() as interrupts,
            TrainingLog(self.folder, state["log"]) if self.ranks.main else nullcontext() as log,
            self._trackers(state) as trackers,
            self.console.progress(f"training {self.name}", self.steps, done=state["step"]) as advance,
        ):
            batches = prefetched(partial(self.training.load, inputs=self.inputs), remaining)
            for step, batch in zip(remaining, batches, strict=True):
                items = " and ".join(f"{size} {modality} items" for modality, size in batch.sizes.items())
                with out_of_memory_explained(f"{self.name}: a step with {items}", _LESS_MEMORY):
                    metrics = self._step(step, batch)
                stop = self.ranks.any(interrupts.wanted)
                if log:
                    self._keep(step + 1, metrics, state, log, trackers, stop)
                if (step + 1) % self.batches.steps_per_epoch == 0:
                    self.ranks.barrier()
                if stop:
                    raise KeyboardInterrupt
                advance(1, f"loss {metrics['loss']:.3f}, best val R@1 {max(state['best'], 0):.3f}")
        if self.ranks.main:
            save_weights(self.folder / "last.safetensors", self.towers)
            load_weights(self.folder / "best.safetensors", self.towers, state["best_checksum"])
            export_towers(self.folder, self.towers, self.encoders, self.card(state))
        return {
            "steps": self.steps,
            "epochs": self.spec.epochs,
            "batch_size": self.batches.batch_size,
            "train_images": self.batches.images,
            "val_images": len(self.val_rows),
            "unpaired_items": {modality: pool.items for modality, pool in self.training.pools.items()},
            "trainable_parameters": sum(p.numel() for p in self.towers.parameters() if p.requires_grad),
            "best_step": state["best_step"],
            "val_R@1": state["val"],
            **self.objective.describe(),
        }

    def _begin(self) -> dict[str, Any]:
        """The state to go on from, in the towers, the optimizer and the objective of every rank."""
        state = load_state(self.folder, self.towers, self.stepper.optimizer, self.stepper.memory, self.console.warn)
        if state is None:
            state = {"step": 0, "log": {}, "best": -1.0, "best_step": 0, "val": {}, "objective": {}}
            state |= {"best_checksum": None, "scaler": {}}  # all keys, so that equal states are equal files
            if self.spec.start != "plain" and self.ranks.main:
                start_adapters(self.spec.start, self.towers, self.inputs, self.split, self.train_rows)
            self._tell_what_is_trained()
        elif state["step"]:
            self.console.say(f"{self.name}: going on from step {state['step']} of {self.steps}")
        if state.get("scaler"):
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.objective.state = state["objective"]
        if self.objective.wants_start and self.ranks.main:
            self._choose_bandwidth()
        self.objective.state = self.ranks.broadcast(lambda: self.objective.state)
        steps = self.ranks.all_gather(state["step"])
        if len(set(steps)) > 1:
            raise InputError(f"{self.folder}: the ranks found states of different steps there: {steps}", _SHARED)
        self.ranks.broadcast_tensors(self.towers.own_state().values())
        self.saved = time.monotonic()
        return state

    def _keep(
        self,
        done: int,
        metrics: dict[str, Any],
        state: dict[str, Any],
        log: TrainingLog,
        trackers: Trackers,
        stop: bool,
    ) -> None:
        """Log, validate and save what is due after a step."""
        if self.stepper.logs(done):
            log.write(metrics)
        epoch_ends = done % self.batches.steps_per_epoch == 0
        if epoch_ends:
            self._validate(done, state, log)
        by_number = self.spec.checkpoint_steps and done % self.spec.checkpoint_steps == 0
        by_time = time.monotonic() - self.saved > 60 * self.spec.checkpoint_minutes
        if epoch_ends or by_number or by_time or stop:
            state |= {"step": done, "log": log.mark(), "objective": self.objective.state}
            state["scaler"] = self.stepper.scaler.state_dict()
            save_state(
                self.folder, self.towers, self.stepper.optimizer, self.stepper.memory, state, self.spec.keep_checkpoints
            )
            trackers.catch_up(state["log"]["bytes"])
            self.saved = time.monotonic()

    def _trackers(self, state: dict[str, Any]) -> Trackers:
        run = TrackedRun(
            self.recipe.folder, self.recipe.name, self.name, self.recipe.model_dump(mode="json"), state["step"] > 0
        )
        trackers = Trackers(self.spec.trackers if self.ranks.main else [], self.folder, FILE, run)
        trackers.catch_up(state["log"].get("bytes", 0))  # what an interrupted run had saved and not yet told
        return trackers

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        try:
            metrics = self.stepper.step(step, batch)
        except DivergedError as error:
            raise DivergedError(f"{self.name}: {error}") from None
        return {"step": step + 1, "epoch": step // self.batches.steps_per_epoch + 1, **metrics}

    def _choose_bandwidth(self) -> None:
        """Let the objective choose its bandwidth on the held-out pairs, one caption each, before training."""
        captions = captions_of(self.val_split, self.val_rows)
        _, firsts = np.unique(self.val_split.image_of_caption[captions], return_index=True)
        embedded = self._embed_val({"image": self.val_rows, "text": captions[firsts]})
        sigma = self.objective.start(*(torch.from_numpy(embedded[m]) for m in MODALITIES))
        pairs = f"{len(self.val_rows)} held-out pairs"
        self.console.say(f"{self.name}: bandwidth auto: sigma {sigma:.4g}, chosen on {pairs}")

    def _validate(self, step: int, state: dict[str, Any], log: TrainingLog) -> None:
        """R@1 on the validation images with all their captions; the mean of both directions picks the best weights."""
        captions = captions_of(self.val_split, self.val_rows)
        rows = {"image": self.val_rows, "text": captions}
        embedded = self._embed_val(rows)
        image_of_text = np.searchsorted(self.val_rows, self.val_split.image_of_caption[captions])
        found = evaluate_retrieval(embedded["image"], embedded["text"], image_of_text, ks=(1,))
        val = {direction: found[direction]["R@1"] for direction in ("i2t", "t2i")}
        log.write({"step": step, "epoch": step // self.batches.steps_per_epoch, "val_R@1": val})
        mean = (val["i2t"] + val["t2i"]) / 2
        if mean >= state["best"]:  # of equals the later one, which has trained longer
            checksum = save_weights(self.folder / "best.safetensors", self.towers)
            state |= {"best": mean, "best_step": step, "val": val, "best_checksum": checksum}

    def _embed_val(self, rows: dict[str, Ints]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        size = self.spec.micro_batch_size or self.batches.batch_size
        return {
            m: embed_split(self.towers, self.inputs, m, self.val_split, rows[m], self.device, size) for m in MODALITIES
        }

    def card(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a reader of the exported weights wants to know of the run."""
        best = {"step": state["best_step"], "val_R@1": state["val"]}
        return {
            "run": self.recipe.name,
            "variant": self.name,
            "best": best,
            "recipe": self.recipe.model_dump(mode="json"),
        }

    def _tell_what_is_trained(self) -> None:
        """Name the trained parameters before the first step, a line for every part of the towers."""
        for part, (tensors, trained, total) in count_parameters(self.towers).items():
            if trained:
                share = f" of {total:,}" if total > trained else ""
                self.console.say(f"{self.name}: trains {trained:,}{share} weights of {part} in {tensors} tensors")
        for modality, pool in self.training.pools.items():
            self.console.say(f"{self.name}: {pool.per_step} of {pool.items} unpaired {modality} items in every step")
        if self.objective.convention:
            self.console.say(f"{self.name}: {self.objective.convention}")


def _identity(modality: str, live: dict[str, Encoder], stores: dict[str, Store | TokenStore]) -> dict[str, Any]:
    if modality in live:
        return live[modality].identity
    return stores[modality].identity[modality]  # type: ignore[no-any-return]


def _dim(modality: str, spec: Train, live: dict[str, Encoder], stores: dict[str, Store | TokenStore]) -> int:
    """The dimension of what a tower reads."""
    if modality in live:
        encoder, reads = live[modality], spec.tower(modality).reads
        return encoder.token_reader(f"train.{modality}.reads").dim if reads == "tokens" else encoder.dim
    store = stores[modality]
    return store.array(modality).dim if isinstance(store, TokenStore) else store.array(modality).shape[1]
