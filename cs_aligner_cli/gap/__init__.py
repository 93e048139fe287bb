"""The modality gap: metrics, their null floor, no-training baselines, figures and the report page."""

from cs_aligner_cli.gap.glossary import METRICS
from cs_aligner_cli.gap.metrics import measure, measure_gap
from cs_aligner_cli.gap.null import null_floor
from cs_aligner_cli.gap.results import Measured

__all__ = ["METRICS", "Measured", "measure", "measure_gap", "null_floor"]
