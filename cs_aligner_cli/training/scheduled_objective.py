"""From the recipe's objective to the terms of one training step: bandwidths and weights change as it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cs_aligner_cli.objectives import (
    Clouds,
    Term,
    TermValues,
    auto_bandwidth,
    direction_agreement,
    median_bandwidth,
    on_clouds,
    on_pairs,
    on_sums,
    on_tokens,
    pseudo_pairs,
    structure,
)
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Edge
from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.objectives.gram import GramDivergence
from cs_aligner_cli.objectives.levels import on_group_clouds, on_level
from cs_aligner_cli.objectives.noise_filter import without_noise
from cs_aligner_cli.objectives.table import APPROXIMATIONS, DIVERGENCES, JOINT, PAIRWISE, UNPAIRED_NEGATIVES
from cs_aligner_cli.objectives.terms import (
    Sums,
    TermLoss,
    on_features,
    on_pairs_and_queue,
    on_pairs_and_unpaired,
    on_pseudo_pairs,
)
from cs_aligner_cli.objectives.token_exchange import on_token_exchange
from cs_aligner_cli.recipe.bandwidths import AnnealedBandwidth, AutoBandwidth, MedianBandwidth
from cs_aligner_cli.recipe.objective import (
    AnyDivergence,
    CauchySchwarz,
    Energy,
    GeneralizedCs,
    Hoelder,
    Mmd,
    Objective,
)
from cs_aligner_cli.recipe.weights import RelativeWeight, ScheduledWeight
from cs_aligner_cli.training.teacher import Teacher

# The names of further terms in logs.
TOKENS, STRUCTURE, TEACHER, PSEUDO_PAIRS, AGREEMENT = "tokens", "structure", "teacher", "pseudo_pairs", "agreement"
EXCHANGE = "token_exchange"
# Rows that a median bandwidth is taken of.
_MEDIAN_ROWS = 512
_NAMED_BANDWIDTHS: dict[str, MedianBandwidth | AutoBandwidth] = {"median": MedianBandwidth(), "auto": AutoBandwidth()}


@dataclass(frozen=True)
class ObjectiveState:
    """What an objective carries from one step to the next; a step takes one and returns the next.

    ``sigma``: the bandwidth that was chosen before training, or the smoothed median. ``weight``: the relative weight
    as it was measured last. ``bandwidth``: the sigmas in force at the last step. ``left_out_pairs`` of
    ``judged_pairs``: what the noise filter has left out of the steps so far.
    """

    sigma: float | None = None
    weight: float | None = None
    bandwidth: tuple[float, ...] = ()
    left_out_pairs: int = 0
    judged_pairs: int = 0

    def describe(self) -> dict[str, Any]:
        """What is in force, for the log: the bandwidth where there is one, and what the noise filter has done."""
        filtered = {"left_out_pairs": self.left_out_pairs, "judged_pairs": self.judged_pairs}
        bandwidth = {"bandwidth": list(self.bandwidth)} if self.bandwidth else {}
        return {**bandwidth, **(filtered if self.judged_pairs else {})}


class TrainingObjective:
    """The terms of every step, a function of the step, its clouds and the state that the step before left."""

    def __init__(
        self, spec: Objective, steps: int, edges: Sequence[Edge] = (IMAGE_TEXT,), teacher: Teacher | None = None
    ) -> None:
        self._spec, self._steps, self._edges, self._teacher = spec, steps, edges, teacher
        self.pairwise, self.divergence = spec.pairwise.kind, spec.divergence.kind
        options = spec.pairwise.model_dump(
            exclude={"kind", "weight", "logit_scale", "logit_bias", "unpaired_negatives"}
        )
        self._sums: Sums | None = None
        if spec.pairwise.sees_unpaired:
            self._pairwise_loss = on_pairs_and_unpaired(UNPAIRED_NEGATIVES[self.pairwise], edges)
        elif self.pairwise == "infonce":
            self._sums, self._pairwise_loss = "infonce", on_sums("infonce", edges)
        else:
            self._pairwise_loss = on_pairs(partial(PAIRWISE[self.pairwise], **options), edges)
        self._bandwidth: MedianBandwidth | AutoBandwidth | AnnealedBandwidth | list[float] | float | None = None
        if isinstance(spec.divergence, CauchySchwarz | Mmd | Hoelder | GeneralizedCs):
            given = spec.divergence.bandwidth
            self._bandwidth = _NAMED_BANDWIDTHS[given] if isinstance(given, str) else given

    @property
    def convention(self) -> str | None:
        """What a rule for the bandwidth takes it from, in words, where other conventions are in use."""
        rule = self._bandwidth
        if not isinstance(rule, MedianBandwidth):
            return None
        return (
            f"bandwidth median: {rule.factor:g} x the median distance (not squared) between two rows of images and "
            f"texts pooled, every {rule.every} steps, smoothed with momentum {rule.momentum:g}"
        )

    def wants_start(self, state: ObjectiveState) -> bool:
        """Whether ``start`` has to be called before the first step."""
        return isinstance(self._bandwidth, AutoBandwidth) and state.sigma is None

    def start(self, image: Tensor, text: Tensor) -> ObjectiveState:
        """The state with the bandwidth chosen on held-out embeddings (M, d) and (N, d), as ``auto_bandwidth``."""
        assert isinstance(self._bandwidth, AutoBandwidth)
        return ObjectiveState(sigma=auto_bandwidth(image, text, self._bandwidth.effective_share))

    def without_noise(self, step: int, clouds: Clouds, state: ObjectiveState) -> tuple[Clouds, ObjectiveState]:
        """The clouds of a step without the pairs that the noise filter takes for none, where it is at work."""
        spec = self._spec.noise_filter
        if spec is None or step < spec.begin * self._steps:
            return clouds, state
        kept, left, judged = without_noise(clouds, self._edges, spec.deviations)
        left, judged = left + state.left_out_pairs, judged + state.judged_pairs
        return kept, replace(state, left_out_pairs=left, judged_pairs=judged)

    def terms(self, step: int, clouds: Clouds, state: ObjectiveState) -> tuple[list[Term], ObjectiveState]:
        """The pairwise term, the divergence and what other terms there are, of one step with these clouds."""
        divergence = self._spec.divergence
        sigmas, sigma = self._sigmas(step, clouds, state.sigma)
        weight, relative = self._weight(step, state.weight)
        sums = _kernel_sums(divergence, sigmas)
        loss = on_sums(sums, self._edges) if sums else _divergence_loss(divergence, sigmas, self._edges)
        terms = [
            Term(self.pairwise, self._spec.pairwise.weight, self._pairwise_loss, sums=self._sums),
            Term(self.divergence, weight, loss, relative, sums),
        ]
        levels = self._levels(_divergence_loss(divergence, sigmas, (IMAGE_TEXT,)))
        return [*terms, *levels, *self._further_terms(step)], replace(state, sigma=sigma, bandwidth=sigmas)

    def _levels(self, divergence: TermLoss) -> Iterator[Term]:
        for level in self._spec.levels:
            name = f"level_{level.group}"
            yield Term(name, level.weight, on_level(level.group))
            if level.divergence:  # of all tokens of a batch, so not for the log alone
                yield Term(f"{name}_{self.divergence}", level.divergence, on_group_clouds(divergence, level.group))

    def _further_terms(self, step: int) -> Iterator[Term]:
        tokens, kept, teacher = self._spec.tokens, self._spec.structure, self._spec.teacher
        labelled = self._spec.pseudo_pairs
        if tokens is not None:
            yield Term(TOKENS, tokens.weight, on_tokens(tokens.bandwidth))
        if (exchange := self._spec.token_exchange) is not None:
            mixing = on_token_exchange(exchange.share, exchange.partner)
            yield Term(EXCHANGE, self._scheduled(step, exchange.weight), mixing)
        if kept is not None:
            loss = on_features(partial(structure, kind=kept.kind, temperature=kept.temperature))
            yield Term(STRUCTURE, self._scheduled(step, kept.weight), loss)
        if teacher is not None:
            assert self._teacher is not None, "a teacher is fitted before the first step"
            yield Term(TEACHER, self._scheduled(step, teacher.weight), self._teacher.term(teacher.epsilon))
        if labelled is not None:
            loss = on_pseudo_pairs(partial(pseudo_pairs, kind=labelled.kind, temperature=labelled.temperature))
            yield Term(PSEUDO_PAIRS, self._scheduled(step, labelled.weight), loss)
        if (agreeing := self._spec.agreement) is not None:
            between = on_pairs_and_queue(direction_agreement, self._edges)
            yield Term(AGREEMENT, self._scheduled(step, agreeing.weight), between)

    def observe(self, state: ObjectiveState, values: TermValues) -> ObjectiveState:
        """The state with the weight that a step was evaluated with, for the steps until it is measured again."""
        if isinstance(self._spec.divergence.weight, RelativeWeight):
            return replace(state, weight=values.weights[self.divergence])
        return state

    def _weight(self, step: int, measured: float | None) -> tuple[float, float | None]:
        """The weight of a step, or the ratio that it is measured by."""
        weight = self._spec.divergence.weight
        if isinstance(weight, RelativeWeight):
            if step % weight.every == 0 or measured is None:
                return 0.0, weight.ratio
            return measured, None
        return self._scheduled(step, weight), None

    def _scheduled(self, step: int, weight: float | ScheduledWeight) -> float:
        if not isinstance(weight, ScheduledWeight):
            return weight
        done = (step / max(1, self._steps) - weight.begin) / (weight.until - weight.begin)
        return weight.start + (weight.end - weight.start) * min(max(done, 0.0), 1.0)

    def _sigmas(self, step: int, clouds: Clouds, former: float | None) -> tuple[tuple[float, ...], float | None]:
        """The sigmas of a step's kernels, and the one to remember."""
        rule = self._bandwidth
        if rule is None:
            return (), former
        if isinstance(rule, AnnealedBandwidth):
            done = min(1.0, step / max(1.0, rule.until * self._steps))
            return (rule.start * (rule.end / rule.start) ** done,), former
        if isinstance(rule, list | float):
            return (tuple(rule) if isinstance(rule, list) else (rule,)), former
        if isinstance(rule, MedianBandwidth) and (step % rule.every == 0 or former is None):
            first, *others = clouds.evenly_spaced(_MEDIAN_ROWS)
            found = rule.factor * median_bandwidth(first, torch.cat(others), _MEDIAN_ROWS)
            former = rule.momentum * (found if former is None else former) + (1 - rule.momentum) * found
        assert former is not None, "start() chooses what bandwidth: auto is"
        return (former,), former


def _divergence_loss(spec: AnyDivergence, sigmas: tuple[float, ...], edges: Sequence[Edge]) -> TermLoss:
    """A divergence of all clouds at once, or the mean over edges of one of two clouds."""
    if spec.kind in JOINT:
        return lambda clouds, logits: JOINT[spec.kind]([*map(clouds.cloud, clouds.rows)], bandwidth=sigmas)
    return on_clouds(_divergence(spec, sigmas), edges)


def _divergence(spec: AnyDivergence, sigmas: tuple[float, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    function = DIVERGENCES[spec.kind]
    options = spec.model_dump(exclude={"kind", "weight", "bandwidth", "approximation"})
    if sigmas:
        options["bandwidth"] = sigmas
    if isinstance(spec, CauchySchwarz) and spec.approximation:
        function = APPROXIMATIONS[spec.approximation.kind]
        options = {"bandwidth": sigmas, **spec.approximation.model_dump(exclude={"kind"})}
    return partial(function, **options)


def _kernel_sums(spec: AnyDivergence, sigmas: tuple[float, ...]) -> GramDivergence | None:
    """The kernel sums that a divergence is made of, where it is, so that they can share tiles with InfoNCE."""
    if isinstance(spec, Energy):
        return gram_divergence("energy", (), spec.estimator)
    if isinstance(spec, Mmd) or (isinstance(spec, CauchySchwarz) and spec.approximation is None):
        return gram_divergence(spec.kind, sigmas, spec.estimator, spec.products)
    return None
