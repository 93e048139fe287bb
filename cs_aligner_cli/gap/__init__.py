"""The modality gap: metrics of paired rows, their intervals, tests of no gap, no-training baselines."""

from cs_aligner_cli.gap.glossary import METRICS
from cs_aligner_cli.gap.metrics import measure, measure_gap
from cs_aligner_cli.gap.results import Measured

__all__ = ["METRICS", "Measured", "measure", "measure_gap"]
