"""What the cells of the tables in README and docs hold, and what stands under a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds; a number that no seed changes stands alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.{digits}f}" if spread > 0 else mean


def difference(values: Sequence[float], digits: int) -> str:
    """The mean of paired differences with its 95% interval of Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.{digits}f} [{mean - reach:+.{digits}f}, {mean + reach:+.{digits}f}]"


def provenance(content: dict[str, Any]) -> str:
    """The line that says where a table comes from."""
    seeds = len(content["seeds"])
    return (
        f"Mean ± standard deviation of {seeds} seeds of training; `{content['command']}`, commit {content['commit']}, "
        f"{content['date']}, {content['device']}."
    )
