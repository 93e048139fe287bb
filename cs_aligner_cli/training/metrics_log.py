"""The log of a training run: the lines of its metrics.jsonl."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ConfigDict, Field

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.results import Frozen, finite
from cs_aligner_cli.files.artifact import verify_file

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class LogMark:
    """How much of the log a checkpoint goes with: its length, and the digest of so much of it."""

    bytes: int = 0
    digest: str = ""


class LogLine(Frozen):
    """One line of the log: of a step of training, or of a validation, which has only the last field.

    Objectives may add what they note of a step.
    """

    model_config = ConfigDict(extra="allow")

    step: int
    epoch: int
    lr: float | None = None
    loss: float | None = None
    terms: dict[str, float | None] = Field(
        {}, description="values of the terms of the loss, before their weights; null where one of weight 0 has none"
    )
    weights: dict[str, float] = Field({}, description="what each term counts in this step")
    grad_norm_ratio: dict[str, float | None] = Field({}, description="of each other term to the pairwise one")
    grad_norm: float | None = Field(None, description="null where fp16 left the step out")
    logit_scale: float | None = None
    bandwidth: float | list[float] | None = None
    left_out_pairs: int | None = Field(None, description="by objective.noise_filter, in all steps so far")
    judged_pairs: int | None = Field(None, description="those that it has seen")
    conflict: dict[str, Any] = Field({}, description="how the terms' gradients work against each other")
    val_recall: dict[str, float] = Field({}, alias="val_R@1", description="by direction (i2t, t2i)")


class TrainingLog:
    """Appends to the log in a run's folder, cut to what it was at a checkpoint, so that no line comes twice.

    Raises InputError if its beginning is no longer what was written.
    """

    def __init__(self, folder: Path, mark: LogMark) -> None:
        path, size = folder / FILE, mark.bytes
        path.touch()
        self._digest = hashlib.blake2b(path.read_bytes()[:size], digest_size=16)
        if size and self._digest.hexdigest() != mark.digest:
            raise InputError(
                f"{path}: is damaged: it is not what the training run wrote", f"Remove {folder} to begin it anew."
            )
        os.truncate(path, size)
        self._file = path.open("ab")

    def write(self, metrics: dict[str, Any]) -> None:
        """Append one line; what is not finite in it is null, since JSON has no NaN."""
        line = (json.dumps(finite(metrics), allow_nan=False) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)

    def mark(self) -> LogMark:
        """What a checkpoint remembers of the log, which is then on the disk."""
        os.fsync(self._file.fileno())
        return LogMark(self._file.tell(), self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_training_log(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run's folder; none where there is no log. A line that a crash cut short ends it."""
    path = folder / FILE
    verify_file(path)
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
