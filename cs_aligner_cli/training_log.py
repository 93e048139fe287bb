"""The log of a training run: the lines of its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


def read_training_log(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run's folder; none where there is no log. A line that a crash cut short ends it."""
    path = folder / FILE
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
