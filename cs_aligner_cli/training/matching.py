"""The training of a matching head, on the tokens of towers that are trained already and stay as they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.prefetch import prefetched
from cs_aligner_cli.common.signals import noticed_interrupts
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.matching import hard_negatives, matching_loss
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.runs.layout import HEAD_FILE, Layout
from cs_aligner_cli.towers.embedder import out_of_memory_explained
from cs_aligner_cli.towers.matching_head import Items, Matcher, MatchingHead, load_head, save_head
from cs_aligner_cli.towers.weights import load_weights
from cs_aligner_cli.training.checkpoint import Best, TrainingState, is_due, load_state, save_state
from cs_aligner_cli.training.device_inputs import inputs_on, moved
from cs_aligner_cli.training.memory_bank import Memory
from cs_aligner_cli.training.metrics_log import TrainingLog
from cs_aligner_cli.training.optimizer import learning_rate, make_optimizer, seed_draws, step_seed
from cs_aligner_cli.training.setup import set_up
from cs_aligner_cli.training.step import Batch, DivergedError

_LESS_MEMORY = (
    "A smaller train.matching.micro_batch_size or train.matching.width helps, and so does a smaller"
    " train.matching.batch_size."
)
# Keeps the head's draws apart from the towers'.
_HEAD = 6151


def add_gradients(
    head: MatchingHead, items: Mapping[str, Items], negatives: tuple[Tensor, Tensor], size: int | None
) -> float:
    """Add the gradient of a batch's matching loss to the head's weights, ``size`` pairs at a time; return the loss.

    ``items`` are N pairs, row by row, and ``negatives`` (M,) rows of images and (M,) of texts among them. The loss is a
    mean over pairs and negatives, so that those of parts add up to it, and memory holds the graph of one part.
    """
    every = torch.arange(len(items["image"].rows), device=negatives[0].device)
    places, total, value = (every, every), len(every) + len(negatives[0]), 0.0
    for pairs, are_negatives in ((places, False), (negatives, True)):
        for image, text in zip(*(torch.split(rows, size or max(1, len(rows))) for rows in pairs), strict=True):
            if not len(image):
                continue
            logits = head(items["image"].take(image), items["text"].take(text))
            none = logits[:0]
            loss = matching_loss(*((none, logits) if are_negatives else (logits, none))) * (len(image) / total)
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
    return value


class HeadTraining:
    """The training of the head of one variant, in ``folder``: by one process, resumable as that of the towers."""

    def __init__(self, recipe: Recipe, spec: Train, layout: Layout, folder: Path, console: Console, name: str) -> None:
        assert spec.matching is not None
        self._matching, self._spec = spec.matching, _on_pairs_alone(spec)
        self._seed, self._folder, self._console, self._name = recipe.seed, folder, console, name
        self._setup = set_up(recipe, self._spec, layout, ALONE)
        self._towers, self._device = self._setup.towers, self._setup.device
        weights = layout.weights(name)
        verify_file(weights)
        load_weights(weights, self._towers)
        self._towers.eval().requires_grad_(False)
        torch.manual_seed(step_seed(recipe.seed, _HEAD))
        dim = self._towers.plans["image"].out_dim
        self._head = MatchingHead(dim, self._matching.width).to(self._device)
        self._optimizer = make_optimizer(self._head, self._spec)
        self._saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end; return the summary for the stage's record."""
        setup, epoch_steps = self._setup, self._setup.batches.pairs.steps_per_epoch
        state = load_state(self._folder, self._head, self._optimizer, Memory(0), self._console.warn) or TrainingState()
        best, label = state.best, f"the matching head of {self._name}"
        for remark in setup.left_out("train.matching.batch_size", self._matching.batch_size) if not state.step else ():
            self._console.say(f"{label}: {remark}")
        inputs = inputs_on(self._device, setup.inputs)
        remaining = range(state.step, setup.steps)
        with (
            noticed_interrupts() as interrupts,
            TrainingLog(self._folder, state.log) as log,
            self._console.progress(f"training {label}", setup.steps, done=state.step) as advance,
        ):
            batches = prefetched(partial(setup.batches.load, inputs=inputs), remaining)
            for step, batch in zip(remaining, batches, strict=True):
                with out_of_memory_explained(f"{label}: a step with {batch.sizes['image']} images", _LESS_MEMORY):
                    loss, lr = self._step(step, batch)
                done = step + 1
                epoch, into_epoch = divmod(done, epoch_steps)
                if done % self._spec.log_steps == 0 or done == setup.steps:
                    log.write({"step": done, "epoch": step // epoch_steps + 1, "lr": lr, "loss": loss})
                if not into_epoch:
                    best = self._validate(done, epoch, best, log)
                if not into_epoch or interrupts.wanted or is_due(self._spec, done, self._saved):
                    self._save(TrainingState(step=done, log=log.mark(), best=best))
                if interrupts.wanted:
                    raise KeyboardInterrupt
                advance(1, f"loss {loss:.3f}, best val R@1 {100 * max(best.mean, 0):.1f}%")
        load_head(self._folder / HEAD_FILE, best.checksum)  # it may have been written long ago, before an interruption
        return {
            "steps": setup.steps,
            "epochs": self._spec.epochs,
            "trainable_parameters": sum(parameter.numel() for parameter in self._head.parameters()),
            "best_step": best.step,
            "val_R@1": best.val,
        }

    def _save(self, state: TrainingState) -> None:
        save_state(self._folder, self._head, self._optimizer, Memory(0), state, self._spec.keep_checkpoints)
        self._saved = time.monotonic()

    def _step(self, step: int, batch: Batch) -> tuple[float, float]:
        """Take one step; return its loss and its learning rate."""
        items, groups = self._pairs(batch)
        seed_draws(step_seed(self._seed, step, _HEAD), self._device)
        rows = items["image"].rows, items["text"].rows
        negatives = hard_negatives(*rows, self._matching.negatives, self._matching.temperature, groups)
        self._optimizer.zero_grad()
        value = add_gradients(self._head, items, negatives, self._matching.micro_batch_size)
        if not value < float("inf"):
            raise DivergedError(f"{self._name}: step {step + 1}: the matching loss is {value}; lower train.matching.lr")
        lr = learning_rate(self._spec, step, self._setup.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._spec.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._head.parameters(), self._spec.grad_clip)
        self._optimizer.step()
        return value, lr

    @torch.no_grad()
    def _pairs(self, batch: Batch) -> tuple[dict[str, Items], Tensor | None]:
        """The pairs of a batch, row by row, as the towers give them, and their groups."""
        first, second, groups = batch.pairs[IMAGE_TEXT]
        items = {}
        for modality, places in zip(MODALITIES, (first, second), strict=True):
            inputs = batch.inputs[modality]
            inputs_of_parts = torch.split(inputs, self._matching.micro_batch_size or len(inputs))
            parts = [self._towers.forward_tokens(modality, moved(part, self._device)) for part in inputs_of_parts]
            found = Items(*(torch.cat(of_parts) for of_parts in zip(*parts, strict=True)))
            items[modality] = found if places is None else found.take(moved(places, self._device))
        return items, groups if groups is None else moved(groups, self._device)

    def _validate(self, done: int, epoch: int, best: Best, log: TrainingLog) -> Best:
        """R@1 on the validation images, the first hits reranked; the mean of both directions picks the best head."""
        setup = self._setup
        match = Matcher(self._head, self._towers, setup.inputs, setup.validation.split)
        val = setup.validation.recall(self._towers, setup.inputs, match)
        log.write({"step": done, "epoch": epoch, "val_R@1": val})
        mean = (val["i2t"] + val["t2i"]) / 2
        if mean < best.mean:
            return best
        return Best(mean=mean, step=done, val=val, checksum=save_head(self._folder / HEAD_FILE, self._head))


def _on_pairs_alone(spec: Train) -> Train:
    """How the head is trained: on the pairs of the data, by the optimizer of the towers."""
    assert spec.matching is not None
    own = spec.matching.model_dump(include={"epochs", "batch_size", "lr"})
    alone = {"objective": spec.objective.pairwise_alone(), "self_training": None, "micro_batch_size": None}
    return spec.model_copy(update={**own, **alone})
