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

    Raises InputError if neither zero_shot.from_data nor classes and labels are set, they do not fit the split, a store
    is missing or stale, or the text encoder is stored features.
    """
    spec = recipe.zero_shot
    files = [file for file in (spec.classes, spec.labels) if file is not None]
    if not spec.from_data and len(files) < 2:
        missing = "classes" if spec.classes is None else "labels"
        raise InputError(
            f"zero_shot.{missing} is not set",
            f"Name a file, --set zero_shot.{missing}=FILE, or take the data set's own labels: "
            "--set zero_shot.from_data=true",
        )
    artifact = Layout(recipe).zero_shot

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.zero_shot.job import write_results

        return write_results(recipe, console, build.folder)

    made = make(artifact, write, force=force, sources=file_stamps(files))
    return made.result(ZeroShotResult, folder=str(artifact.path))
