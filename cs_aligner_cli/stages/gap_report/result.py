"""What gap-report returns: the metrics of every store with intervals and null floors; the page says all else."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Interval, Measured, StageResult
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import number


class GapReportResult(StageResult):
    """The modality gap of every store of a split; further parts of the report may stand beside these."""

    model_config = ConfigDict(extra="allow")

    split: str
    report: str = Field(description="the page")
    pairs: int
    gap_report: dict[str, dict[str, Measured]] = Field(description="by store and metric")
    null_floor: dict[str, dict[str, Measured]] = Field(description="what a metric reads where there is no gap")
    tests: dict[str, dict[str, Measured]] = Field(description="p values of there being no gap, by store and metric")
    intervals: dict[str, dict[str, Interval | None]] = Field(description="95%, by store and metric")
    retrieval: dict[str, dict[str, dict[str, Measured]]] = Field(description="by store, direction and metric")
    mixed: dict[str, Any] = Field({}, description="retrieval from a corpus of both modalities, by store")
    differences: list[dict[str, Any]] = Field(description="between the stores, each with its interval")
    seeds: dict[str, Any] = Field(description="runs that differ in their seed alone; empty without gap_report.seeds")
    verdict: list[str] = Field([], description="was the gap closed, at what cost, and was it to be had for free")
    notes: list[str]

    def remarks(self) -> list[str]:
        """The answers that the page opens with, what a reader must know of the sample, and where the page is."""
        return [*self.verdict, *self.notes, f"report: {self.report}"]

    def tables(self) -> list[Table]:
        """The headline metrics of every store with their 95% intervals, and what the last would read without a gap."""
        from cs_aligner_cli.report.headline import metric_keys

        keys = metric_keys({"stores": self.gap_report})
        rows = [
            (name, *(_spanned(values.get(key), self.intervals[name].get(key)) for key in keys))
            for name, values in self.gap_report.items()
        ]
        last, tests = list(self.tests.items())[-1]
        rows.append((f"{last} without a gap", *(_without_gap(self.null_floor[last], tests, key) for key in keys)))
        title = f"modality gap on split {self.split}: {self.pairs} pairs, [95% intervals]; all else in the report"
        return [table(title, ["store", *(key.replace("_", " ").replace("@", " at ") for key in keys)], rows)]


def _without_gap(levels: dict[str, Measured], tests: dict[str, Measured], key: str) -> str:
    """What a metric of the two clouds reads without a gap, and the p value of there being none."""
    return f"{levels[key]:.3f}, p {tests[key]:.3f}" if key in tests else ""


def _spanned(value: Measured, interval: Interval | None) -> str:
    if value is None or interval is None:
        return number(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
