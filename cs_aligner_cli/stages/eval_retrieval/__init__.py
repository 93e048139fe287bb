"""eval-retrieval: exact retrieval both ways in every store of a split, with intervals, and the saved indexes."""

from __future__ import annotations

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.eval_retrieval.result import RetrievalResult
from cs_aligner_cli.stages.making import Summary, make


def eval_retrieval(recipe: Recipe, console: Console, force: bool = False) -> RetrievalResult:
    """Evaluate every store of ``eval_retrieval.split``; return the numbers per store and where they lie.

    A store whose image and text dimensions differ shares no space and is left out with a note. Raises InputError if a
    store is missing or stale, no store shares a space, the index cannot be built, or the judgement table does not fit
    the split.
    """
    layout = Layout(recipe)
    artifact, spec = layout.retrieval, recipe.eval_retrieval
    files = [spec.relevance] if spec.relevance else []
    if spec.mixed and spec.mixed.corpus:
        from cs_aligner_cli.data.mixbench import corpus_files

        files += corpus_files(spec.mixed.corpus)
    if layout.measured_on_training:
        console.warn(layout.measured_on_training)

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.eval_retrieval.job import write_results

        return write_results(recipe, console, build.folder)

    made = make(artifact, write, force=force, sources=file_stamps(files) if files else "")
    return made.result(RetrievalResult, folder=str(artifact.path))
