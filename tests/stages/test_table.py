"""The table of stages drives the commands, the order of a run, the locks and the record."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.files.locks import lock
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import make
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stages.table import STAGES


def test_every_stage_is_a_command_with_the_common_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for stage in STAGES.values():
        options = {parameter.name for parameter in commands[stage.command].params}
        assert options >= {"recipe", "overrides", "as_json", "force", "quiet", "debug"}
        assert commands[stage.command].help == stage.about


def test_every_stage_is_a_function_of_recipe_console_and_force() -> None:
    for stage in STAGES.values():
        expected = ["recipe", "console", "force", *(["ranks", "archive"] if stage.shared_by_ranks else [])]
        assert list(inspect.signature(stage.function).parameters) == expected


def test_stages_lock_and_make_what_the_table_says(features_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(features_recipe), [f"embed.dir={tmp_path / 'shared'}"])
    layout = Layout(recipe)
    assert STAGES["prepare"].folders(recipe) == [recipe.folder, layout.prepared.path]
    assert STAGES["embed"].folders(recipe) == [recipe.folder, tmp_path / "shared"]
    own = load_recipe(str(features_recipe))
    assert STAGES["embed"].folders(own) == [own.folder, Layout(own).frozen("test").path.parent]
    assert STAGES["train"].folders(recipe) == [recipe.folder]
    made = {stage.name: [artifact.name for artifact in stage.outputs(layout)] for stage in STAGES.values()}
    assert made["train"][-1] == "training run aligned"
    assert made["gap_report"] == ["gap report"]


def test_a_run_and_its_guest_do_not_write_at_once(features_recipe: Path, tmp_path: Path) -> None:
    own = load_recipe(str(features_recipe))
    shared = [f"data.dir={own.folder / 'data'}", f"embed.dir={own.folder / 'embeddings' / 'frozen'}"]
    guest = load_recipe(str(features_recipe), [*shared, f"run_dir={tmp_path / 'guest'}"])
    for stage, folder in (("prepare", own.folder / "data"), ("embed", own.folder / "embeddings" / "frozen")):
        for recipe in (own, guest):
            with lock(folder, beside=stage == "prepare"), pytest.raises(InputError) as error:
                run_stage(stage, recipe, Console(quiet=True), patience=0.0)
            assert str(error.value).startswith(f"{folder}: another csalign process (pid ")
    assert not (own.folder / "data").exists()


def test_the_table_is_light() -> None:
    code = "import sys, cs_aligner_cli.stages.table; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_make_builds_once_and_again_when_forced(tmp_path: Path) -> None:
    calls = []

    def write(build: Build) -> dict[str, int]:
        calls.append(build)
        (build.folder / "out.txt").write_text("x")
        return {"calls": len(calls)}

    artifact = Artifact("thing", tmp_path / "thing", "csalign thing", {"a": 1})
    assert (made := make(artifact, write)).status == "done" and made.summary == {"calls": 1}
    assert (made := make(artifact, write)).status == "fresh" and made.summary == {"calls": 1}
    assert make(artifact, write, force=True).summary == {"calls": 2}
    assert make(artifact, write, sources="other").summary == {"calls": 3}


def test_make_asks_for_needs_first_and_reads_them_only_to_build(tmp_path: Path) -> None:
    need = Artifact("need", tmp_path / "need", "csalign need", {})
    artifact = Artifact("thing", tmp_path / "thing", "csalign thing", {}, (need,))
    with pytest.raises(InputError, match=r"no need in .*\nMake it first: csalign need"):
        make(artifact, lambda build: {})

    def write(build: Build) -> dict[str, int]:
        (build.folder / "out.txt").write_text("right")
        return {}

    make(need, write)
    make(artifact, write)
    (need.path / "out.txt").write_text("wrong")  # of one size
    assert make(artifact, write).status == "fresh"
    with pytest.raises(InputError, match=r"out\.txt: is damaged"):
        make(artifact, write, force=True)


def test_a_build_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    artifact = Artifact("thing", tmp_path / "thing", "csalign thing", {})

    def fails(build: Build) -> dict[str, int]:
        raise InputError("wrong from the start")

    with pytest.raises(InputError):
        make(artifact, fails)
    assert list(tmp_path.iterdir()) == []
