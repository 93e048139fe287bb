"""What is measured: a split that is trained on, and one that is smaller than the largest k."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import features_recipe_content, make_features

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.manifest_splits import cut_ks
from cs_aligner_cli.recipe.eval_retrieval import EvalRetrieval

Csalign = Callable[..., Any]
TINY = ("--set", "train.epochs=1", "--set", "gap_report.examples=0", "--set", "eval_retrieval.bootstrap=0")


@pytest.fixture
def recipe(tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    make_features(tmp_path / "features", {"train": 60, "dev": 8})
    return write_yaml("r.yaml", **features_recipe_content(tmp_path / "features", tmp_path / "run"))


def test_training_and_measuring_one_split_works_and_says_so(recipe: Path, csalign: Csalign) -> None:
    one = ("--set", "eval_retrieval.split=train", *TINY)
    called = csalign("run", recipe, *one)
    assert called.exit_code == 0, called.stderr
    assert "TRAINING DATA ARE MEASURED: eval_retrieval.split and gap_report.split: train" in called.stderr
    results = json.loads((recipe.parent / "run" / "eval_retrieval" / "results.json").read_text())
    assert any(note.startswith("TRAINING DATA ARE MEASURED") for note in results["notes"])
    report = json.loads((recipe.parent / "run" / "gap_report" / "report.json").read_text())
    assert any(finding.startswith("TRAINING DATA ARE MEASURED") for finding in report["findings"])
    assert "TRAINING DATA" in csalign("prepare", recipe, *one).stderr
    assert "TRAINING DATA" not in csalign("prepare", recipe, *TINY).stderr


def test_the_default_ks_are_cut_to_a_small_split(recipe: Path, csalign: Csalign) -> None:
    said = csalign("prepare", recipe).stderr
    assert "eval_retrieval.ks: [1, 5, 10] is cut to [1, 5, 8]: a gallery of split 'dev' holds 8 items" in said
    called = csalign("run", recipe, *TINY)
    assert called.exit_code == 0, called.stderr
    results = json.loads((recipe.parent / "run" / "eval_retrieval" / "results.json").read_text())
    assert "eval_retrieval.ks: [1, 5, 10] was cut to [1, 5, 8]: the smallest gallery holds 8 items" in results["notes"]
    assert "Could one have had it for free?" in called.stderr  # what the report opens with ends a run


def test_other_ks_above_the_gallery_are_refused(recipe: Path, refused: Callable[..., str], csalign: Csalign) -> None:
    """Once the tables are there, hence before anything is embedded; a gallery of some folds is known only later."""
    large = ("--set", "eval_retrieval.ks=[1, 9]")
    message = refused("run", recipe, *large)
    assert (
        "eval_retrieval.ks: got 9, but the smallest gallery of split 'dev' holds 8 items; expected at most 8" in message
    )
    assert message.endswith("For example: --set 'eval_retrieval.ks=[1, 8]'")
    assert (recipe.parent / "run" / "data" / "stage.json").is_file()
    assert not (recipe.parent / "run" / "embeddings").exists()
    assert "holds 4 items" in refused("prepare", recipe, "--set", "eval_retrieval.folds=2", *large)
    assert csalign("prepare", recipe, "--set", "eval_retrieval.ks=[1, 8]").exit_code == 0


def test_a_further_data_set_takes_as_many_ks_as_it_holds() -> None:
    spec = EvalRetrieval.model_validate({"ks": [1, 100]})
    assert cut_ks(spec, 50, 250, of_set=True).startswith("eval_retrieval.ks: [1, 100] is cut to [1, 50]")
    with pytest.raises(InputError, match="got 100, but the smallest gallery"):
        cut_ks(spec, 50, 250)


def test_an_unknown_model_is_refused_before_anything_is_read(photos_recipe: Path, refused: Callable[..., str]) -> None:
    photos_recipe.write_text(photos_recipe.read_text().replace("captions.csv", "gone.csv"))
    unknown = "encoders={image: {kind: open_clip, model: ViT-B-33, random_init: true}}"
    assert "open_clip knows no model 'ViT-B-33'; did you mean ViT-B-32" in refused(
        "prepare", photos_recipe, "--set", unknown
    )
