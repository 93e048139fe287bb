"""A finished training is not replaced without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Csalign

SHORT = ("--set", "train.epochs=1")


@pytest.fixture
def trained(features_recipe: Path, csalign: Csalign) -> Path:
    """A recipe whose training of two epochs is finished."""
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q").exit_code == 0
    assert csalign("train", features_recipe, "-q", "--set", "train.epochs=2").exit_code == 0
    return features_recipe


def test_training_with_another_key_is_refused_moved_aside_or_forced(
    trained: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    weights = tmp_path / "run" / "train" / "aligned" / "best.safetensors"
    before = weights.read_bytes()
    for command in ("train", "run"):
        message = refused(command, trained, *SHORT, "--set", "train.lr=0.01")
        assert "train.epochs was 2 and is now 1; train.lr was 0.001 and is now 0.01" in message
        ways = [line.partition(": csalign ")[2] for line in message.splitlines()[1:]]
        given = f"{trained} --set train.epochs=1 --set train.lr=0.01"
        elsewhere = f"run {given} --set run_dir={tmp_path / 'run'}-2"
        assert ways == [elsewhere, f"{command} {given} --archive", f"{command} {given} --force"]
        assert weights.read_bytes() == before
    assert csalign("train", trained, "--set", "train.epochs=2", "--json").json["status"] == "fresh"

    called = csalign("train", trained, *SHORT, "--archive")
    aside = weights.parents[1] / "aligned.1"
    assert f"the earlier one is kept as {aside} once the new one is there" in called.stderr
    assert (aside / "best.safetensors").read_bytes() == before != weights.read_bytes()
    assert csalign("train", trained, *SHORT, "--archive", "--json").json["status"] == "fresh"
    assert csalign("embed", trained, "-q", "--set", f"embed.weights={aside}").exit_code == 0

    assert csalign("train", trained, "-q", "--set", "train.epochs=3", "--force").exit_code == 0
    assert not weights.parents[1].with_name("aligned.2").exists()


def test_changed_data_do_not_replace_a_training(
    trained: Path, csalign: Csalign, refused: Callable[..., str], features_root: Path
) -> None:
    text = np.load(features_root / "text_minilm.npy")
    np.save(features_root / "text_minilm.npy", text[:, ::-1])
    for stage in ("prepare", "embed"):
        assert csalign(stage, trained, "-q", "--set", "train.epochs=2").exit_code == 0
    message = refused("train", trained, "--set", "train.epochs=2")
    assert "the prepared data set it was made from has changed" in message


def test_the_ways_out_of_stale_outputs_work_when_they_are_pasted(
    trained: Path, csalign: Csalign, refused: Callable[..., str]
) -> None:
    made = ("--set", "train.epochs=2")
    assert csalign("embed", trained, "-q", *made).exit_code == 0
    problem, read, again = refused("gap-report", trained, *SHORT).splitlines()
    assert problem.endswith("is stale: train.epochs was 2 and is now 1")
    assert read.startswith("Read what is there, by the recipe that it was made with: csalign gap-report ")
    assert read.endswith(f"{trained.parent}/run/recipe.yaml")
    assert csalign(*read.partition("csalign ")[2].split(), "-q").exit_code == 0
    assert (
        again
        == f"Make it again, the earlier one kept as aligned.1: csalign train {trained} {' '.join(SHORT)} --archive"
    )
    assert csalign(*again.partition("csalign ")[2].split(), "-q").exit_code == 0
    *_, again = refused("gap-report", trained, *SHORT).splitlines()
    assert again == f"Make it again: csalign embed {trained} {' '.join(SHORT)}"
    assert csalign(*again.partition("csalign ")[2].split(), "-q").exit_code == 0
    assert csalign("gap-report", trained, "-q", *SHORT).exit_code == 0


def test_a_run_without_run_dir_is_told_to_take_another_name(
    trained: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert "--set name=tiny-2\n" in refused("train", trained, *SHORT, "--set", "run_dir=null")


def test_what_is_shared_takes_the_place_of_no_run(
    features_recipe: Path,
    csalign: Csalign,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "runs" / "first"
    settings = ("--set", "run_dir=second", "--force")
    weights, thesis = first / "train" / "aligned" / "stage.json", tmp_path / "thesis" / "train" / "one.tex"
    for file in (weights, thesis):
        file.parent.mkdir(parents=True)
        file.write_text('{"name": "training run aligned"}')
    for key, inside in (("data.dir", "data"), ("embed.dir", "embeddings/frozen")):
        for command in ("run", "embed"):
            message = refused(command, features_recipe, *settings, "--set", f"{key}=run:first")
            assert f"{key}: {first} is the folder of a whole run" in message
            assert message.endswith(f"{key}=run:first/{inside}")
    assert "is the folder of a whole run" in refused("prepare", features_recipe, *settings, "--set", "data.dir=second")
    assert not (tmp_path / "second").exists() and not (first / ".lock").exists()

    assert csalign("prepare", features_recipe, "-q", *settings).exit_code == 0
    message = refused("embed", features_recipe, *settings, "--set", "embed.dir=thesis")
    assert f"embed.dir: {tmp_path}/thesis/train holds other files, which the frozen store of split train" in message
    message = refused("prepare", features_recipe, *settings, "--set", f"data.dir={weights.parent}")
    assert f"data.dir: {weights.parent} holds the training run aligned, which the prepared data set" in message
    assert weights.read_text() == thesis.read_text() == '{"name": "training run aligned"}'


def test_what_another_run_was_made_of_is_not_replaced(
    features_recipe: Path, features_root: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    run, untrained = tmp_path / "run", ("--set", "train=null")
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q", *untrained).exit_code == 0
    data = ("--set", f"run_dir={tmp_path / 'other'}", "--set", f"data.dir={run / 'data'}")
    guest = (*data, *untrained, "--set", f"embed.dir={run / 'embeddings' / 'frozen'}")
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "--json", *guest).json["status"] == "fresh"

    half = (*guest, "--set", "embed.dtype=float16")
    for command in ("run", "embed"):
        message = refused(command, features_recipe, *half)
        assert "would be replaced: embed.dtype was 'float32' and is now 'float16'" in message
        assert f"Keep it and write elsewhere: csalign run {features_recipe} " in message
        assert "--set embed.dir=null\n" in message
    message = refused("prepare", features_recipe, *guest, "--set", "prepare.min_side=2")
    assert "prepare.min_side was 1 and is now 2" in message
    assert "--set data.dir=null\n" in message and "--archive" not in message
    given = " ".join(map(str, (features_recipe, *half)))
    problem, _, own, again = refused("eval-retrieval", features_recipe, *half).splitlines()
    assert problem.endswith("is stale: embed.dtype was 'float32' and is now 'float16'")
    share = "Leave it to the runs that share it, and make this run's own: csalign run"
    assert own == f"{share} {given} --set embed.dir=null"
    assert again == f"Make it again, the earlier one kept as dev.1: csalign embed {given} --archive"
    *_, own, again = refused("embed", features_recipe, *guest, "--set", "prepare.min_side=2").splitlines()
    assert own.startswith(share) and own.endswith("--set prepare.min_side=2 --set data.dir=null")
    assert again.startswith("Make it again, as every run that shares it will notice: csalign prepare ")
    assert again.endswith(" --force")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(features_root, elsewhere, copy_function=shutil.copyfile)  # with other times
    message = refused("prepare", features_recipe, *guest, "--set", f"data.root={elsewhere}")
    assert f"would be replaced: data.root was {features_root} and is now {elsewhere}" in message

    assert csalign("embed", features_recipe, "-q", *half, "--archive").exit_code == 0
    assert (run / "embeddings" / "frozen" / "dev.1" / "stage.json").is_file()
