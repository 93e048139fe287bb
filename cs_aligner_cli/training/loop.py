"""The training loop, readable from top to bottom, over cached features and live encoders alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.common.prefetch import prefetched
from cs_aligner_cli.common.signals import noticed_interrupts
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.other_runs import ORIGIN_FILE, trained_file
from cs_aligner_cli.towers.embedder import out_of_memory_explained
from cs_aligner_cli.towers.export import export_towers
from cs_aligner_cli.towers.towers import Inputs, count_parameters
from cs_aligner_cli.towers.weights import begin_with, load_weights, save_weights
from cs_aligner_cli.training import watching
from cs_aligner_cli.training.checkpoint import Best, TrainingState, is_due, load_state, save_state
from cs_aligner_cli.training.device_inputs import inputs_on
from cs_aligner_cli.training.metrics_log import FILE, TrainingLog
from cs_aligner_cli.training.scheduled_objective import ObjectiveState
from cs_aligner_cli.training.self_training import SelfTraining, say
from cs_aligner_cli.training.setup import set_up
from cs_aligner_cli.training.step import Batch, DivergedError, Stepper, begin_logits
from cs_aligner_cli.training.trackers import TrackedRun, Trackers

_LESS_MEMORY = (
    "A smaller train.micro_batch_size or train.batch_size helps; with live towers also grad_checkpointing: true, "
    "train.precision: bf16, and tune: lora in place of full."
)
_SHARED = "run_dir must be one folder that all machines share."


class TrainingRun:
    """One run: a variant of a recipe, trained in ``folder``, where its checkpoints, log and weights lie."""

    def __init__(
        self, recipe: Recipe, spec: Train, layout: Layout, folder: Path, console: Console, name: str, ranks: Ranks
    ) -> None:
        self.recipe, self.spec, self.name, self.console = recipe, spec, name, console
        self.folder, self.ranks = folder, ranks
        self.setup = set_up(recipe, spec, layout, ranks)
        towers, self.steps = self.setup.towers, self.setup.steps
        self.stepper = Stepper(
            spec, towers, self.steps, recipe.seed, self.setup.device, recipe.edges, ranks, self.setup.teacher
        )
        self.epoch_steps = self.setup.batches.pairs.steps_per_epoch
        self.saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end; return the summary for the stage's record."""
        state = self._begin()
        objective, best = state.objective, state.best
        remaining = range(state.step, self.steps)
        with (
            noticed_interrupts() as interrupts,
            TrainingLog(self.folder, state.log) if self.ranks.main else nullcontext() as log,
            self._trackers(state) as trackers,
            self.console.progress(f"training {self.name}", self.steps, done=state.step) as advance,
        ):
            inputs = inputs_on(self.setup.device, self.setup.inputs)
            for step, batch in self._batches(remaining, inputs, log):
                with self._explained(batch.sizes):
                    metrics, objective = self.stepper.step(step, batch, objective)
                done, stop = step + 1, self.ranks.any(interrupts.wanted)
                epoch, into_epoch = divmod(done, self.epoch_steps)
                if log:
                    if self.stepper.logs(done):
                        log.write({"step": done, "epoch": step // self.epoch_steps + 1, **metrics})
                    if not into_epoch:
                        best = self._validate(done, epoch, best, log)
                    if not into_epoch or stop or is_due(self.spec, done, self.saved):
                        self._save(done, log, objective, best, trackers)
                if not into_epoch:
                    self.ranks.barrier()
                if stop:
                    raise KeyboardInterrupt
                advance(1, f"loss {metrics['loss']:.3f}, best val R@1 {100 * max(best.mean, 0):.1f}%")
        if self.ranks.main:
            save_weights(self.folder / "last.safetensors", self.setup.towers)
            load_weights(self.folder / "best.safetensors", self.setup.towers, best.checksum)
            export_towers(self.folder, self.setup.towers, self.setup.encoders, self._card(best))
        batches, teaching = self.setup.batches, self.setup.self_training
        return {
            "steps": self.steps,
            "epochs": self.spec.epochs,
            "batch_size": batches.pairs.batch_size,
            "train_images": batches.pairs.images,
            "left_out_images": batches.pairs.left_out,
            "val_images": len(self.setup.validation.rows),
            "unpaired_items": batches.unpaired_items,
            "trainable_parameters": sum(p.numel() for p in self.setup.towers.parameters() if p.requires_grad),
            "best_step": best.step,
            "val_R@1": best.val,
            **objective.describe(),
            **({"self_training": teaching.counts(self.folder, teaching.rounds_before(self.steps))} if teaching else {}),
        }

    def _batches(self, steps: range, inputs: Inputs, log: TrainingLog | None) -> Iterator[tuple[int, Batch]]:
        """The batches of some steps, loaded ahead, but never beyond a round of self-training."""
        teaching, load = self.setup.self_training, partial(self.setup.batches.load, inputs=inputs)
        for part in teaching.segments(steps) if teaching else [steps]:
            if teaching:
                _take_round(self, teaching, part.start, log)
            yield from zip(part, prefetched(load, part), strict=True)

    def _begin(self) -> TrainingState:
        """The state to go on from; the weights, the optimizer and the memory of every rank are as it wants them."""
        stepper, towers = self.stepper, self.setup.towers
        state = load_state(self.folder, towers, stepper.optimizer, stepper.memory, self.console.warn)
        if state is None:
            state = TrainingState()
            if self.spec.origin is not None and self.ranks.main:
                weights = trained_file(self.spec.origin, ORIGIN_FILE, "train.from")
                begin_with(weights, towers, "train.from")
                begin_logits(towers, self.spec.objective.pairwise)
                self.console.say(f"{self.name}: begins with {weights}; optimizer and schedule begin anew")
            elif self.ranks.main:
                self.setup.start_adapters(self.spec)
            self._say_what_is_trained()
        elif state.step:
            self.console.say(f"{self.name}: going on from step {state.step} of {self.steps}")
        if state.scaler:
            stepper.scaler.load_state_dict(state.scaler)
        steps = self.ranks.all_gather(state.step)
        if len(set(steps)) > 1:
            raise InputError(f"{self.folder}: the ranks found states of different steps there: {steps}", _SHARED)
        if stepper.objective.wants_start(state.objective):
            state = self._with_bandwidth(state)
        self.ranks.broadcast_tensors(towers.own_state().values())
        return state

    def _with_bandwidth(self, state: TrainingState) -> TrainingState:
        """The state with the bandwidth that the objective chooses on the held-out pairs, one caption each."""

        def choose() -> float | None:
            embedded = self.setup.validation.pairs(self.setup.towers, self.setup.inputs)
            sigma = self.stepper.objective.start(*embedded).sigma
            pairs = f"{len(self.setup.validation.rows)} held-out pairs"
            self.console.say(f"{self.name}: bandwidth auto: sigma {sigma:.4g}, chosen on {pairs}")
            return sigma

        return state.model_copy(update={"objective": replace(state.objective, sigma=self.ranks.broadcast(choose))})

    @contextmanager
    def _explained(self, sizes: dict[str, int]) -> Iterator[None]:
        """Name the run in what a step fails with."""
        items = " and ".join(f"{size} {modality} items" for modality, size in sizes.items())
        try:
            with out_of_memory_explained(f"a step with {items}", _LESS_MEMORY):
                yield
        except (DivergedError, InputError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def _save(self, done: int, log: TrainingLog, objective: ObjectiveState, best: Best, trackers: Trackers) -> None:
        stepper = self.stepper
        state = TrainingState(
            step=done, log=log.mark(), objective=objective, best=best, scaler=stepper.scaler.state_dict()
        )
        keep = self.spec.keep_checkpoints
        save_state(self.folder, self.setup.towers, stepper.optimizer, stepper.memory, state, keep)
        trackers.catch_up(state.log.bytes)
        self.saved = time.monotonic()

    def _validate(self, done: int, epoch: int, best: Best, log: TrainingLog) -> Best:
        """R@1 on the validation images with all their captions; the mean of both directions picks the best weights."""
        val = self.setup.validation.recall(self.setup.towers, self.setup.inputs)
        log.write({"step": done, "epoch": epoch, "val_R@1": val})
        mean = (val["i2t"] + val["t2i"]) / 2
        if self.name == ALIGNED:
            watching.report(epoch, mean)
        if mean < best.mean:
            return best
        # Of equals the later one, which has trained longer.
        checksum = save_weights(self.folder / "best.safetensors", self.setup.towers)
        return Best(mean=mean, step=done, val=val, checksum=checksum)

    def _trackers(self, state: TrainingState) -> Trackers:
        run = TrackedRun(
            self.recipe.folder, self.recipe.name, self.name, self.recipe.model_dump(mode="json"), state.step > 0
        )
        trackers = Trackers(self.spec.trackers if self.ranks.main else [], self.folder, FILE, run)
        trackers.catch_up(state.log.bytes)  # what an interrupted run had saved and not yet sent
        return trackers

    def _card(self, best: Best) -> dict[str, Any]:
        """What a reader of the exported weights wants to know of the run."""
        return {
            "run": self.recipe.name,
            "variant": self.name,
            "best": {"step": best.step, "val_R@1": best.val},
            "recipe": self.recipe.model_dump(mode="json"),
        }

    def _say_what_is_trained(self) -> None:
        """Name the trained parameters before the first step, a line for every part of the towers."""
        for part, (tensors, trained, total) in count_parameters(self.setup.towers).items():
            if trained:
                share = f" of {total:,}" if total > trained else ""
                self.console.say(
                    f"{self.name}: trains {trained:,}{share} weights of {part} in {counted(tensors, 'tensors')}"
                )
        if self.spec.val_split == self.spec.split:
            self.console.warn(
                f"{self.name}: train.val_split: {self.spec.split} is trained on, too: val R@1, which chooses the best"
                " weights, shows what was learnt by heart"
            )
        for remark in self.setup.left_out("train.batch_size", self.spec.batch_size):
            self.console.say(f"{self.name}: {remark}")
        for modality, pool in self.setup.batches.pools.items():
            self.console.say(f"{self.name}: {pool.per_step} of {pool.items} unpaired {modality} items in every step")
        if self.stepper.objective.convention:
            self.console.say(f"{self.name}: {self.stepper.objective.convention}")


def _take_round(run: TrainingRun, teaching: SelfTraining, step: int, log: TrainingLog | None) -> None:
    """The round of self-training that comes before a step, or the one that a run which goes on is in."""
    number = teaching.round_at(step)
    if number is not None and run.ranks.main:
        batch = run.setup.validation.batch_size
        accepted = teaching.choose(run.setup.towers, run.setup.inputs, run.setup.device, batch)
        teaching.write(run.folder, number, accepted)
        epoch = step // run.epoch_steps
        run.console.say(say(run.name, epoch, accepted.counts()))
        if log:
            log.write({"step": step, "epoch": epoch, "self_training": accepted.counts()})
    run.ranks.barrier()
    if latest := number or teaching.rounds_before(step):
        run.setup.batches.accept(teaching.read(run.folder, latest), latest)
