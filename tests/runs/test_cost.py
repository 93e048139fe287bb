"""The cost of a stage: clock, processor and memory, each against what was spent on purpose."""

from __future__ import annotations

import time

import numpy as np

from cs_aligner_cli.runs.cost import Meter


def test_time_and_memory_that_were_spent_are_found() -> None:
    meter = Meter()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    held = np.ones(200 * 1024**2 // 8)
    time.sleep(0.1)
    cost = meter.read()
    assert held[-1] == 1
    assert cost.seconds >= 0.3
    assert 0.2 <= cost.cpu_seconds <= cost.seconds + 1
    assert cost.peak_memory_mb >= 200


def test_a_peak_of_before_does_not_count() -> None:
    held = np.ones(300 * 1024**2 // 8)
    before = Meter().read().peak_memory_mb
    del held
    assert Meter().read().peak_memory_mb <= before - 250
