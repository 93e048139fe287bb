"""One training step: embed the batch, take its whole loss, send the gradient back, move the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cs_aligner_cli.distributed import Ranks
from cs_aligner_cli.errors import CsalignError
from cs_aligner_cli.layout import MODALITIES
from cs_aligner_cli.objective import TrainingObjective
from cs_aligner_cli.objectives import Term, TermValues, conflict, evaluate_terms
from cs_aligner_cli.optimization import learning_rate, loss_scaler, make_optimizer, step_seed
from cs_aligner_cli.recipe_objective import AnyPairwise, LogitBias, LogitScale
from cs_aligner_cli.recipe_train import Train
from cs_aligner_cli.towers import Towers


class DivergedError(CsalignError):
    """A loss became infinite or NaN: the settings do not train."""

    exit_code = 2


def logit_specs(pairwise: AnyPairwise) -> tuple[LogitScale | None, LogitBias | None]:
    """How the logits' scale and bias are trained, None where the pairwise term has none."""
    return getattr(pairwise, "logit_scale", None), getattr(pairwise, "logit_bias", None)


class Stepper:
    """The optimizer steps of one training run.

    A step is a function of its number, its batch and the state (weights, optimizer, ``objective.state``, ``scaler``):
    all random draws are seeded by the number, and whether a step is logged changes nothing of what it does.
    """

    def __init__(
        self, spec: Train, towers: Towers, steps: int, seed: int, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self._ranks = ranks or Ranks()
        self._spec, self._towers, self._steps = spec, towers, steps
        self._seed, self._device = seed, device
        self._scale, bias = logit_specs(spec.objective.pairwise)
        towers.log_logit_scale.requires_grad_(self._scale is not None and self._scale.learn)
        towers.logit_bias.requires_grad_(bias is not None and bias.learn)
        self.objective = TrainingObjective(spec.objective, steps)
        self.optimizer = make_optimizer(towers, spec)
        self.scaler = loss_scaler(towers, towers.precision, device)

    def logs(self, done: int) -> bool:
        """Whether the step that makes it ``done`` steps is written to the log."""
        every = [steps for steps in (self._spec.log_steps, self._spec.conflict_steps) if steps]
        return any(done % steps == 0 for steps in every) or done == self._steps

    def step(self, step: int, batch: dict[str, Tensor], groups: Tensor) -> dict[str, Any]:
        """Take one optimizer step on ``groups.shape[0]`` pairs; return what is logged of it.

        ``batch`` holds the inputs of this rank's share of the pairs: all of them where there is one process.
        Raises DivergedError, before anything is changed, where the loss or a term that counts is not finite.
        """
        self._towers.train()
        share = self._ranks.share_of_batch(len(groups), self._spec.micro_batch_size)
        # Cached accumulation (GradCache, Gao et al., arXiv 2101.06983): the loss needs all embeddings, but the towers'
        # graphs only their own gradients. So embed in parts, take the whole batch's loss, and embed again with a graph.
        # Ranks are one more way to split: each has some of the parts, and all of the embeddings.
        whole = len(share.parts) == 1
        with torch.set_grad_enabled(whole):
            embedded = [
                [self._forward(step, number, m, batch[m][part]) for number, part in share.parts] for m in MODALITIES
            ]
        own = [outputs[0] if whole else torch.cat(outputs) for outputs in embedded]
        image, text = (self._ranks.gather(rows, share.counts) for rows in own)
        terms = self.objective.terms(step, image.detach(), text.detach())
        logits = self._towers.logits
        values, norms = self._evaluate(step, terms, image, text, groups.to(self._device))
        self.objective.observe(values)
        losses = {name: float(value) for name, value in values.values.items()}
        self._refuse_non_finite(step, losses, values)

        lr = self._start_update(step)
        gradients = {"image": values.image_grad[share.rows], "text": values.text_grad[share.rows]}
        # Every rank knows the whole gradient of the logits' scalars, but the sum over ranks must have it once.
        counted = [g if self._ranks.main else torch.zeros_like(g) for g in values.logit_grads]
        self._backward(zip(logits, counted, strict=True))
        for number, part in share.parts:
            outputs = own if whole else (self._forward(step, number, m, batch[m][part]) for m in MODALITIES)
            self._backward((output, gradients[m][part]) for m, output in zip(MODALITIES, outputs, strict=True))
        self._ranks.add_gradients(self._towers.parameters())
        norm = self._finish_update()
        return {
            "lr": lr,
            "loss": float(values.total),
            "terms": losses,
            "weights": values.weights,
            "grad_norm_ratio": {self.objective.divergence: _ratio(norms)},
            "grad_norm": norm if math.isfinite(norm) else None,  # fp16: this step was left out
            "logit_scale": float(logits.scale.detach()),
            **self.objective.describe(),
            **self._conflict(step + 1, terms[1], values, image.detach(), text.detach()),
        }

    def _forward(self, step: int, part: int, modality: str, inputs: Tensor) -> Tensor:
        """Embed one part of a batch; the same call draws the same dropout again."""
        torch.manual_seed(step_seed(self._seed, step, part, MODALITIES.index(modality)))
        return self._towers(modality, inputs.to(self._device))  # type: ignore[no-any-return]

    def _evaluate(
        self, step: int, terms: list[Term], image: Tensor, text: Tensor, groups: Tensor
    ) -> tuple[TermValues, dict[str, Tensor]]:
        """The terms on one batch, and their gradients' norms where the step is logged."""
        seed, logits = step_seed(self._seed, step), self._towers.logits
        torch.manual_seed(seed)  # for the directions of a sliced divergence
        values = evaluate_terms(terms, image, text, logits, groups, separate=False)
        norms = values.grad_norms
        if not norms and self.logs(step + 1):
            torch.manual_seed(seed)
            norms = evaluate_terms(terms, image, text, logits, groups, separate=True).grad_norms
        return values, norms

    def _refuse_non_finite(self, step: int, losses: dict[str, float], values: TermValues) -> None:
        told = {f"the term {name}": value for name, value in losses.items() if values.weights[name]}
        for what, value in {**told, "the loss": float(values.total)}.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"step {step + 1}: {what} is {value}\n"
                    "A lower train.lr, a longer warm-up, a wider bandwidth or a smaller weight usually helps."
                )

    def _start_update(self, step: int) -> float:
        lr = learning_rate(self._spec, step, self._steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad()
        return lr

    def _backward(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Send gradients through the graphs of those outputs that have one."""
        trained = [(output, gradient) for output, gradient in outputs if output.requires_grad]
        torch.autograd.backward([output for output, _ in trained], [self.scaler.scale(g) for _, g in trained])

    def _finish_update(self) -> float:
        """Clip and apply the gradients; return their norm."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._towers.parameters(), self._spec.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._scale:
            with torch.no_grad():  # open_clip clamps after the step, too
                self._towers.log_logit_scale.clamp_(0, math.log(self._scale.max))
        return float(norm)

    def _conflict(self, done: int, divergence: Term, values: TermValues, image: Tensor, text: Tensor) -> dict[str, Any]:
        """What alignment and uniformity do to each other on this batch, where it is asked for."""
        if not self._spec.conflict_steps or done % self._spec.conflict_steps:
            return {}
        logits = self._towers.logits
        found = conflict(
            image,
            text,
            float(logits.scale.detach()),
            lambda x, y: divergence.loss(x, y, logits, None),
            values.weights[divergence.name],
        )
        return {"conflict": found}


def _ratio(grad_norms: dict[str, Tensor]) -> float | None:
    """The divergence's gradient norm in norms of the pairwise term's; None where they were not taken apart."""
    if not grad_norms:
        return None
    pairwise, divergence = map(float, grad_norms.values())
    return divergence / pairwise if pairwise else None
