"""Runs and data that are moved or copied elsewhere stay fresh; another folder in their place is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import Csalign, features_recipe_content
from pydantic import BaseModel

from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.files.places import _NAMED, places, same_place, without_paths
from cs_aligner_cli.recipe.messages import section_models
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout

STAGES = ("prepare", "embed", "train", "embed")


def _statuses(csalign: Csalign, recipe: Path, *options: str) -> set[str]:
    return {csalign(stage, recipe, "--json", *options).json["status"] for stage in STAGES}


@pytest.fixture
def project(tmp_path: Path, features_root: Path, csalign: Csalign) -> Path:
    """A folder of data, recipe and its finished run."""
    folder = tmp_path / "one" / "project"
    folder.mkdir(parents=True)
    features_root.rename(folder / "features")
    content = features_recipe_content(Path("features"), Path("runs/mine"))
    content["train"]["epochs"] = 1
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert _statuses(csalign, folder / "recipe.yaml") == {"done"}
    return folder


def test_a_moved_or_copied_project_has_nothing_to_do(
    project: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    project.rename(moved)
    assert PreparedData(moved / "runs" / "mine" / "data").root == moved / "features"
    assert csalign("train", moved / "recipe.yaml", "--json").json["status"] == "fresh", "before prepare was called"
    assert _statuses(csalign, moved / "recipe.yaml") == {"fresh"}

    shutil.copytree(moved, tmp_path / "copy")
    assert csalign("train", tmp_path / "copy" / "recipe.yaml", "--json").json["status"] == "fresh"
    assert _statuses(csalign, tmp_path / "copy" / "recipe.yaml") == {"fresh"}

    (moved / "features").rename(tmp_path / "data")
    with_root = ("--set", f"data.root={tmp_path / 'data'}")
    assert _statuses(csalign, moved / "recipe.yaml", *with_root) == {"fresh"}
    weights = ("--set", f"run_dir={tmp_path / 'third'}", "--set", f"data.dir={moved / 'runs' / 'mine' / 'data'}")
    third = (*weights, *with_root, "--set", f"embed.weights={moved / 'runs' / 'mine'}")
    assert csalign("embed", moved / "recipe.yaml", "-q", *third).exit_code == 0
    (moved / "runs" / "mine" / "train").rename(tmp_path / "train")
    fourth = (*weights, *with_root, "--set", f"embed.weights={tmp_path / 'train' / 'aligned'}")
    assert csalign("embed", moved / "recipe.yaml", "--json", *fourth).json["status"] == "fresh"


def test_another_folder_in_the_place_of_the_data_is_noticed(
    project: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(project / "features", tmp_path / "features")
    (tmp_path / "features" / "captions.txt").touch()
    message = refused("train", project / "recipe.yaml", "--set", f"data.root={tmp_path / 'features'}")
    assert f"may be stale: data.root was {project / 'features'} and is now {tmp_path / 'features'}" in message
    assert "See whether it is: csalign prepare" in message


def test_paths_are_no_part_of_what_an_output_is() -> None:
    recipe = {
        "data": {"manifest": "scenes", "root": "/x/data"},
        "encoders": {"image": {"model": "local-dir:/m", "pretrained": "openai", "checkpoint": None}},
        "generate": {"decoder": {"model": "local-dir:/d", "kind": "/k"}},
    }
    assert without_paths(recipe)["data"] == {"manifest": "scenes"}
    assert without_paths(recipe)["encoders"]["image"]["model"] == "local-dir:(a path)"
    assert without_paths(recipe)["generate"] == {"decoder": {"model": "local-dir:(a path)", "kind": "/k"}}
    assert places(recipe) == {
        "data.root": "/x/data", "encoders.image.model": "/m", "generate.decoder.model": "/d"
    }  # fmt: skip


def test_equal_files_are_one_place_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_text("1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert same_place(str(tmp_path / "a"), str(tmp_path / "b"))
    assert same_place(str(tmp_path / "gone"), str(tmp_path / "b"))
    (tmp_path / "b" / "deep" / "file").write_text("22")
    assert not same_place(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not same_place(str(tmp_path / "a"), str(tmp_path / "gone"))


def _paths(model: type[BaseModel], key: str = "") -> Iterator[str]:
    """The keys of a model that hold paths."""

    def holds(annotation: Any) -> bool:
        return annotation is Path or any(map(holds, get_args(annotation)))

    for name, field in model.model_fields.items():
        if holds(field.annotation):
            yield f"{key}{name}"
        for section in section_models(field.annotation):
            yield from _paths(section, f"{key}{name}.")


def test_every_path_of_a_recipe_is_compared_by_its_files_or_by_what_lies_there() -> None:
    compared = {f"{section}.{name}" for section, names in _NAMED.items() for name in names}
    by_content = {
        "train.from",
        "train.runs",
        "embed.weights",
        "gap_report.beside",
        "gap_report.seeds",
        "generate.beside",
    }
    outputs = {"run_dir", "data.dir", "embed.dir", "prepare.dir"}
    found = {".".join(dict.fromkeys((key.split(".")[0], key.split(".")[-1]))) for key in _paths(Recipe)}
    assert found <= compared | by_content | outputs
    assert Layout(load_recipe({"name": "x"})).prepared.places == {}
