"""Arguments of another type than is documented end in one sentence that names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cs_aligner_cli import (
    CCA,
    FittedAdapter,
    InputError,
    cs_divergence,
    fit_adapter,
    infonce,
    load_adapter,
    load_recipe,
    measure_gap,
    open_run,
    run,
    token_cs_divergence,
)
from cs_aligner_cli.retrieval.index import build_index, plan_index, search

Call = Callable[[Any], object]
ROWS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def adapter() -> FittedAdapter:
    return fit_adapter(ROWS, ROWS, train={"epochs": 1, "batch_size": 8})


@pytest.mark.parametrize("given", ["a", [1], True, None])
def test_a_number_is_wanted(given: Any) -> None:
    calls: dict[str, Call] = {
        "shrinkage": lambda x: CCA(shrinkage=x).fit(ROWS, ROWS),
        "bandwidths": lambda x: measure_gap(UNIT, UNIT, [x]),
    }
    for name, call in calls.items():
        if name != "shrinkage" or given is not None:
            with pytest.raises(InputError, match=rf"^{name}: expected .*number"):
                call(given)


@pytest.mark.parametrize("given", ["a", None, {}, ["a"]])
def test_a_bandwidth_and_a_scale_are_wanted(given: Any) -> None:
    for call in (cs_divergence, lambda x, y, b: token_cs_divergence(x[None], y[None], b)):
        with pytest.raises(InputError, match=r"^bandwidth: expected .*number"):
            call(UNIT, UNIT, given)
    with pytest.raises(InputError, match=r"^logit_scale: expected one number"):
        infonce(UNIT, UNIT, given)


@pytest.mark.parametrize("given", ["a", 2.0, None, True, [3]])
def test_a_whole_number_is_wanted(given: Any) -> None:
    index = build_index(ROWS)
    calls: dict[str, Call] = {
        "k": lambda x: search(index, ROWS[:2], x),
        "rows": lambda x: plan_index("ivf", x, 8),
        "dim": lambda x: plan_index("flat", 10, x),
        "training_rows": lambda x: plan_index("ivf", 10, 8, x),
        "seed": lambda x: measure_gap(UNIT, UNIT, seed=x),
        "exact_pairs": lambda x: measure_gap(UNIT, UNIT, exact_pairs=x),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"^{name}: expected a whole number"):
            call(given)


def test_numbers_of_numpy_are_numbers_and_those_out_of_range_are_not() -> None:
    scores, _ = search(build_index(ROWS), ROWS[:2], np.int64(3))
    assert scores.shape == (2, 3)
    assert plan_index("flat", np.int64(10), 8).memory == 320
    for call, message in (
        (lambda: plan_index("flat", -5, 8), "rows: expected a whole number of at least 0, got -5"),
        (lambda: plan_index("flat", 5, 0), "dim: expected a whole number of at least 1, got 0"),
        (lambda: plan_index(None, 5, 8), "index: None is no FAISS factory string"),  # type: ignore[arg-type]
        (lambda: measure_gap(UNIT, UNIT, seed=-1), "seed: expected a whole number of at least 0, got -1"),
        (lambda: measure_gap(UNIT, UNIT, 3), "bandwidths: expected positive finite numbers, got 3"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("given", [3, None, b"x", []])
def test_a_path_is_wanted(given: Any, adapter: FittedAdapter) -> None:
    for call, name in ((open_run, "folder"), (load_adapter, "path"), (adapter.save, "path")):
        with pytest.raises(InputError, match=rf"^{name}: expected a path, got"):
            call(given)
    if given is not None:  # the recipe of the folder
        for call in (run, load_recipe):
            with pytest.raises(InputError, match=r"^recipe: expected a name, a file or a dict, got"):
                call(given)
    with pytest.raises(InputError, match=r"^overrides: expected a list of texts|^--set"):
        load_recipe("scenes", [given])


def test_paths_of_other_libraries_and_bandwidths_in_a_tensor_are_taken(tmp_path: Path, adapter: FittedAdapter) -> None:
    adapter.save(tmp_path / "a.safetensors")
    (entry,) = os.scandir(tmp_path)
    assert (load_adapter(entry).apply(ROWS, "image") == adapter.apply(ROWS, "image")).all()  # type: ignore[arg-type]
    sigmas = [0.5, 0.75]
    assert measure_gap(UNIT, UNIT, torch.tensor(sigmas)) == measure_gap(UNIT, UNIT, sigmas)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [3, None, ["image"], {}])
def test_a_name_is_wanted(given: Any, adapter: FittedAdapter) -> None:
    with pytest.raises(InputError, match=r"^modality: got .*; expected one of: image, text"):
        adapter.apply(ROWS, given)
