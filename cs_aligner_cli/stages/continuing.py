"""A finished training that one with more epochs goes on from, where its last state is still there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cs_aligner_cli.files.artifact import Artifact, fingerprint

STATE = "last.json"
# What a training needs of an earlier one to go on from it; the state comes last, since it says that all is there.
_TAKEN = (
    "metrics.jsonl",
    "trackers.json",
    "self-training-*.json",
    "best.safetensors",
    "last-*.safetensors",
    "last-*.json",
    STATE,
)


def more_epochs(artifact: Artifact) -> dict[str, Any] | None:
    """The record of the finished training of an output, if all that is wanted of it now is more epochs."""
    record = artifact.record()
    if record is None:
        return None
    changed = artifact.changes(record)
    raised = len(changed) == 1 and changed[0].startswith("train.epochs ")
    return record if raised and artifact.wanted()["recipe"]["train"]["epochs"] > epochs_of(record) else None


def goes_on(artifact: Artifact) -> dict[str, Any] | None:
    """As ``more_epochs``, if the last state of that training is there."""
    record = more_epochs(artifact)
    return record if record and STATE in record["files"] else None


def epochs_of(record: dict[str, Any]) -> int:
    """The epochs of a finished training."""
    epochs: int = record["inputs"]["recipe"]["train"]["epochs"]
    return epochs


def earlier_ends(record: dict[str, Any]) -> Sequence[int]:
    """The epochs after which a training was finished that another goes on from, that of its own end included."""
    return [*record["summary"].get("continued_from_epochs", ()), epochs_of(record)]


def take_state(artifact: Artifact, record: dict[str, Any], folder: Path) -> None:
    """Copy into the folder of a build what it goes on from; raise InputError if that is damaged."""
    artifact.verify(record)
    if (folder / STATE).is_file():
        return
    for pattern in _TAKEN:
        for path in sorted(artifact.path.glob(pattern)):
            aside = folder / f".{path.name}.tmp"
            shutil.copy2(path, aside)
            aside.replace(folder / path.name)


def mark_of(record: dict[str, Any]) -> str:
    """What the inputs of a training say of the one that it goes on from."""
    return fingerprint(record["inputs"])
