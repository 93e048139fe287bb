"""Runs that tests make, cut short and compare: what several rooms' tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.training.step import Stepper

QUIET = Console(quiet=True)


def recipe_of(file: Path, run_dir: Path, *settings: str) -> Recipe:
    return load_recipe(str(file), [f"run_dir={run_dir}", "train.val_split=dev", *settings])


def trained(file: Path, run_dir: Path, *settings: str) -> Recipe:
    recipe = recipe_of(file, run_dir, *settings)
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, QUIET)
    return recipe


def run_of(recipe: Recipe) -> Path:
    return Layout(recipe).trained("aligned").path


def stored(recipe: Recipe, modality: str, name: str = "aligned") -> Any:
    layout = Layout(recipe)
    artifact = layout.frozen("dev") if name == "frozen" else layout.aligned(name, "dev")
    return Store(artifact.path).array(modality).all()


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training as the given step begins."""
    step = Stepper.step
    left = iter(range(steps))

    def cut(self: Any, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Stepper, "step", cut)


def assert_resumes_bitwise(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> Recipe:
    """A run cut in the middle of an epoch and resumed ends as one that was not cut; returns the latter's recipe."""
    settings = (*settings, "train.checkpoint_steps=1", "train.log_steps=1")
    whole = trained(file, tmp_path / "whole", *settings)
    cut = recipe_of(file, tmp_path / "cut", *settings)
    for stage in ("prepare", "embed"):
        run_stage(stage, cut, QUIET)
    with monkeypatch.context() as patched:
        killed_after(3, patched)
        with pytest.raises(KeyboardInterrupt):
            run_stage("train", cut, QUIET)
    assert json.loads((run_of(cut).with_name("aligned.partial") / "last.json").read_text())["step"] == 3
    run_stage("train", cut, QUIET)
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (run_of(cut) / name).read_bytes() == (run_of(whole) / name).read_bytes(), name
    return whole
