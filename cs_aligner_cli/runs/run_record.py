"""The record of a run: resolved recipe, versions, code state, and what each stage did."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field

from cs_aligner_cli import __version__
from cs_aligner_cli.common.results import Frozen, StageResult
from cs_aligner_cli.files.artifact import read_json, write_bytes, write_json
from cs_aligner_cli.files.checksums import SEAL, sealed, unsealed
from cs_aligner_cli.files.places import aside_of
from cs_aligner_cli.runs.cost import Cost
from cs_aligner_cli.runs.layout import Layout

_PACKAGES = (
    "torch",
    "open_clip_torch",
    "transformers",
    "sentence-transformers",
    "timm",
    "peft",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "pandas",
    "webdataset",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of csalign, Python and the packages that numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"csalign": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> str:
    """Commit of the repository in the current folder, with "+changes" where it is dirty; "" outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return ""


class RunRecord(Frozen):
    """What a run is: its resolved recipe, with what it was made, and what each of its stages did."""

    name: str
    seed: int
    versions: dict[str, str] = Field(description="of csalign, Python and the packages that numbers depend on")
    git: str = Field(description="the commit of the folder that csalign ran in, if it is a repository")
    platform: str
    data_fingerprint: str | None
    recipe: dict[str, Any]
    stages: dict[str, dict[str, Any]] = Field(description="by stage, what it returned")
    costs: dict[str, Cost] = Field({}, description="by stage, what it cost when it was last done")
    seal: str = Field("", description="the checksum of this record")


def read_run_record(path: Path) -> dict[str, Any]:
    """The record of a run so far; raise InputError if it is absent or damaged."""
    hint = "Remove it: every stage notes itself there when it is run again."
    record: Any = read_json(path, hint)
    older = isinstance(record, dict) and SEAL not in record and "stages" in record
    return record if older else unsealed(record, path, hint)


def record_stage(
    layout: Layout, stage: str, result: StageResult, cost: Cost, is_current: Callable[[str], bool] = lambda name: True
) -> None:
    """Note in run.json what a stage did, and with what; write the resolved recipe beside it.

    Of another recipe than was recorded before, only those other stages stay whose output ``is_current``: what they
    returned stands beside the recipe, and must be of it.

    Where nothing was done and the recipe is as recorded, the record only gets the time of now: it is the one file that
    every command leaves newer than what it read, as make wants to see. Where a kill cut its writing, it
    is written again.
    """
    former = read_run_record(layout.run_record) if layout.run_record.is_file() else {"stages": {}}
    recipe, stages = layout.recipe.model_dump(mode="json"), former["stages"]
    cut = aside_of(layout.run_record).exists()
    if former.get("recipe") != recipe:
        stages = {name: found for name, found in stages.items() if name == stage or is_current(name)}
    elif result.status == "fresh" and stage in stages and not cut:
        os.utime(layout.run_record)
        return
    done = result.status == "done" or stage not in stages
    record = RunRecord(
        name=layout.recipe.name,
        seed=layout.recipe.seed,
        versions=versions(),
        git=git_state(),
        platform=platform.platform(),
        data_fingerprint=layout.prepared.fingerprint(),
        recipe=recipe,
        stages={**stages, stage: result.data()} if done or cut else stages,
        costs={**former.get("costs", {}), **({stage: cost} if done else {})},
    )
    write_json(layout.run_record, sealed(record.data()))
    write_bytes(layout.folder / "recipe.yaml", layout.recipe.to_yaml().encode())
