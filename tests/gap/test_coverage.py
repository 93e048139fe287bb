"""What intervals and verdicts promise, over simulated stores: benchmarks/gap_statistics.py does it for every metric."""

from __future__ import annotations

import numpy as np
import pytest
from gap_statistics import REGIMES, drawn, false_clear

from cs_aligner_cli.gap.metrics import measure_headline

REPETITIONS = {100: 1000, 500: 400}


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [100, 500])
def test_intervals_hold_the_mean_19_times_in_20(n: int, regime: str) -> None:
    values: dict[str, list[float]] = {}
    bounds: dict[str, list[tuple[float, float]]] = {}
    for seed in range(REPETITIONS[n]):
        found = measure_headline(*drawn(np.random.default_rng([seed, n]), n, **REGIMES[regime]))
        for key, interval in found.intervals.items():
            values.setdefault(key, []).append(found.values[key])
            bounds.setdefault(key, []).append(interval)
    assert {"squared_gap_debiased", "margin", "residual_ratio", "cs_divergence_u@0.7071"} <= values.keys()
    for key, of_key in values.items():
        low, high = np.array(bounds[key]).T
        mean = np.mean(of_key)
        covered = np.mean((low <= mean) & (mean <= high))
        # There are 30 metrics in six places. The jackknife holds some means 94 times in 100 of 100 pairs
        # (docs/statistics.md): 1,000 repetitions of that lie within 2.6 points of it, but for one in 2,000.
        assert 0.91 <= covered <= 0.985, f"{key}: {covered:.3f}"


@pytest.mark.slow
def test_noise_alone_is_called_clear_in_at_most_one_report_of_20() -> None:
    assert false_clear(100, 400) <= 0.065
