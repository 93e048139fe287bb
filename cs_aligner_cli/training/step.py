"""One training step: embed the batch, take its whole loss, send the gradient back, move the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from cs_aligner_cli.common.errors import CsalignError, InputError
from cs_aligner_cli.encoders.inputs import joined
from cs_aligner_cli.objectives import Clouds, Pairs, Term, TermValues, conflict, evaluate_terms
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Edge, Logits
from cs_aligner_cli.recipe.pairwise import AnyPairwise, InfoNce, L2Contrastive, LogitBias, LogitScale, SigLip
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import Ranks, Share
from cs_aligner_cli.towers.towers import Towers
from cs_aligner_cli.training.device_inputs import moved
from cs_aligner_cli.training.memory_bank import Memory
from cs_aligner_cli.training.optimizer import learning_rate, loss_scaler, make_optimizer, seed_draws, step_seed
from cs_aligner_cli.training.scheduled_objective import ObjectiveState, TrainingObjective
from cs_aligner_cli.training.teacher import Teacher


class DivergedError(CsalignError):
    """A loss became infinite or NaN: the settings do not train."""

    exit_code = 2


def logit_specs(pairwise: AnyPairwise) -> tuple[LogitScale | None, LogitBias | None]:
    """How the logits' scale and bias are trained, None where the pairwise term has none."""
    scale = pairwise.logit_scale if isinstance(pairwise, InfoNce | SigLip | L2Contrastive) else None
    return scale, pairwise.logit_bias if isinstance(pairwise, SigLip) else None


@torch.no_grad()
def begin_logits(towers: Towers, pairwise: AnyPairwise) -> None:
    """Settle the logits' scale and bias of towers that begin with the weights of another run.

    What is learned goes on from there, within its bounds; what is not is at its start, as it is in other runs, and so
    are both where that run's term has no such scale or bias: it left them at 1 and 0. A bias that is to stay at 0 is
    there in any run.
    """
    scale, bias = logit_specs(pairwise)
    wants_bias = bias is not None and (bias.learn or bias.init != 0)
    lacking = (scale and float(towers.log_logit_scale) == 0) or (wants_bias and float(towers.logit_bias) == 0)
    if lacking or not (scale and scale.learn):
        towers.log_logit_scale.copy_(torch.tensor(scale.init if scale else 1.0).log())
    if lacking or not (bias and bias.learn):
        towers.logit_bias.fill_(bias.init if bias else 0.0)
    _clamp_scale(towers, scale)


@torch.no_grad()
def _clamp_scale(towers: Towers, scale: LogitScale | None) -> None:
    if scale and scale.learn:  # open_clip clamps after the step, too, to at least 1
        towers.log_logit_scale.clamp_(min(0.0, math.log(scale.init)), math.log(scale.max))


class Batch(NamedTuple):
    """What one step is taken on: how many items of each modality, and which of them are pairs.

    ``inputs`` are the towers' inputs (first axis the items): this rank's share, or all in one process. ``features``
    (N, D) are the same items as the frozen encoders give them, where a term sees them.
    """

    inputs: dict[str, Tensor]
    sizes: dict[str, int]
    pairs: dict[Edge, Pairs]
    features: Mapping[str, Tensor] = {}


class Stepper:
    """The optimizer steps of one training run.

    A step is a function of its number, its batch, the objective's state and what it changes in place (weights,
    ``optimizer``, ``scaler``, ``memory``): all random draws are seeded by the number, and whether a step is logged
    changes nothing of it.
    """

    def __init__(
        self,
        spec: Train,
        towers: Towers,
        steps: int,
        seed: int,
        device: torch.device,
        edges: Sequence[Edge] = (IMAGE_TEXT,),
        ranks: Ranks | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._spec, self._towers, self._steps = spec, towers, steps
        self._seed, self._device = seed, device
        self._scale, bias = logit_specs(spec.objective.pairwise)
        towers.log_logit_scale.requires_grad_(self._scale is not None and self._scale.learn)
        towers.logit_bias.requires_grad_(bias is not None and bias.learn)
        self.objective = TrainingObjective(spec.objective, steps, edges, teacher)
        self.optimizer = make_optimizer(towers, spec)
        self.scaler = loss_scaler(towers, towers.precision, device)
        self.memory = Memory(spec.objective.memory, spec.objective.memory_momentum)

    def logs(self, done: int) -> bool:
        """Whether the step that makes it ``done`` steps is written to the log."""
        every = [steps for steps in (self._spec.log_steps, self._spec.conflict_steps) if steps]
        return any(done % steps == 0 for steps in every) or done == self._steps

    def step(self, step: int, batch: Batch, state: ObjectiveState) -> tuple[dict[str, Any], ObjectiveState]:
        """Take one optimizer step on a batch; return what is logged of it, and the state for the next one.

        Raises DivergedError, before anything is changed, where the loss or a term that counts is not finite.
        """
        # Cached accumulation (GradCache, Gao et al., arXiv 2101.06983): the loss needs all embeddings, but the towers'
        # graphs only their own gradients. So embed in parts, take the whole batch's loss, and embed again with a graph.
        # Ranks are one more way to split: each has some of the parts, and their rows of the embeddings.
        self._towers.train()
        shares = {m: self._ranks.share_of_batch(size, self._spec.micro_batch_size) for m, size in batch.sizes.items()}
        own = {m: self._embed(step, m, batch.inputs[m], share) for m, share in shares.items()}
        clouds, state = self.objective.without_noise(step, self._clouds(batch, own, shares), state)

        terms, state = self.objective.terms(step, clouds, state)
        values, norms = self._evaluate(step, terms, clouds)
        state = self.objective.observe(state, values)
        logits = self._towers.logits
        read = _read({**values.values, "": values.total, "logit_scale": logits.scale})
        _refuse_non_finite(step, {name: read[name] for name in values.values if values.weights[name]}, read[""])

        lr = learning_rate(self._spec, step, self._steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad()
        # Every rank knows the whole gradient of the logits' scalars, but the sum over ranks must have it once.
        once = [g if self._ranks.main else torch.zeros_like(g) for g in values.logit_grads]
        self._backward(zip(logits, once, strict=True))
        for m, share in shares.items():
            self._backward_through_tower(step, m, batch.inputs[m], share, own[m], values)
        self._ranks.all_reduce_gradients(self._towers.parameters())
        norm = self._update()
        if self.memory.size:
            self.memory.add(self._remembered(batch, shares, clouds.whole), clouds.whole.features, clouds.pairs)
        return {
            "lr": lr,
            "loss": read[""],
            "terms": {name: read[name] for name in values.values},
            "weights": values.weights,
            "grad_norm_ratio": _ratios(terms, norms),
            "grad_norm": self._norm(step, norm),
            "logit_scale": read["logit_scale"],
            **state.describe(),
            **self._conflict(step + 1, terms[1], values, clouds),
        }, state

    def _embed(self, step: int, modality: str, inputs: Tensor, share: Share) -> tuple[Tensor, ...]:
        """``_forward`` of this rank's rows, with their graph where they went through the tower at once."""
        with torch.set_grad_enabled(len(share.parts) == 1):
            outputs = [self._forward(step, number, modality, inputs[part]) for number, part in share.parts]
        return outputs[0] if len(outputs) == 1 else tuple(map(joined, zip(*outputs, strict=True)))

    def _clouds(self, batch: Batch, own: dict[str, tuple[Tensor, ...]], shares: dict[str, Share]) -> Clouds:
        """The embeddings of this rank's share of the batch, and its tokens and features where a term sees them."""
        return Clouds(
            {m: outputs[0].detach() for m, outputs in own.items()},
            {edge: Pairs(*(i if i is None else moved(i, self._device) for i in p)) for edge, p in batch.pairs.items()},
            dict(self.memory.rows),
            {m: tokens.detach() for m, (_, *found) in own.items() for tokens in found},
            {m: moved(found, self._device) for m, found in batch.features.items()},
            dict(self.memory.features),
            dict(self.memory.pairs),
            self._ranks,
            {m: share.counts for m, share in shares.items()},
        )

    def _forward(self, step: int, part: int, modality: str, inputs: Tensor) -> tuple[Tensor, ...]:
        """Embed one part of a batch: (N, d) and, where a term sees them, its tokens (N, L, d), padded with NaN.

        The same call draws the same dropout again.
        """
        seed_draws(step_seed(self._seed, step, part, [*self._towers.plans].index(modality)), self._device)
        inputs = moved(inputs, self._device)
        if not self._spec.objective.sees_tokens or self._towers.plans[modality].reads != "tokens":
            return (self._towers(modality, inputs),)
        return self._towers.forward_tokens(modality, inputs)

    def _evaluate(self, step: int, terms: list[Term], clouds: Clouds) -> tuple[TermValues, dict[str, Tensor]]:
        """The terms on one batch; terms of weight 0, and all gradients' norms, only where the step is logged."""
        seed, logits, logged = step_seed(self._seed, step), self._towers.logits, self.logs(step + 1)
        seed_draws(seed, self._device)  # for the directions of a sliced divergence
        values = evaluate_terms(terms, clouds, logits, separate=False, idle=logged)
        norms = values.grad_norms
        if not norms and logged:
            seed_draws(seed, self._device)
            norms = evaluate_terms(terms, clouds, logits, separate=True, idle=False).grad_norms
        return values, norms

    def _backward(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Send gradients through the graphs of those outputs that have one."""
        trained = [(output, gradient) for output, gradient in outputs if output.requires_grad]
        if trained:
            torch.autograd.backward([output for output, _ in trained], [self.scaler.scale(g) for _, g in trained])

    def _backward_through_tower(
        self, step: int, m: str, inputs: Tensor, share: Share, own: tuple[Tensor, ...], values: TermValues
    ) -> None:
        """Send this rank's rows of the gradient back, a part at a time, embedding again where graphs were not kept."""
        gradients = [values.grads[m], *([values.token_grads[m]] if m in values.token_grads else [])]
        for number, part in share.parts:
            outputs = own if len(share.parts) == 1 else self._forward(step, number, m, inputs[part])
            # A part's tokens may be padded to less than those of the whole batch.
            cut = [gradient[part, : output.shape[1]] for output, gradient in zip(outputs, gradients, strict=True)]
            self._backward(zip(outputs, cut, strict=True))

    def _update(self) -> Tensor:
        """Clip and apply the gradients; return their norm."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._towers.parameters(), self._spec.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        _clamp_scale(self._towers, self._scale)
        return norm

    def _remembered(self, batch: Batch, shares: dict[str, Share], clouds: Clouds) -> Mapping[str, Tensor]:
        """What the memory keeps of a step: its embeddings, or those that the average of the towers gives."""
        if self.memory.momentum is None:
            return clouds.rows
        self.memory.average(self._towers.own_state())
        self._towers.eval()
        rows = {}
        for m, share in shares.items():
            parts = [moved(batch.inputs[m][part], self._device) for _, part in share.parts]
            with torch.no_grad():
                own = [functional_call(self._towers, self.memory.averages, (m, inputs)) for inputs in parts]
            rows[m] = self._ranks.all_gather_rows(torch.cat(own), share.counts)
        return rows

    def _norm(self, step: int, norm: Tensor) -> float | None:
        """The gradients' norm where the step is logged; None also where it is not finite: fp16 leaves that step out."""
        if not self.logs(step + 1):
            return None  # reading it would wait for the update
        found = float(norm)
        return found if math.isfinite(found) else None

    def _conflict(self, done: int, divergence: Term, values: TermValues, clouds: Clouds) -> dict[str, Any]:
        """What alignment and uniformity do to each other on this batch's pairs, where it is asked for."""
        if not self._spec.conflict_steps or done % self._spec.conflict_steps:
            return {}
        pairs = clouds.whole.pair(IMAGE_TEXT)[:2]
        return {"conflict": _conflict(pairs, self._towers.logits, divergence, values.weights[divergence.name])}


def _conflict(pairs: tuple[Tensor, Tensor], logits: Logits, divergence: Term, weight: float) -> dict[str, float]:
    scale = float(logits.scale.detach())
    try:
        return conflict(*pairs, scale, lambda x, y: divergence.loss(Clouds.of_pairs(x, y), logits), weight)
    except InputError:  # a divergence may refuse the pairs alone, and what is only logged ends no training
        return conflict(*pairs, scale)


def _read(scalars: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors of one device as numbers: the one time in a step at which the host waits for it."""
    dtype = torch.float64 if any(scalar.dtype == torch.float64 for scalar in scalars.values()) else torch.float32
    found: list[float] = torch.stack([scalar.detach().to(dtype) for scalar in scalars.values()]).tolist()
    return dict(zip(scalars, found, strict=True))


def _refuse_non_finite(step: int, terms: dict[str, float], loss: float) -> None:
    for what, value in {**{f"the term {name}": value for name, value in terms.items()}, "the loss": loss}.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"step {step + 1}: {what} is {value}\n"
                "A lower train.lr, a longer warm-up, a wider bandwidth or a smaller weight usually helps."
            )


def _ratios(terms: list[Term], grad_norms: dict[str, Tensor]) -> dict[str, float | None]:
    """Every other term's gradient norm in norms of the pairwise term's; None where they were not taken apart."""
    pairwise, *others = (term.name for term in terms)
    unit = float(grad_norms[pairwise]) if grad_norms else 0.0
    return {name: float(grad_norms[name]) / unit if unit else None for name in others}
