"""gap-report: how far apart the modalities are in every store, side by side, as one page and as data."""

from __future__ import annotations

from dataclasses import asdict

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.files.artifact import Build, fingerprint
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
    layout, photos = Layout(recipe), recipe.gap_report.photos
    artifact, published = layout.gap, published_beside(layout)
    try:
        drawn = drawn_results(layout)
    except InputError:  # a run that pictures were drawn from is gone; the report notes why it has none
        drawn = None

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.gap_report.job import write_report

        return write_report(recipe, console, build, published)

    files = [*([photos] if photos else []), *([drawn.path / RESULTS] if drawn and drawn.record() else [])]
    sources = [file_stamps(files)] if files else []
    sources += [fingerprint([asdict(table) for table in published])] if published else []
    made = make(artifact, write, force=force, sources=" ".join(sources))
    return made.result(GapReportResult, report=str(artifact.path / REPORT))


def published_beside(layout: Layout) -> list[Table]:
    """What the recipe says was published beside what this run has measured: tables for the page."""
    expected = layout.recipe.expected
    if expected is None:
        return []
    from cs_aligner_cli.experiments.expected import beside_published, published_tables
    from cs_aligner_cli.experiments.measured_run import find_run

    measured = layout.retrieval.record() is not None and (layout.folder / "run.json").is_file()
    run = find_run(str(layout.folder))[0] if measured else None
    return published_tables(beside_published(expected, run), expected)
