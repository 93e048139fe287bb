"""The record of a run: resolved recipe, versions, code state, and what each stage did."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cs_aligner_cli import __version__
from cs_aligner_cli.files.artifact import read_json, write_bytes, write_json
from cs_aligner_cli.files.checksums import SEAL, sealed, unsealed
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


def read_run_record(path: Path) -> dict[str, Any]:
    """The record of a run so far; raise InputError if it is absent or damaged."""
    hint = "Remove it: every stage notes itself there when it is run again."
    record: Any = read_json(path, hint)
    older = isinstance(record, dict) and SEAL not in record and "stages" in record
    return record if older else unsealed(record, path, hint)


def record_stage(layout: Layout, command: str, result: dict[str, Any]) -> None:
    """Write the resolved recipe and note a stage's result in run.json."""
    record = read_run_record(layout.run_record) if layout.run_record.is_file() else {"stages": {}}
    recipe = layout.recipe
    record |= {
        "name": recipe.name,
        "seed": recipe.seed,
        "versions": versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "data_fingerprint": layout.prepared.fingerprint(),
        "recipe": recipe.model_dump(mode="json"),
    }
    if result["status"] == "done" or command not in record["stages"]:
        record["stages"][command] = result
    write_json(layout.run_record, sealed(record))
    write_bytes(layout.folder / "recipe.yaml", recipe.to_yaml().encode())
