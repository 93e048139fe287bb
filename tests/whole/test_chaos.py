"""The kill campaign in short; ``make chaos`` is the long one, and benchmarks/chaos.py says how it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import can_mount

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def test_killed_runs_full_disks_and_flipped_bits_end_as_if_nothing_had_happened() -> None:
    disks = 1 if can_mount() else 0
    options = ["--kills", "4", "--disk-full", str(disks), "--bit-flips", "3", "--recipes", "scenes", "latent", "--json"]
    options += ["--sweep-kills", "2", "--short-sweep"]
    ended = subprocess.run([sys.executable, CAMPAIGN, *options], capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failures"] == []
    counts = found["counts"]
    assert counts["kills"] >= 4
    assert counts["kills of sweeps"] == 2
    assert sum(count for what, count in counts.items() if "disk" in what and "seconds" not in what) == disks
    assert sum(count for what, count in counts.items() if what.startswith("flips")) == 3
    assert ended.returncode == 0
    if not disks:
        pytest.skip("no tmpfs can be mounted here: full disks were not tried")
