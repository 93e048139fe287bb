"""train: every variant of a recipe, by the loop of ``training.loop``."""

from __future__ import annotations

from functools import partial

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import Summary, joined, make
from cs_aligner_cli.stages.train.result import TrainedRun, TrainResult


def train(
    recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE, archive: bool = False
) -> TrainResult:
    """Train every variant of a recipe; return what became of each.

    A run that was interrupted goes on from its last checkpoint and ends as if it had not been. Raises InputError if
    the recipe trains nothing or what it trains on is missing or stale, DivergedError on a non-finite loss.
    """
    layout = Layout(recipe)
    if not layout.variants:
        why = "embed.weights names weights" if recipe.train else "train is null"
        raise InputError(f"this recipe trains nothing: {why}")

    if recipe.train is not None and recipe.train.trackers:
        from cs_aligner_cli.training.trackers import require_trackers

        require_trackers(recipe.train.trackers)

    def write(build: Build, name: str, spec: Train) -> Summary:
        from cs_aligner_cli.training.loop import TrainingRun

        return TrainingRun(recipe, spec, layout, build.folder, console, name, ranks).run()

    made = {
        name: make(
            layout.trained(name), partial(write, name=name, spec=spec), force=force, ranks=ranks, archive=archive
        )
        for name, spec in layout.variants.items()
    }
    runs = {name: part.result(TrainedRun, seconds=part.record["seconds"]) for name, part in made.items()}
    return TrainResult(status=joined(*made.values()), runs=runs)
