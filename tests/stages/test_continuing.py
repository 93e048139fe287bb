"""Training goes on from a finished one, where its last state is kept, and begins with another run's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Csalign
from safetensors.torch import load_file

from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.train.result import TrainResult
from cs_aligner_cli.training.optimizer import learning_rate

KEPT = ("--set", "train.keep_states=1")


def _epochs(count: int) -> tuple[str, str]:
    return "--set", f"train.epochs={count}"


@pytest.fixture
def embedded(features_recipe: Path, csalign: Csalign) -> Path:
    """A recipe over small features, as far as training."""
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q").exit_code == 0
    return features_recipe


def _trained(recipe: Path) -> Path:
    return Layout(load_recipe(str(recipe))).trained("aligned").path


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_more_epochs_go_on_from_the_last_state(embedded: Path, csalign: Csalign) -> None:
    steady = ("--set", "train.log_steps=1", "-s", "train.warmup_fraction=0")
    assert csalign("train", embedded, "-q", *steady, *_epochs(2), *KEPT).exit_code == 0
    folder = _trained(embedded)
    first, weights = _log(folder), load_file(folder / "last.safetensors")
    assert sorted(path.name for path in folder.glob("last*.json")) == ["last.json"]

    called = csalign("train", embedded, *steady, *_epochs(3), "--archive")
    steps = first[-1]["step"]
    spec = load_recipe(str(embedded), ["train.warmup_fraction=0"]).train
    assert spec is not None
    rate = learning_rate(spec, steps, steps * 3 // 2)
    assert (
        f"goes on from the end of epoch 2 with the schedule of 3 epochs: a learning rate of {rate:.3g}" in called.stderr
    )
    second = _log(folder)
    assert second[: len(first)] == first and second[len(first)]["step"] == steps + 1
    assert second[len(first)]["lr"] == pytest.approx(rate)
    assert all(
        torch.equal(load_file(folder.with_name("aligned.1") / "last.safetensors")[k], weights[k]) for k in weights
    )

    again = csalign("train", embedded, *steady, *_epochs(3), "--json").json
    assert again["status"] == "fresh" and again["runs"]["aligned"]["continued_from_epochs"] == [2]
    result = TrainResult(status="fresh", runs=again["runs"])
    assert result.findings() == ["aligned: 3 epochs in parts: it had been finished after 2"]
    assert not [*folder.glob("last*.json"), *folder.glob("last-*")], "states were to be removed"
    continued = Layout(load_recipe(str(embedded), ["train.epochs=3", *steady[1::2]])).trained("aligned")
    mark = continued.fingerprint()
    assert csalign("train", embedded, "-q", *steady, *_epochs(3), "--force").exit_code == 0
    assert continued.fresh() and continued.fingerprint() != mark, "three epochs in one go are another training"


def test_without_its_last_state_a_finished_training_is_not_replaced(
    embedded: Path, csalign: Csalign, refused: Callable[..., str]
) -> None:
    assert csalign("train", embedded, "-q", *_epochs(1)).exit_code == 0
    for command in ("train", "run"):
        assert "with train.keep_states: 1 the next one will" in refused(command, embedded, *_epochs(2))
    assert "keep_states" not in refused("train", embedded, *_epochs(2), "--set", "train.lr=0.1")


def test_a_damaged_state_is_named_and_nothing_is_lost(
    embedded: Path, csalign: Csalign, refused: Callable[..., str]
) -> None:
    assert csalign("train", embedded, "-q", *_epochs(1), *KEPT).exit_code == 0
    (state,) = _trained(embedded).glob("last-*.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    assert f"{state}: is damaged" in refused("train", embedded, *_epochs(2))
    assert csalign("train", embedded, *_epochs(1), "--json").json["status"] == "fresh"


def test_a_training_begins_with_the_weights_of_another_run(
    embedded: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = ("--set", f"run_dir={tmp_path / 'runs' / 'fork'}", "--set", "train.from=run:mine", "--set", "train.lr=1e-12")
    shared = ("--set", f"data.dir={tmp_path / 'run' / 'data'}", "--set", f"embed.dir={tmp_path}/run/embeddings/frozen")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    mine = tmp_path / "runs" / "mine"
    for command in ("train", "run"):
        assert f"train.from: {mine} holds no trained weights" in refused(command, embedded, *fork, *shared, *_epochs(1))
    assert csalign("train", embedded, "-q", *_epochs(1)).exit_code == 0
    shutil.copytree(tmp_path / "run", mine)

    called = csalign("train", embedded, *fork, *shared, *_epochs(1))
    assert f"begins with {mine / 'train' / 'aligned' / 'last.safetensors'}" in called.stderr
    theirs = load_file(mine / "train" / "aligned" / "last.safetensors")
    ours = load_file(tmp_path / "runs" / "fork" / "train" / "aligned" / "last.safetensors")
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-9) for key in theirs)

    for pairwise, scale, bias in (  # a scale that is learned went on; fixed, and of another kind, they are at init
        ("{logit_scale: {init: 5, learn: false}}", 5, 0),
        ("{logit_scale: {init: 5, max: 9}}", 9, 0),
        ("{kind: siglip}", 10, -10),
        ("{kind: siglip, logit_bias: {init: 0, learn: false}}", theirs["log_logit_scale"].exp().item(), 0),
        ("{kind: align_uniform}", 1, 0),
    ):
        away = ("--set", f"run_dir={tmp_path / 'away'}", "--set", f"train.objective.pairwise={pairwise}", "--force")
        assert csalign("train", embedded, "-q", *fork, *shared, *_epochs(1), *away).exit_code == 0
        found = load_file(tmp_path / "away" / "train" / "aligned" / "last.safetensors")
        assert found["log_logit_scale"].exp().item() == pytest.approx(scale)
        assert found["logit_bias"].item() == pytest.approx(bias)

    other = ("--set", "train.embed_dim=10")
    message = refused("train", embedded, *fork, *shared, *_epochs(1), *other, "--force")
    assert "is of other towers: image: out_dim is 12 there, and 10 here" in message
    mine.rename(tmp_path / "gone")
    assert csalign("train", embedded, *fork, *shared, *_epochs(1), "--json").json["status"] == "fresh"
    (tmp_path / "gone").rename(mine)
    assert csalign("train", embedded, "-q", "--set", f"run_dir={mine}", *_epochs(2), "--force").exit_code == 0
    message = refused("train", embedded, *fork, *shared, *_epochs(1))
    assert "would be replaced: train.from was" in message
