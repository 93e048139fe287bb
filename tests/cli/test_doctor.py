"""doctor: what it finds, what it refuses, and that it neither loads nor leaves anything."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

Csalign = Callable[..., Any]
TEXT, LAION = "encoders.text={kind: ", "pretrained: laion2b_s34b_b79k"


def states(called: Any) -> dict[str, str]:
    return {check["name"]: check["state"] for check in called.json["checks"]}


def found(called: Any, name: str) -> dict[str, str]:
    return next(check for check in called.json["checks"] if check["name"] == name)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder without a recipe, a model cache without models, and a hub that does not answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    return tmp_path


def test_the_machine_alone(csalign: Csalign, nowhere: Path) -> None:
    called = csalign("doctor", "--json")
    assert called.exit_code == 0, called.stdout
    assert called.json["ok"] is True
    seen = states(called)
    assert {"csalign", "packages", "device cpu", "faiss", f"current folder {nowhere}"} <= set(seen)
    assert {"extra umap", "extra tensorboard", "extra wandb", "extra mlflow"} <= set(seen)
    assert "torch" in found(called, "packages")["found"]
    assert found(called, "faiss")["found"].endswith(("on the CPU", "GPU", "GPUs"))
    for check in called.json["checks"]:
        assert check["state"] in ("ok", "warning")
        assert (check["state"] == "ok") or check["remedy"], check
    assert not [path for path in nowhere.iterdir() if path.name != "cache"]
    shown = csalign("doctor")
    assert "device cpu" in shown.stdout


def test_a_recipe_that_can_run(csalign: Csalign, features_recipe: Path, tmp_path: Path) -> None:
    called = csalign("doctor", features_recipe, "--json")
    assert called.exit_code == 0, called.stdout
    seen = states(called)
    assert {"recipe", f"run_dir {tmp_path / 'run'}", "data", "encoders.image", "encoders.text", "train.device"} <= set(
        seen
    )
    assert "image_mobilenet_v2.npy" in found(called, "encoders.image")["found"]
    assert found(called, "splits")["found"] == "train, dev (whether the data have them is known once they are prepared)"
    assert "GB free" in found(called, f"run_dir {tmp_path / 'run'}")["found"]
    assert not (tmp_path / "run").exists()


def test_the_default_recipe_is_looked_at(
    csalign: Csalign, features_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(features_recipe.parent)
    features_recipe.rename("recipe.yaml")
    assert states(csalign("doctor", "--json"))["recipe"] == "ok"


@pytest.mark.parametrize(
    ("setting", "name", "message", "remedy"),
    [
        ("train.lrr=1", "recipe", "train.lrr", ""),
        ("data.root=/nowhere/at/all", "data", "/nowhere/at/all is not a folder", ""),
        (
            "data.unpaired={sources: [{manifest: flickr8k, root: /nowhere}]}",
            "data.unpaired.sources.0",
            "/nowhere is not a folder",
            "",
        ),
        ("encoders.further={audio: {}}", "encoders.further.audio", "brings no features of it", ""),
        (f"{TEXT}transformers, model: local-dir:absent}}", "encoders.text", "is no folder", "save_pretrained"),
        (f"{TEXT}transformers, model: some/model}}", "encoders.text", "is not cached", "hf download some/model"),
        (f"{TEXT}open_clip, model: ViT-B-33, random_init: true}}", "encoders.text", "did you mean ViT-B-32", ""),
        (f"{TEXT}open_clip, model: ViT-B-32, {LAION}}}", "encoders.text", "cannot be reached", "Without a network"),
        ("embed.device=mps", "embed.device", "not available on this machine", "auto or cpu"),
    ],
)  # fmt: skip
def test_what_is_missing_is_reported_with_its_remedy(
    csalign: Csalign, features_recipe: Path, nowhere: Path, setting: str, name: str, message: str, remedy: str
) -> None:
    called = csalign("doctor", features_recipe, "--json", "--set", setting)
    assert called.exit_code == 2
    check = found(called, name)
    assert check["state"] == "failed"
    assert message in check["found"] + check["remedy"]
    assert remedy in check["remedy"]
    assert called.json["ok"] is False
    assert "checks failed: " in called.stderr and name in called.stderr


def test_features_that_are_not_there(csalign: Csalign, features_recipe: Path, features_root: Path) -> None:
    (features_root / "text_minilm.npy").unlink()
    called = csalign("doctor", features_recipe, "--json")
    assert called.exit_code == 2
    assert found(called, "encoders.text")["found"].endswith("text_minilm.npy: no such file")


def test_weights_that_pictures_need(csalign: Csalign, features_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"other")
    decoder = "{kind: karlo, model: 'local-dir:gone'}"
    metrics = f"{{inception: {{weights: '{tmp_path / 'other.pth'}'}}}}"
    called = csalign("doctor", features_recipe, "--json", f"--set=generate={{decoder: {decoder}, metrics: {metrics}}}")
    assert found(called, "generate.decoder.model")["found"].endswith("gone is no folder")
    inception = found(called, "generate.metrics.inception.weights")
    assert inception["state"] == "failed" and "expected one that begins with 6726825d" in inception["found"]


def test_extras_that_a_recipe_asks_for(
    csalign: Csalign, features_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("umap", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    request = ["--set=gap_report.projection=umap", "--set=train.trackers=[wandb]"]
    called = csalign("doctor", features_recipe, "--json", *request)
    assert called.exit_code == 2
    for key, extra in (("gap_report.projection", "umap"), ("train.trackers", "wandb")):
        assert found(called, key)["state"] == "failed"
        assert f"cs-aligner-cli[{extra}]" in found(called, key)["remedy"]


def test_folders_that_cannot_be_written_or_are_full(
    csalign: Csalign, features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    called = csalign("doctor", features_recipe, "--json", f"--set=run_dir={tmp_path / 'file' / 'run'}")
    assert found(called, f"run_dir {tmp_path / 'file' / 'run'}")["found"] == f"{tmp_path / 'file'} is a file"
    called = csalign("doctor", features_recipe, "--json", "--set=run_dir=/proc/run")
    assert called.exit_code == 2
    assert "/proc cannot be written" in found(called, "run_dir /proc/run")["found"]

    from cs_aligner_cli.cli import doctor

    monkeypatch.setattr(doctor, "_NOTHING", 1e18)
    full = csalign("doctor", features_recipe, "--json")
    assert full.exit_code == 2
    assert "GB free" in found(full, f"run_dir {tmp_path / 'run'}")["found"]
    assert found(full, f"run_dir {tmp_path / 'run'}")["remedy"].startswith("Make room")


def test_json_is_one_object_also_when_something_failed(csalign: Csalign, features_recipe: Path) -> None:
    called = csalign("doctor", features_recipe, "--json", "--set=embed.device=mps")
    assert set(json.loads(called.stdout)) == {"command", "ok", "checks"}
    assert os.linesep + "csalign" not in called.stdout
