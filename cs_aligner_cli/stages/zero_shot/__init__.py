"""zero-shot: classify the images of a split by prompts of class names, in every store."""

from __future__ import annotations

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import Summary, make
from cs_aligner_cli.stages.zero_shot.result import ZeroShotResult


def zero_shot(recipe: Recipe, console: Console, force: bool = False) -> ZeroShotResult:
    """Classify every labelled image of the split in every store; return accuracies per store.

    Raises InputError if zero_shot.classes or labels is not set or does not fit the split, a store is missing or
    stale, or the text encoder is stored features.
    """
    classes, labels = recipe.zero_shot.classes, recipe.zero_shot.labels
    if classes is None or labels is None:
        missing = "classes" if classes is None else "labels"
        raise InputError(f"zero_shot.{missing} is not set", f"Name a file: --set zero_shot.{missing}=FILE")
    artifact = Layout(recipe).zero_shot

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.zero_shot.job import write_results

        return write_results(recipe, classes, labels, console, build.folder)

    made = make(artifact, write, force=force, sources=file_stamps([classes, labels]))
    return made.result(ZeroShotResult, folder=str(artifact.path))
