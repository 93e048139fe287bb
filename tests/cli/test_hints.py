"""Messages that say what to write: other names of keys, splits, shards and ks, commands to paste, versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.cli.remedies import complete_commands
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.messages import key_paths
from cs_aligner_cli.recipe.recipe import VERSION, Recipe, load_recipe
from cs_aligner_cli.recipe.shelf import find, names
from cs_aligner_cli.recipe.strict_yaml import read_yaml
from cs_aligner_cli.recipe.synonyms import NOTES, SYNONYMS

Csalign = Callable[..., Any]


def test_every_synonym_means_a_key_and_is_none_itself() -> None:
    paths = key_paths(Recipe)
    for name, meant in SYNONYMS.items():
        assert any(f".{path}".endswith(f".{meant}") for path in paths), name
    assert set(NOTES) <= set(SYNONYMS)


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("train.objective.divergence.sigma=1", "train.objective.divergence.bandwidth?"),
        ("train.sigma=1", "train.objective.divergence.bandwidth?"),
        ("train.objective.divergence.lambda=1", "train.objective.divergence.weight?"),
        ("train.objective.tokens={lambda: 1}", "train.objective.tokens.weight?"),
        ("train.lambda=1", "train.objective.divergence.weight?"),
        ("train.temperature=0.07", "train.objective.pairwise.logit_scale (1 / temperature)?"),
        ("train.epoch_count=3", "train.epochs?"),
        ("epoch-count=3", "train.epochs?"),
        ("train.learning_rate=1", "train.lr?"),
        ("train.text.lora.r=8", "train.text.lora.rank?"),
    ],
)
def test_names_of_papers_and_other_tools_are_understood(setting: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("scenes", [setting])
    assert f"unknown key; did you mean {meant}" in str(caught.value)


def test_a_kind_set_alone_takes_the_place_of_a_value() -> None:
    recipe = load_recipe("scenes", ["train.objective.divergence.weight.kind=relative"])
    assert recipe.train is not None
    assert recipe.train.objective.divergence.weight.ratio == 0.5  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"weight is 1\.0 here, and has no keys"):
        load_recipe("scenes", ["train.objective.divergence.weight.ratio=0.5"])


@pytest.mark.parametrize(("version", "word"), [(VERSION + 1, "newer"), (VERSION - 1, "older")])
def test_a_recipe_of_another_version_is_named(write_yaml: Callable[..., Path], version: int, word: str) -> None:
    with pytest.raises(InputError, match=rf"r\.yaml:1: version: this recipe is {word} .* version {version}, and it"):
        load_recipe(str(write_yaml("r.yaml", version=version, name="x", of_another_time=1)))


def test_every_shipped_recipe_carries_the_version() -> None:
    for name in names("recipes"):
        assert read_yaml(find("recipes", name)).data["version"] == VERSION, name


def test_commands_in_hints_are_whole() -> None:
    def said(message: str) -> str:
        return complete_commands(message, "my recipe.yaml", ["train.lr=1", "data.root=/a b"])

    whole = "'my recipe.yaml' --set train.lr=1 --set 'data.root=/a b'"
    assert said("Make it first: csalign embed") == f"Make it first: csalign embed {whole}"
    assert said("Again: csalign eval-retrieval --force") == f"Again: csalign eval-retrieval {whole} --force"
    assert said("Go on: csalign sweep RECIPE") == f"Go on: csalign sweep {whole}"
    for kept in (
        "csalign gap-report runs/a/recipe.yaml",
        "csalign gap-report 'a run/recipe.yaml'",
        "another csalign process",
        "csalign recipe list",
        "csalign sweeps",
    ):
        assert said(kept) == kept
    assert complete_commands("csalign embed", None, ()) == "csalign embed"


def test_a_hint_can_be_pasted(csalign: Csalign, features_recipe: Path) -> None:
    called = csalign("train", features_recipe, "--set", "train.epochs=1")
    command = f"csalign prepare {features_recipe} --set train.epochs=1"
    assert called.exit_code == 2 and called.stderr.strip().endswith(command)
    assert csalign(*command.split()[1:]).exit_code == 0


def test_validate_finds_splits_that_are_absent_and_ks_that_are_too_large(csalign: Csalign) -> None:
    called = csalign("recipe", "validate", "scenes", "--set", "eval_retrieval.split=tset")
    assert called.exit_code == 0 and called.stderr.count("warning") == 1
    assert (
        "eval_retrieval.split: split 'tset' is absent; did you mean test? (splits: test, train, val)" in called.stderr
    )
    called = csalign("recipe", "validate", "scenes", "--set", "eval_retrieval.ks=[1, 600]")
    assert called.exit_code == 0 and "the smallest gallery of split 'test' holds 500 items" in called.stderr
    # Here the manifest states only what it expects, and the data may have more.
    unsure = csalign("recipe", "validate", "flickr8k", "--set", "eval_retrieval.split=dve", "--set", "data.root=.")
    assert unsure.exit_code == 0 and "is absent; did you mean dev? (the manifest expects: dev, train)" in unsure.stderr


def test_doctor_asks_prepared_tables_for_splits(csalign: Csalign, features_recipe: Path) -> None:
    assert csalign("prepare", features_recipe).exit_code == 0
    settings = ["--set", "eval_retrieval.ks=[1, 50]", "--set", "gap_report.split=tets"]
    called = csalign("doctor", features_recipe, "--json", *settings)
    found = {check["name"]: check for check in called.json["checks"]}
    assert found["gap_report.split"]["state"] == "failed" and "did you mean test?" in found["gap_report.split"]["found"]
    assert found["eval_retrieval.ks"]["state"] == "failed"
    assert "holds 40 items; expected at most 40" in found["eval_retrieval.ks"]["found"]


def test_missing_shards_are_named(csalign: Csalign, tmp_path: Path, write_yaml: Callable[..., Path]) -> None:
    for number in (0, 1, 2, 4, 5, 7):
        (tmp_path / f"{number:05d}.tar").write_bytes(b"")
    manifest = write_yaml("m.yaml", name="m", kind="webdataset", shards={"train": "*.tar"})
    recipe = write_yaml("r.yaml", version=1, name="r", data={"manifest": str(manifest)})
    called = csalign("doctor", recipe, "--json", "--set", "eval_retrieval.split=train")
    shards = [check for check in called.json["checks"] if "numbered files" in check["found"]]
    assert [check["state"] for check in shards] == ["warning"]
    assert "shards.train: 2 of 8 numbered files are not there: 00003.tar, 00006.tar" in shards[0]["found"]
    assert "00003.tar" in csalign("recipe", "validate", recipe, "--set", "eval_retrieval.split=train").stderr
