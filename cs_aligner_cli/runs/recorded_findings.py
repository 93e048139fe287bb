"""What prepare found of a run's data, as its records on disk have it."""

from __future__ import annotations

from typing import Any

from cs_aligner_cli.data.caption_limit import context_length
from cs_aligner_cli.data.findings import data_findings
from cs_aligner_cli.runs.layout import Layout


def recorded_findings(layout: Layout) -> list[str]:
    """The findings on the prepared data set of a run; [] where there is none yet."""
    record = layout.prepared.record()
    return data_findings(record["summary"], _caption_lengths(layout)) if record else []


def _caption_lengths(layout: Layout) -> dict[str, Any] | None:
    """How long the captions are for this recipe's text tower, if prepare measured it."""
    spec = layout.recipe.encoders.of("text")
    check = layout.tower_check(["text"])
    checked, wanted = check.record(), check.wanted(needs={})["recipe"]["encoders"]  # as recorded: without paths
    if checked and checked["inputs"]["recipe"]["encoders"].get("text") == wanted["text"]:
        lengths: dict[str, Any] | None = checked["summary"]["caption_lengths"]
        return lengths
    limit = context_length(spec)
    measured = layout.caption_lengths(limit).record() if limit is not None else None
    if measured is None or measured["inputs"]["recipe"] != {"limit": limit}:
        return None
    summary: dict[str, Any] = measured["summary"]
    return summary
