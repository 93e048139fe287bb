"""eval-retrieval: exact retrieval both ways in every store of a split, with intervals, and the saved indexes."""

from __future__ import annotations

from typing import TypeVar

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.results import Status
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.evaluated_sets import evaluated_sets
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.eval_retrieval.result import EvaluatedSplit, RetrievalResult
from cs_aligner_cli.stages.making import Summary, make

_Result = TypeVar("_Result", bound=EvaluatedSplit)


def eval_retrieval(recipe: Recipe, console: Console, force: bool = False) -> RetrievalResult:
    """Evaluate every store of ``eval_retrieval.split`` and of further data sets; return the numbers and where they lie.

    A store whose image and text dimensions differ shares no space and is left out with a note. Raises InputError if a
    store is missing or stale, no store shares a space, the index cannot be built, or the judgement table does not fit
    the split.
    """
    layout = Layout(recipe)
    if layout.measured_on_training:
        console.warn(layout.measured_on_training)
    others = evaluated_sets(layout).items()
    sets = {name: _evaluated(EvaluatedSplit, other, console, force) for name, other in others}
    own = _evaluated(RetrievalResult, layout, console, force)
    if not sets:
        return own
    statuses: list[Status] = [own.status, *(found.status for found in sets.values())]
    return own.model_copy(update={"status": "done" if "done" in statuses else "fresh", "sets": sets})


def _evaluated(model: type[_Result], layout: Layout, console: Console, force: bool) -> _Result:
    """The numbers of one data set; those of the recipe's own come with a saved index of every store."""
    artifact, spec = layout.retrieval, layout.recipe.eval_retrieval
    files = [spec.relevance] if spec.relevance else []
    if spec.mixed and spec.mixed.corpus:
        from cs_aligner_cli.data.mixbench import corpus_files

        files += corpus_files(spec.mixed.corpus)

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.eval_retrieval.job import write_results

        return write_results(layout, console, build.folder, indexed=model is RetrievalResult)

    made = make(artifact, write, force=force, sources=file_stamps(files) if files else "")
    return made.result(model, folder=str(artifact.path))
