"""gap-report: how far apart the modalities are in every store, side by side, as one page and as data."""

from __future__ import annotations

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.report import REPORT
from cs_aligner_cli.runs.generation_layout import RESULTS, drawn_results
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.gap_report.result import GapReportResult
from cs_aligner_cli.stages.making import Summary, make


def gap_report(recipe: Recipe, console: Console, force: bool = False) -> GapReportResult:
    """Measure and draw the gap of every store of the report's split; return the metrics per store and the page's path.

    Each image is paired with one of its captions (Split.pairs). Raises InputError if a store is missing or stale, no
    store shares a space, or the split holds too few pairs.
    """
    artifact = Layout(recipe).gap

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.gap_report.job import write_report

        return write_report(recipe, console, build)

    photos, drawn = recipe.gap_report.photos, drawn_results(Layout(recipe))
    sources = [*([photos] if photos else []), *([drawn.path / RESULTS] if drawn and drawn.record() else [])]
    made = make(artifact, write, force=force, sources=file_stamps(sources) if sources else "")
    return made.result(GapReportResult, report=str(artifact.path / REPORT))
