"""Bandwidths and weights as training goes on: what is in force at a step, and what is remembered."""

from __future__ import annotations

import json

import pytest
import torch
from samples import tensor_rows

from cs_aligner_cli.objectives import Clouds, Logits, auto_bandwidth, evaluate_terms, median_bandwidth
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.training.scheduled_objective import TrainingObjective

IMAGE, TEXT = tensor_rows(0, 20, 6), tensor_rows(1, 20, 6) + 0.4
PAIRS = Clouds.of_pairs(IMAGE, TEXT)
LOGITS = Logits(torch.tensor(10.0), torch.tensor(0.0))


def objective(divergence: dict[str, object], steps: int = 100) -> TrainingObjective:
    return TrainingObjective(Objective.model_validate({"divergence": divergence}), steps)


def sigmas(found: TrainingObjective, step: int, scale: float = 1.0) -> list[float]:
    found.terms(step, Clouds.of_pairs(scale * IMAGE, scale * TEXT))
    return found.describe()["bandwidth"]  # type: ignore[no-any-return]


def test_fixed_and_mixed_bandwidths_stay() -> None:
    assert sigmas(objective({"bandwidth": 0.6}), 7) == [0.6]
    assert sigmas(objective({"bandwidth": [0.5, 1.0]}), 7) == [0.5, 1.0]
    assert objective({"kind": "energy"}).describe() == {}


def test_an_annealed_bandwidth_falls_geometrically_and_then_stays() -> None:
    found = objective({"bandwidth": {"kind": "annealed", "start": 2.0, "end": 0.5, "until": 0.5}})
    assert sigmas(found, 0) == [2.0]
    assert sigmas(found, 25) == pytest.approx([1.0])
    assert sigmas(found, 50) == sigmas(found, 99) == pytest.approx([0.5])


def test_a_median_bandwidth_is_estimated_now_and_then_and_smoothed() -> None:
    spec = {"kind": "median", "factor": 0.5, "every": 10, "momentum": 0.8}
    found = objective({"bandwidth": spec})
    median = median_bandwidth(IMAGE, TEXT)
    assert sigmas(found, 0) == pytest.approx([0.5 * median])
    assert sigmas(found, 9, scale=3.0) == pytest.approx([0.5 * median])
    assert sigmas(found, 10, scale=3.0) == pytest.approx([0.8 * 0.5 * median + 0.2 * 1.5 * median])
    assert "0.5 x the median distance (not squared)" in str(found.convention)
    assert objective({"bandwidth": 0.5}).convention is None
    again = objective({"bandwidth": spec})
    again.state = json.loads(json.dumps(found.state))
    assert sigmas(again, 11) == sigmas(found, 11)


def test_an_auto_bandwidth_waits_for_held_out_pairs() -> None:
    found = objective({"bandwidth": "auto"})
    assert found.wants_start
    assert found.start(IMAGE, TEXT) == auto_bandwidth(IMAGE, TEXT, 0.9)
    assert not found.wants_start
    assert sigmas(found, 50, scale=9.0) == [auto_bandwidth(IMAGE, TEXT, 0.9)]


def test_a_scheduled_weight_warms_up() -> None:
    found = objective({"weight": {"kind": "scheduled", "start": 0.5, "end": 2.5, "begin": 0.2, "until": 0.6}})
    weights = [found.terms(step, PAIRS)[1].weight for step in (0, 20, 40, 60, 99)]
    assert weights == pytest.approx([0.5, 0.5, 1.5, 2.5, 2.5])


def test_a_relative_weight_is_measured_now_and_then() -> None:
    found = objective({"weight": {"kind": "relative", "ratio": 0.5, "every": 4}})
    terms = found.terms(0, PAIRS)
    assert terms[1].relative == 0.5
    values = evaluate_terms(terms, PAIRS, LOGITS)
    found.observe(values)
    held = found.terms(3, PAIRS)[1]
    assert (held.relative, held.weight) == (None, values.weights["cs"])
    assert found.terms(4, PAIRS)[1].relative == 0.5
    each = objective({"weight": {"kind": "relative", "ratio": 0.5}})
    each.observe(evaluate_terms(each.terms(0, PAIRS), PAIRS, LOGITS))
    assert each.terms(1, PAIRS)[1].relative == 0.5
