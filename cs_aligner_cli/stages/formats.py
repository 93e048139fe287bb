"""How numbers stand in the tables of the stages, and what files tables are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.results import Interval, Measured, Number

WAYS = {
    "i2t": "image to text",
    "t2i": "text to image",
    "both": "both ways",
    "mixed": "mixed corpus",
    "mixed/image": "mixed, answer an image",
    "mixed/text": "mixed, answer a text",
    "mixed/image_queries": "mixed, query an image",
}
_FRACTIONS = ("R@", "mAP", "MRR", "nDCG")


def format_of_output(path: Path, formats: Sequence[str]) -> str:
    """Which of the ``formats`` a file of --out gets, by its suffix in any case; InputError if none."""
    if (suffix := path.suffix.lower()) not in formats:
        raise InputError(
            f"--out {path}: cannot write {path.suffix or 'a file without suffix'}", f"Formats: {', '.join(formats)}."
        )
    return suffix


def percent(fraction: Measured) -> str:
    """A fraction in percent, "" where there is none."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def number(value: Measured) -> str:
    """A number to four digits, "" where there is none."""
    return "" if value is None else f"{value:.4g}"


def cell(metric: str, value: Measured) -> str:
    """The value of a retrieval metric: fractions in percent."""
    if value is None:
        return ""
    if metric.startswith(_FRACTIONS):
        return percent(value)
    if metric in ("hubness", "spearman"):
        return f"{value:.3f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def with_interval(metric: str, value: Number | None, interval: Interval | None) -> str:
    """The value of a retrieval metric with its interval, where it has one."""
    if value is None or interval is None:
        return cell(metric, value)
    low, high = (cell(metric, bound) for bound in interval)
    return f"{cell(metric, value)} [{low}, {high}]"
