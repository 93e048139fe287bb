"""The modality gap: metrics, their null floor, figures and the report page."""

from cs_aligner_cli.gap.glossary import METRICS
from cs_aligner_cli.gap.metrics import measure_gap
from cs_aligner_cli.gap.null import null_floor

__all__ = ["METRICS", "measure_gap", "null_floor"]
