"""A user's days in short; benchmarks/daily_use.py says how they are lived."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "daily_use.py"


@pytest.mark.parametrize(
    ("days", "steps"), [(3, 8), pytest.param(12, 20, marks=pytest.mark.slow)], ids=["short", "two hundred steps"]
)
def test_no_finished_training_is_lost_and_no_stale_number_is_used(days: int, steps: int) -> None:
    ended = subprocess.run(
        [sys.executable, SCRIPT, "--days", str(days), "--steps", str(steps), "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    counts = json.loads(ended.stdout)
    assert counts["done"] and counts["killed"]
    if days > 3:
        assert counts["numbers compared"] and counts["refused"] and counts["moves"] and counts["copies"]
