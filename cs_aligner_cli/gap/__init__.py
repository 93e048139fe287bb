"""The modality gap: metrics of paired rows, their intervals, tests of no gap, no-training baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cs_aligner_cli.common.lazy import lazy_names

if TYPE_CHECKING:
    from cs_aligner_cli.gap.glossary import METRICS
    from cs_aligner_cli.gap.metrics import measure, measure_gap
    from cs_aligner_cli.gap.results import Measured

__all__ = ["METRICS", "Measured", "measure", "measure_gap"]
# Imported when they are first used: what a metric is called needs no torch.
_WHERE = {
    "METRICS": "glossary",
    "Measured": "results",
    "measure": "metrics",
    "measure_gap": "metrics",
}

__getattr__ = lazy_names(__name__, _WHERE)
