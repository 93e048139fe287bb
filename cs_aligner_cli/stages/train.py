"""train: the training loop, readable from top to bottom, over cached features and live encoders alike."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.artifacts import Build
from cs_aligner_cli.checkpoint import load_state, load_weights, save_state, save_weights
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.batches import PairBatches, Rows, captions_of, hold_out, prefetched
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders import Encoder, load_encoders, pick_device
from cs_aligner_cli.errors import CsalignError, InputError
from cs_aligner_cli.layout import MODALITIES, Layout
from cs_aligner_cli.objective import TrainingObjective
from cs_aligner_cli.objectives import Term, TermValues, conflict, evaluate_terms
from cs_aligner_cli.optimization import learning_rate, make_optimizer, step_seed
from cs_aligner_cli.recipe import Recipe
from cs_aligner_cli.recipe_encoders import OPEN_CLIP_FOLDER
from cs_aligner_cli.recipe_objective import LogitBias, LogitScale
from cs_aligner_cli.recipe_train import Train
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.store import Store
from cs_aligner_cli.towers import Inputs, Towers, embed_split, plan_towers


class DivergedError(CsalignError):
    """A loss became infinite or NaN: the settings do not train."""

    exit_code = 2


def train(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Train every variant of a recipe; return {"status": done or fresh, "runs": {variant: summary}}.

    A run that was interrupted goes on from its last checkpoint and ends as if it had not been. Raises InputError if
    the recipe trains nothing or what it trains on is missing or stale, DivergedError on a non-finite loss.
    """
    layout = Layout(recipe)
    if not layout.variants:
        why = "embed.weights names weights" if recipe.train else "train is null"
        raise InputError(f"this recipe trains nothing: {why}")
    runs: dict[str, Any] = {}
    for name, spec in layout.variants.items():
        artifact = layout.trained(name)
        for need in artifact.needs:
            need.require()
        record = None if force else artifact.fresh()
        if record is None:
            with artifact.building() as build:
                build.summary = _Run(recipe, spec, layout, build, console, name).run()
            record = artifact.record() or {}
            runs[name] = {"status": "done", "seconds": record["seconds"], **record["summary"]}
        else:
            runs[name] = {"status": "fresh", "seconds": record["seconds"], **record["summary"]}
    done = any(run["status"] == "done" for run in runs.values())
    return {"status": "done" if done else "fresh", "runs": runs}


class _Run:
    """One training run: what it trains on, and the loop."""

    def __init__(self, recipe: Recipe, spec: Train, layout: Layout, build: Build, console: Console, name: str) -> None:
        self.spec, self.name, self.console = spec, name, console
        self.seed, self.folder = recipe.seed, build.folder
        self.device = pick_device(spec.device)
        data = PreparedData(layout.prepared.path)
        self.split = data.split(spec.split, "train.split")
        self.val_split = data.split(spec.val_split, "train.val_split") if spec.val_split else self.split
        train_rows, self.val_rows = self._parts()
        self.batches = PairBatches(self.split, train_rows, spec.batch_size, recipe.seed)
        self.steps = self.batches.steps_per_epoch * spec.epochs

        stores = {s: Store(layout.frozen(s).path) for s in layout.training_splits} if spec.cached_towers else {}
        live = [m for m in MODALITIES if getattr(spec, m).tune == "full"]
        encoders = load_encoders(recipe, data, self.device) if live else {}
        torch.manual_seed(recipe.seed)
        plans = plan_towers(spec, {m: _dim(m, {k: encoders[k] for k in live}, stores) for m in MODALITIES})
        self.scale_spec: LogitScale | None = getattr(spec.objective.pairwise, "logit_scale", None)
        self.bias_spec: LogitBias | None = getattr(spec.objective.pairwise, "logit_bias", None)
        starts = [part.init if part else fallback for part, fallback in ((self.scale_spec, 1.0), (self.bias_spec, 0.0))]
        self.towers = Towers(plans, encoders, *starts).to(self.device)
        self.inputs = Inputs(plans, encoders, stores)
        whole_clip = len(live) == len(MODALITIES) and encoders["image"].clip is encoders["text"].clip
        self.clip = encoders["image"].clip if whole_clip else None
        self.towers.log_logit_scale.requires_grad_(self.scale_spec is not None and self.scale_spec.learn)
        self.towers.logit_bias.requires_grad_(self.bias_spec is not None and self.bias_spec.learn)
        self.optimizer = make_optimizer(self.towers, spec)
        self.objective = TrainingObjective(spec.objective, self.steps)

    def _parts(self) -> tuple[Rows, Rows]:
        """Image rows to train on and to validate on."""
        spec = self.spec
        train_rows, held_out = hold_out(self.split, spec.val_fraction, self.seed)
        if spec.val_split:
            train_rows = np.union1d(train_rows, held_out)
            held_out = np.unique(self.val_split.image_of_caption[self.val_split.image_of_caption >= 0])
        if len(train_rows) < 2:
            raise InputError(f"train.split: split {spec.split!r} leaves {len(train_rows)} captioned images to train on")
        return train_rows, held_out

    def run(self) -> dict[str, Any]:
        """Train to the end; return the summary for the stage's record."""
        state = load_state(self.folder, self.towers, self.optimizer)
        if state is None:
            state = {"step": 0, "log_bytes": 0, "best": -1.0, "best_step": 0, "val": {}, "objective": {}}
        elif state["step"]:
            self.console.say(f"{self.name}: going on from step {state['step']} of {self.steps}")
        self.objective.state = state["objective"]
        if self.objective.convention:
            self.console.say(f"{self.name}: {self.objective.convention}")
        if self.objective.wants_start:
            self._start_objective()
        remaining = range(state["step"], self.steps)
        with (
            _open_log(self.folder / "metrics.jsonl", state["log_bytes"]) as log,
            self.console.progress(f"training {self.name}", self.steps, done=state["step"]) as advance,
        ):
            for step, (batch, groups) in zip(remaining, prefetched(self._load, remaining), strict=True):
                metrics = self._step(step, batch, groups)
                done = step + 1
                epoch_ends = done % self.batches.steps_per_epoch == 0
                if self._logs(done):
                    _write(log, metrics)
                if epoch_ends:
                    self._validate(done, state, log)
                if epoch_ends or (self.spec.checkpoint_steps and done % self.spec.checkpoint_steps == 0):
                    state |= {"step": done, "log_bytes": log.tell(), "objective": self.objective.state}
                    save_state(self.folder, self.towers, self.optimizer, state)
                advance(1, f"loss {metrics['loss']:.3f}, best val R@1 {max(state['best'], 0):.3f}")
        save_weights(self.folder / "last.safetensors", self.towers)
        self._export_clip()
        return {
            "steps": self.steps,
            "epochs": self.spec.epochs,
            "batch_size": self.batches.batch_size,
            "train_images": self.batches.images,
            "val_images": len(self.val_rows),
            "trainable_parameters": sum(p.numel() for p in self.towers.parameters() if p.requires_grad),
            "best_step": state["best_step"],
            "val_R@1": state["val"],
            **self.objective.describe(),
        }

    def _load(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        images, captions = self.batches.pairs(step)
        rows = {"image": images, "text": captions}
        return {m: self.inputs(m, self.split, rows[m]) for m in MODALITIES}, torch.from_numpy(images)

    def _logs(self, done: int) -> bool:
        every = [steps for steps in (self.spec.log_steps, self.spec.conflict_steps) if steps]
        return any(done % steps == 0 for steps in every) or done == self.steps

    def _start_objective(self) -> None:
        """Let the objective choose its bandwidth on the held-out pairs, one caption each, before training."""
        captions = captions_of(self.val_split, self.val_rows)
        _, firsts = np.unique(self.val_split.image_of_caption[captions], return_index=True)
        embedded = self._embed_val({"image": self.val_rows, "text": captions[firsts]})
        sigma = self.objective.start(*(torch.from_numpy(embedded[m]) for m in MODALITIES))
        self.console.say(
            f"{self.name}: bandwidth auto: sigma {sigma:.4g}, chosen on {len(self.val_rows)} held-out pairs"
        )

    def _step(self, step: int, batch: dict[str, Tensor], groups: Tensor) -> dict[str, Any]:
        """One optimizer step; returns what is logged of it."""
        self.towers.train()
        size = len(groups)
        parts = [slice(i, i + self._micro(size)) for i in range(0, size, self._micro(size))]
        # Cached accumulation (GradCache, Gao et al., arXiv 2101.06983): the loss needs all embeddings, but the towers'
        # graphs only their own gradients. So embed in parts, take the whole batch's loss, and embed again with a graph.
        whole = len(parts) == 1
        with torch.set_grad_enabled(whole):
            embedded = [
                [self._forward(step, number, m, batch[m][part]) for number, part in enumerate(parts)]
                for m in MODALITIES
            ]
            image, text = (torch.cat(outputs) if not whole else outputs[0] for outputs in embedded)
        logits = self.towers.logits
        terms = self.objective.terms(step, image.detach(), text.detach())
        values, norms = self._evaluate(step, terms, image, text, groups.to(self.device))
        self.objective.observe(values)
        losses = {name: float(value) for name, value in values.values.items()}
        self._refuse_non_finite(step, losses, values.weights)

        lr = learning_rate(self.spec, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        gradients = {"image": values.image_grad, "text": values.text_grad}
        _backward(zip(logits, values.logit_grads, strict=True))
        for number, part in enumerate(parts):
            outputs = (image, text) if whole else (self._forward(step, number, m, batch[m][part]) for m in MODALITIES)
            _backward((output, gradients[m][part]) for m, output in zip(MODALITIES, outputs, strict=True))
        norm = torch.nn.utils.clip_grad_norm_(self.towers.parameters(), self.spec.grad_clip or math.inf)
        self.optimizer.step()
        if self.scale_spec:
            with torch.no_grad():  # open_clip clamps after the step, too
                self.towers.log_logit_scale.clamp_(0, math.log(self.scale_spec.max))
        return {
            "step": step + 1,
            "epoch": step // self.batches.steps_per_epoch + 1,
            "lr": lr,
            "loss": float(values.total),
            "terms": losses,
            "weights": values.weights,
            "grad_norm_ratio": {self.objective.divergence: _ratio(norms)},
            "grad_norm": float(norm),
            "logit_scale": float(logits.scale.detach()),
            **self.objective.describe(),
            **self._conflict(step + 1, terms[1], values, image.detach(), text.detach()),
        }

    def _evaluate(
        self, step: int, terms: list[Term], image: Tensor, text: Tensor, groups: Tensor
    ) -> tuple[TermValues, dict[str, Tensor]]:
        """The terms on one batch, and their gradients' norms where the step is logged.

        What a step is worth does not depend on whether it is logged, not even in its last bit.
        """
        seed = step_seed(self.seed, step)  # for the directions of a sliced divergence
        torch.manual_seed(seed)
        values = evaluate_terms(terms, image, text, self.towers.logits, groups, separate=False)
        norms = values.grad_norms
        if not norms and self._logs(step + 1):
            torch.manual_seed(seed)
            norms = evaluate_terms(terms, image, text, self.towers.logits, groups, separate=True).grad_norms
        return values, norms

    def _conflict(self, done: int, divergence: Term, values: TermValues, image: Tensor, text: Tensor) -> dict[str, Any]:
        """What alignment and uniformity do to each other on this batch, where it is asked for."""
        if not self.spec.conflict_steps or done % self.spec.conflict_steps:
            return {}
        logits = self.towers.logits
        found = conflict(
            image,
            text,
            float(logits.scale.detach()),
            lambda x, y: divergence.loss(x, y, logits, None),
            values.weights[divergence.name],
        )
        return {"conflict": found}

    def _micro(self, size: int) -> int:
        """Pairs that go through the towers at once."""
        return min(self.spec.micro_batch_size or size, size)

    def _forward(self, step: int, part: int, modality: str, inputs: Tensor) -> Tensor:
        """Embed one part of a batch; the same call draws the same dropout again."""
        torch.manual_seed(step_seed(self.seed, step, part, MODALITIES.index(modality)))
        return self.towers(modality, inputs.to(self.device))  # type: ignore[no-any-return]

    def _refuse_non_finite(self, step: int, terms: dict[str, float], weights: dict[str, float]) -> None:
        for name, value in terms.items():
            if weights[name] and not math.isfinite(value):
                raise DivergedError(
                    f"{self.name}: step {step + 1}: the term {name} is {value}\n"
                    "A lower train.lr, a longer warm-up or a wider bandwidth usually helps."
                )

    def _validate(self, step: int, state: dict[str, Any], log: TextIO) -> None:
        """R@1 on the validation images with all their captions; the mean of both directions picks the best weights."""
        captions = captions_of(self.val_split, self.val_rows)
        rows = {"image": self.val_rows, "text": captions}
        embedded = self._embed_val(rows)
        image_of_text = np.searchsorted(self.val_rows, self.val_split.image_of_caption[captions])
        found = evaluate_retrieval(embedded["image"], embedded["text"], image_of_text, ks=(1,))
        val = {direction: found[direction]["R@1"] for direction in ("i2t", "t2i")}
        _write(log, {"step": step, "epoch": step // self.batches.steps_per_epoch, "val_R@1": val})
        mean = (val["i2t"] + val["t2i"]) / 2
        if mean >= state["best"]:  # of equals the later one, which has trained longer
            save_weights(self.folder / "best.safetensors", self.towers)
            state |= {"best": mean, "best_step": step, "val": val}

    def _embed_val(self, rows: dict[str, Rows]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        size = self._micro(self.batches.batch_size)
        return {
            m: embed_split(self.towers, self.inputs, m, self.val_split, rows[m], self.device, size) for m in MODALITIES
        }

    def _export_clip(self) -> None:
        """Leave fully trained towers of one open_clip model as an open_clip folder, with the best weights."""
        if self.clip is None:
            return
        load_weights(self.folder / "best.safetensors", self.towers)
        scale, bias = (float(value.detach()) for value in self.towers.logits)
        self.clip.save(self.folder / OPEN_CLIP_FOLDER, scale, bias if self.bias_spec else None)


def _dim(modality: str, live: dict[str, Encoder], stores: dict[str, Store]) -> int:
    if modality in live:
        return live[modality].dim
    return next(iter(stores.values())).array(modality).shape[1]


def _backward(outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Send gradients through the graphs of those outputs that have one."""
    trained = [(output, gradient) for output, gradient in outputs if output.requires_grad]
    torch.autograd.backward([output for output, _ in trained], [gradient for _, gradient in trained])


def _ratio(grad_norms: dict[str, Tensor]) -> float | None:
    """The divergence's gradient norm in norms of the pairwise term's; None where they were not taken apart."""
    if not grad_norms:
        return None
    pairwise, divergence = map(float, grad_norms.values())
    return divergence / pairwise if pairwise else None


def _open_log(path: Path, size: int) -> TextIO:
    """The metrics file cut to the size it had at the checkpoint, so that a resumed run repeats no line."""
    path.touch()
    os.truncate(path, size)
    return path.open("a", encoding="utf-8")


def _write(log: TextIO, metrics: dict[str, Any]) -> None:
    log.write(json.dumps(metrics) + "\n")
    log.flush()
