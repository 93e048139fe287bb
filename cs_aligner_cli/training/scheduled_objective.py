"""From the recipe's objective to the terms of one training step: bandwidths and weights change as it goes on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cs_aligner_cli.objectives import (
    Clouds,
    Logits,
    Term,
    TermValues,
    auto_bandwidth,
    median_bandwidth,
    on_clouds,
    on_pairs,
    on_tokens,
)
from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.objectives.gram import GramDivergence
from cs_aligner_cli.objectives.optimal_transport import require_geomloss
from cs_aligner_cli.objectives.table import APPROXIMATIONS, DIVERGENCES, JOINT, PAIRWISE
from cs_aligner_cli.objectives.terms import IMAGE_TEXT, Edge, PairLoss, TermLoss
from cs_aligner_cli.recipe.objective import (
    AnnealedBandwidth,
    AnyDivergence,
    AnyPairwise,
    AutoBandwidth,
    CauchySchwarz,
    Energy,
    MedianBandwidth,
    Mmd,
    Objective,
    RelativeWeight,
    ScheduledWeight,
)

# The name of the token term in logs.
TOKENS = "tokens"
_NAMED_BANDWIDTHS: dict[str, MedianBandwidth | AutoBandwidth] = {"median": MedianBandwidth(), "auto": AutoBandwidth()}


class TrainingObjective:
    """The terms of every step, and what they remember between steps.

    ``state`` is plain JSON, is saved with every checkpoint, and belongs to the step that comes next.
    """

    def __init__(self, spec: Objective, steps: int, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> None:
        self._spec, self._steps, self._edges = spec, steps, edges
        self.pairwise, self.divergence = spec.pairwise.kind, spec.divergence.kind
        self._pairwise_loss = _pairwise_loss(spec.pairwise)
        bandwidth = getattr(spec.divergence, "bandwidth", None)
        self._bandwidth: MedianBandwidth | AutoBandwidth | AnnealedBandwidth | list[float] | float | None
        self._bandwidth = _NAMED_BANDWIDTHS[bandwidth] if isinstance(bandwidth, str) else bandwidth
        self.state: dict[str, Any] = {}
        if self.divergence == "sinkhorn":
            require_geomloss()

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

    @property
    def wants_start(self) -> bool:
        """Whether ``start`` has to be called before the first step."""
        return isinstance(self._bandwidth, AutoBandwidth) and "sigma" not in self.state

    def start(self, image: Tensor, text: Tensor) -> float:
        """Choose the bandwidth on held-out embeddings (M, d) and (N, d), as ``auto_bandwidth``; return it."""
        assert isinstance(self._bandwidth, AutoBandwidth)
        self.state["sigma"] = auto_bandwidth(image, text, self._bandwidth.effective_share)
        return float(self.state["sigma"])

    def terms(self, step: int, clouds: Clouds) -> list[Term]:
        """The pairwise term, the divergence and, where there is one, the token term of one step with these clouds."""
        divergence = self._spec.divergence
        sigmas = self._sigmas(step, clouds)
        weight, relative = self._weight(step)
        terms = [
            Term(
                self.pairwise,
                self._spec.pairwise.weight,
                on_pairs(self._pairwise_loss, self._edges),
                sums="infonce" if self.pairwise == "infonce" else None,
            ),
            Term(
                self.divergence,
                weight,
                _divergence_loss(divergence, sigmas, self._edges),
                relative,
                _kernel_sums(divergence, sigmas),
            ),
        ]
        tokens = self._spec.tokens
        if tokens is not None:
            terms.append(Term(TOKENS, tokens.weight, on_tokens(tokens.bandwidth)))
        return terms

    def observe(self, values: TermValues) -> None:
        """Remember the weight that a step was evaluated with, for the steps until it is measured again."""
        if isinstance(self._spec.divergence.weight, RelativeWeight):
            self.state["weight"] = values.weights[self.divergence]

    def describe(self) -> dict[str, Any]:
        """What is in force now, for the log: the bandwidth where there is one."""
        return {"bandwidth": self.state["bandwidth"]} if "bandwidth" in self.state else {}

    def _weight(self, step: int) -> tuple[float, float | None]:
        """The weight of a step, or the ratio that it is measured by."""
        weight = self._spec.divergence.weight
        if isinstance(weight, RelativeWeight):
            if step % weight.every == 0 or "weight" not in self.state:
                return 0.0, weight.ratio
            return float(self.state["weight"]), None
        if isinstance(weight, ScheduledWeight):
            done = (step / max(1, self._steps) - weight.begin) / (weight.until - weight.begin)
            return weight.start + (weight.end - weight.start) * min(max(done, 0.0), 1.0), None
        return weight, None

    def _sigmas(self, step: int, clouds: Clouds) -> tuple[float, ...]:
        rule = self._bandwidth
        sigmas: tuple[float, ...]
        if rule is None:
            return ()
        if isinstance(rule, MedianBandwidth):
            if step % rule.every == 0 or "sigma" not in self.state:
                first, *others = map(clouds.cloud, clouds.rows)
                found = rule.factor * median_bandwidth(first, torch.cat(others))
                former = self.state.get("sigma", found)
                self.state["sigma"] = rule.momentum * former + (1 - rule.momentum) * found
            sigmas = (float(self.state["sigma"]),)
        elif isinstance(rule, AutoBandwidth):
            sigmas = (float(self.state["sigma"]),)
        elif isinstance(rule, AnnealedBandwidth):
            done = min(1.0, step / max(1.0, rule.until * self._steps))
            sigmas = (rule.start * (rule.end / rule.start) ** done,)
        else:
            sigmas = tuple(rule) if isinstance(rule, list) else (rule,)
        self.state["bandwidth"] = list(sigmas)
        return sigmas


def _pairwise_loss(spec: AnyPairwise) -> PairLoss:
    function = PAIRWISE[spec.kind]
    options = spec.model_dump(exclude={"kind", "weight", "logit_scale", "logit_bias"})
    wanted = inspect.signature(function).parameters

    def loss(image: Tensor, text: Tensor, logits: Logits, groups: Tensor | None) -> Tensor:
        given = {"logit_scale": logits.scale, "logit_bias": logits.bias, "groups": groups}
        return function(image, text, **{name: value for name, value in given.items() if name in wanted}, **options)

    return loss


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
