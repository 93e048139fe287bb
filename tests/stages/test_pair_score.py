"""csalign pair-score: own and other runs' encoders, the best first, on pairs that training may know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from trained_runs import QUIET

from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stages.pair_score import _parts, _taken
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store


def embedded(file: Path, folder: Path, *settings: str) -> list[str]:
    given = [f"run_dir={folder}", "data.unpaired={paired_fraction: 0.5}", *settings]
    recipe = load_recipe(str(file), given)
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, QUIET)
    return [part for setting in given for part in ("--set", setting)]


def test_encoders_of_several_runs_are_ranked_and_named_once(
    features_recipe: Path, tmp_path: Path, csalign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = embedded(features_recipe, tmp_path / "mine")
    embedded(features_recipe, tmp_path / "signs", "encoders.image.power=0.01")
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["pair-score", str(features_recipe), *given, "--beside", str(tmp_path / "signs")]
    shown = csalign(*arguments)
    assert shown.exit_code == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "signs: its text encoder is that of mine" in shown.stderr
    found = json.loads(csalign(*arguments, "--json").stdout)
    jsonschema.validate(found, result_schema("pair-score"))
    assert [one["image"] for one in found["scores"]] == ["mine", "signs"], "signs of features have lost much of them"
    assert {one["text"] for one in found["scores"]} == {"mine"}
    assert found["pairs"] == 60, "half of 120 images keep their captions"
    assert found["scores"][0]["cca_recall"] > 0.5


def test_a_run_without_stores_is_refused(features_recipe: Path, tmp_path: Path, csalign: Any) -> None:
    arguments = ["pair-score", str(features_recipe), *embedded(features_recipe, tmp_path / "mine")]
    refused = csalign(*arguments, "--beside", str(tmp_path / "gone"))
    assert refused.exit_code == 2 and "holds no finished frozen store of split 'train'" in refused.stderr
    twice = csalign(*arguments, "--beside", str(tmp_path / "mine"))
    assert twice.exit_code == 2 and "two folders are named mine" in twice.stderr


def test_layers_of_one_pass_are_scored_apart_and_together(
    features_recipe: Path, tmp_path: Path, csalign: Any, tiny_clip_config: dict[str, Any]
) -> None:
    text = {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}
    named = {name: f"encoders.text={json.dumps({**text, **more})}" for name, more in LAYERS.items()}
    given = embedded(features_recipe, tmp_path / "both", named["both"])
    embedded(features_recipe, tmp_path / "inner", named["inner"])
    shown = csalign("pair-score", str(features_recipe), *given, "--beside", str(tmp_path / "inner"), "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    jsonschema.validate(found, result_schema("pair-score"))
    assert sorted(one["text_layers"] for one in found["scores"]) == [[1], [2], [2, 1]]
    assert {tuple(one["image_layers"]) for one in found["scores"]} == {()}
    assert "inner: layer 1 of its text encoder is that of both" in found["notes"], "one layer is scored once"
    alone = csalign("pair-score", str(features_recipe), *embedded(features_recipe, tmp_path / "inner", named["inner"]))
    [of_inner] = [one for one in found["scores"] if one["text_layers"] == [1]]
    assert f"{100 * of_inner['cca_recall']:.1f}" in alone.stdout, "a block scores as a store of it alone"


LAYERS = {"both": {"layers": [-1, 1]}, "inner": {"layers": [1]}}


def test_the_layers_of_a_store_are_parts_of_one_array(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    values = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    np.save(tmp_path / "text" / "shard-00000.npy", values)
    (tmp_path / "identity.json").write_text(json.dumps({"text": {"layers": [3, 1], "widths": [4, 2]}}))
    rows = np.array([5, 1, 8])
    whole, *parts = _taken([*_parts("run", "text", Store(tmp_path))], rows)
    assert [whole.tolist(), *(part.tolist() for part in parts)] == [
        x[rows].tolist() for x in (values, values[:, :4], values[:, 4:])
    ]
    assert all(np.shares_memory(part, whole) for part in parts), "else memory grows with the square of the layers"
