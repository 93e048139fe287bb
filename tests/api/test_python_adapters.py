"""Adapters and closed forms on arrays: what they learn, what they refuse, and that a saved one is the same."""

from __future__ import annotations

import doctest
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

import cs_aligner_cli
from cs_aligner_cli import (
    CCA,
    Centring,
    InputError,
    NotUnitRowsWarning,
    Procrustes,
    cs_divergence,
    evaluate_retrieval,
    fit_adapter,
    infonce,
    load_adapter,
)

Rows = npt.NDArray[np.float32]
FAST = {"epochs": 12, "batch_size": 50, "embed_dim": 8, "image": {"adapter": {"kind": "linear"}}}
FAST["text"] = FAST["image"]


def views(count: int = 200, noise: float = 0.1) -> tuple[Rows, Rows]:
    """Two views (count, 12) and (count, 8) of one factor, apart by a shift."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(count, 4))
    image = factor @ rng.normal(size=(4, 12)) + 3 + noise * rng.normal(size=(count, 12))
    text = factor @ rng.normal(size=(4, 8)) - 3 + noise * rng.normal(size=(count, 8))
    return image.astype(np.float32), text.astype(np.float32)


def test_every_name_of_the_package_is_there_and_importing_it_is_light() -> None:
    for name in cs_aligner_cli.__all__:
        assert getattr(cs_aligner_cli, name).__doc__, name
        assert name in dir(cs_aligner_cli)
    with pytest.raises(AttributeError, match="no_such"):
        _ = cs_aligner_cli.no_such
    code = "import sys, cs_aligner_cli; print([m for m in ('torch', 'numpy', 'pydantic', 'faiss') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["api.adapters", "api.aligners", "objectives.divergences"])
def test_the_examples_of_the_docstrings_hold(module: str) -> None:
    found = doctest.testmod(import_module(f"cs_aligner_cli.{module}"))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_a_fitted_adapter_ranks_held_out_pairs_and_closes_the_gap() -> None:
    image, text = views()
    state = torch.get_rng_state()
    adapter = fit_adapter(
        image[:150], text[:150], train={**FAST, "epochs": 40, "lr": 0.02}, objective={"divergence": {"kind": "cs"}}
    )
    assert torch.equal(torch.get_rng_state(), state)
    x, y = adapter.apply(image[150:], "image"), adapter.apply(torch.from_numpy(text[150:]), "text")
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert evaluate_retrieval(x, y)["i2t"]["R@1"] > 0.5  # chance is 0.02
    assert np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)) < 0.3
    assert adapter.history[-1]["loss"] < adapter.history[0]["loss"]
    assert set(adapter.history[0]["terms"]) == {"infonce", "cs"}


def test_the_same_call_gives_the_same_weights_and_a_saved_adapter_is_the_same(tmp_path: Path) -> None:
    image, text = views(100)
    first, second = (fit_adapter(image, text, train=FAST, seed=3) for _ in range(2))
    saved = load_adapter(first.save(tmp_path / "mine.SafeTensors"))
    for other in (second, saved):
        np.testing.assert_array_equal(other.apply(text, "text"), first.apply(text, "text"))
    assert not np.array_equal(
        fit_adapter(image, text, train=FAST, seed=4).apply(text, "text"), first.apply(text, "text")
    )


def test_several_texts_of_an_image_unpaired_rows_starts_and_automatic_bandwidths_go_in() -> None:
    image, text = views(60)
    owner = np.repeat(np.arange(30), 2)
    owner[-4:] = -1  # two images and four texts of nobody, and 30 images more
    objective = {"divergence": {"kind": "cs", "bandwidth": "auto"}, "structure": {}, "teacher": {}}
    train = {**FAST, "epochs": 2, "batch_size": 14, "captions": "all", "start": "cca", "last_batch": "keep"}
    adapter = fit_adapter(image, text, owner, train=train, objective=objective)
    assert adapter.history and adapter.apply(image, "image").shape == (60, 8)
    with_none = {**train, "unpaired_per_pair": {"image": 0.0, "text": 0.0}}
    alone = fit_adapter(image, text, owner, train=with_none, objective=objective)
    assert alone.history[-1]["loss"] != adapter.history[-1]["loss"]  # the terms saw them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"epoch": 3}}, "epoch: unknown key; did you mean epochs"),
        ({"train": {"val_split": "dev"}}, "train.val_split: is for runs from a recipe"),
        ({"train": {"self_training": {}}}, "train.self_training: is for runs from a recipe"),
        ({"train": {"image": {"tune": "full"}}}, "train.image.tune: full wants the encoder"),
        ({"objective": {"divergense": {}}}, "did you mean objective.divergence"),
        ({"image_of_text": np.full(40, -1)}, "no text has an image"),
        ({"text": np.zeros((39, 8))}, "there are 40 images and 39 texts"),
        ({"text": np.full((40, 8), np.nan)}, "text: row 0 holds NaN"),
        ({"train": 5}, "train: expected a dict of the recipe's keys, got 5"),
        ({"seed": -1}, "seed: expected an integer from 0 to 2147483647, got -1"),
        ({"seed": 2**70}, "seed: expected an integer from 0 to"),
        ({"text": pd.DataFrame(np.ones((40, 8)))}, "text: expected .* got a DataFrame"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    image, text = views(40)
    with pytest.raises(InputError, match=message):
        fit_adapter(**{"image": image, "text": text, **change})


def test_an_adapter_refuses_other_rows_and_other_files(tmp_path: Path) -> None:
    image, text = views(40)
    adapter = fit_adapter(image, text, train={**FAST, "epochs": 1})
    for call, message in (
        (lambda: adapter.apply(image, "images"), "did you mean image"),
        (lambda: adapter.apply(text, "image"), "rows have 8 dimensions, but the image adapter takes 12"),
        (lambda: adapter.apply(np.full((2, 12), np.nan), "image"), "image: row 0 holds NaN or infinity"),
        (lambda: adapter.save(tmp_path / "mine.pt"), "ends in .safetensors"),
        (lambda: load_adapter(tmp_path / "none.safetensors"), "no such weights file"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    for scale in (1e300, 1e-300):
        large = adapter.apply(image.astype(np.float64) * scale, "image")
        np.testing.assert_allclose(large, adapter.apply(image, "image"), atol=1e-5)


@pytest.mark.parametrize("aligner", [Procrustes(), CCA(), CCA(shrinkage=0.1)])
def test_closed_forms_rank_held_out_pairs_of_unlike_dimensions(aligner: Procrustes | CCA) -> None:
    image, text = views()
    x, y = aligner.fit(image[:150], text[:150]).transform(image[150:], text[150:])
    assert x.shape == y.shape == (50, 8)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)
    assert evaluate_retrieval(x, y)["both"]["RSum"] > 200  # chance is 64
    np.testing.assert_array_equal(aligner.transform(text=text[150:]), y)
    np.testing.assert_allclose(aligner.transform(text=text[150:][::-1] * np.float64(1e200))[::-1], y, atol=1e-5)


def test_closed_forms_refuse_what_they_cannot_do() -> None:
    image, text = views(40)
    for call, message in (
        (lambda: Centring().transform(image), "Centring: is not fitted yet"),
        (lambda: Centring().fit(image, text), "differ in dimension: 12 against 8"),
        (lambda: CCA().fit(image, text[:30]), "not row-paired"),
        (lambda: CCA(shrinkage=0).fit(image, text), "shrinkage: expected a number above 0"),
        (lambda: CCA().fit(image, text).transform(text), "rows have 8 dimensions, but those of fit had 12"),
        (lambda: CCA().fit(image, text).transform(image * np.nan), "image: row 0 holds NaN or infinity"),
        (lambda: CCA().fit(image.tolist(), text), "image: expected a numpy array or a torch tensor, got a list"),
        (lambda: CCA().fit(image, text).transform(), "got neither"),  # type: ignore[call-overload]
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_rows_that_are_not_of_unit_length_are_said_where_a_scale_is_meant_for_such() -> None:
    x, y = views(20)
    x = x[:, :8]
    with pytest.warns(NotUnitRowsWarning, match="bandwidth such as 0.7071") as found:
        cs_divergence(x, y, bandwidth=0.7071)
    assert found[0].filename == __file__
    with pytest.warns(NotUnitRowsWarning, match="logit scale of cosines"):
        infonce(x, y, 100.0)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs_divergence(*unit, bandwidth=0.7071)
        cs_divergence(x, y, bandwidth="median")  # a bandwidth in the rows' own units
        infonce(*(torch.from_numpy(rows).bfloat16() for rows in unit), 100.0)
