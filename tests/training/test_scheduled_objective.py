"""Bandwidths and weights as training goes on: what is in force at a step, and what is remembered."""

from __future__ import annotations

import inspect
import json
from typing import get_args

import pytest
import torch
from samples import tensor_rows

from cs_aligner_cli.objectives import Clouds, Logits, auto_bandwidth, evaluate_terms, median_bandwidth
from cs_aligner_cli.objectives.table import DIVERGENCES
from cs_aligner_cli.recipe.objective import AnyDivergence, Objective
from cs_aligner_cli.training.checkpoint import TrainingState
from cs_aligner_cli.training.scheduled_objective import ObjectiveState, TrainingObjective

IMAGE, TEXT = tensor_rows(0, 20, 6), tensor_rows(1, 20, 6) + 0.4
PAIRS = Clouds.of_pairs(IMAGE, TEXT)
NEW = ObjectiveState()
LOGITS = Logits(torch.tensor(10.0), torch.tensor(0.0))


def objective(divergence: dict[str, object], steps: int = 100) -> TrainingObjective:
    return TrainingObjective(Objective.model_validate({"divergence": divergence}), steps)


def in_force(found: TrainingObjective, step: int, state: ObjectiveState = NEW, scale: float = 1.0) -> ObjectiveState:
    """The state that the terms of one step leave."""
    return found.terms(step, Clouds.of_pairs(scale * IMAGE, scale * TEXT), state)[1]


def test_fixed_and_mixed_bandwidths_stay() -> None:
    assert in_force(objective({"bandwidth": 0.6}), 7).describe() == {"bandwidth": [0.6]}
    assert in_force(objective({"bandwidth": [0.5, 1.0]}), 7).bandwidth == (0.5, 1.0)
    assert in_force(objective({"kind": "energy"}), 7).describe() == {}


def test_an_annealed_bandwidth_falls_geometrically_and_then_stays() -> None:
    found = objective({"bandwidth": {"kind": "annealed", "start": 2.0, "end": 0.5, "until": 0.5}})
    assert in_force(found, 0).bandwidth == (2.0,)
    assert in_force(found, 25).bandwidth == pytest.approx([1.0])
    assert in_force(found, 50).bandwidth == in_force(found, 99).bandwidth == pytest.approx([0.5])


def test_a_median_bandwidth_is_estimated_now_and_then_and_smoothed() -> None:
    spec = {"kind": "median", "factor": 0.5, "every": 10, "momentum": 0.8}
    found = objective({"bandwidth": spec})
    median = median_bandwidth(IMAGE, TEXT)
    first = in_force(found, 0)
    assert first.bandwidth == pytest.approx([0.5 * median])
    held = in_force(found, 9, first, scale=3.0)
    assert held == first
    second = in_force(found, 10, held, scale=3.0)
    assert second.bandwidth == pytest.approx([0.8 * 0.5 * median + 0.2 * 1.5 * median])
    assert held == first  # what a step was given is left as it was
    assert "0.5 x the median distance (not squared)" in str(found.convention)
    assert objective({"bandwidth": 0.5}).convention is None
    read = TrainingState.model_validate(json.loads(json.dumps(TrainingState(objective=second).model_dump(mode="json"))))
    assert in_force(objective({"bandwidth": spec}), 11, read.objective) == in_force(found, 11, second)


def test_an_auto_bandwidth_waits_for_held_out_pairs() -> None:
    found = objective({"bandwidth": "auto"})
    assert found.wants_start(ObjectiveState())
    state = found.start(IMAGE, TEXT)
    assert state.sigma == auto_bandwidth(IMAGE, TEXT, 0.9)
    assert not found.wants_start(state)
    assert in_force(found, 50, state, scale=9.0).bandwidth == (state.sigma,)


def test_a_scheduled_weight_warms_up() -> None:
    found = objective({"weight": {"kind": "scheduled", "start": 0.5, "end": 2.5, "begin": 0.2, "until": 0.6}})
    weights = [found.terms(step, PAIRS, ObjectiveState())[0][1].weight for step in (0, 20, 40, 60, 99)]
    assert weights == pytest.approx([0.5, 0.5, 1.5, 2.5, 2.5])


def test_a_relative_weight_is_measured_now_and_then() -> None:
    found = objective({"weight": {"kind": "relative", "ratio": 0.5, "every": 4}})
    terms, state = found.terms(0, PAIRS, ObjectiveState())
    assert terms[1].relative == 0.5
    values = evaluate_terms(terms, PAIRS, LOGITS)
    state = found.observe(state, values)
    held = found.terms(3, PAIRS, state)[0][1]
    assert (held.relative, held.weight) == (None, values.weights["cs"])
    assert found.terms(4, PAIRS, state)[0][1].relative == 0.5
    each = objective({"weight": {"kind": "relative", "ratio": 0.5}})
    terms, state = each.terms(0, PAIRS, NEW)
    assert each.terms(1, PAIRS, each.observe(state, evaluate_terms(terms, PAIRS, LOGITS)))[0][1].relative == 0.5


def test_a_divergences_option_has_one_default_in_recipes_and_in_python() -> None:
    compared = set()
    for spec in get_args(AnyDivergence):
        kind = spec.model_fields["kind"].default
        parameters = inspect.signature(DIVERGENCES[kind]).parameters if kind in DIVERGENCES else {}
        for name, field in spec.model_fields.items():
            if name in parameters and parameters[name].default is not inspect.Parameter.empty:
                assert field.default == parameters[name].default, (kind, name)
                compared.add(name)
    assert compared >= {"tolerance", "blur", "projections", "estimator"}
