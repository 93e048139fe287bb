"""train: every variant of a recipe, by the loop of ``training.loop``."""

from __future__ import annotations

from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import make
from cs_aligner_cli.training.loop import TrainingRun
from cs_aligner_cli.training.trackers import require_trackers


def train(recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train every variant of a recipe; return {"status": done or fresh, "runs": {variant: summary}}.

    A run that was interrupted goes on from its last checkpoint and ends as if it had not been. Raises InputError if
    the recipe trains nothing or what it trains on is missing or stale, DivergedError on a non-finite loss.
    """
    layout = Layout(recipe)
    if not layout.variants:
        why = "embed.weights names weights" if recipe.train else "train is null"
        raise InputError(f"this recipe trains nothing: {why}")
    if recipe.train is not None:
        require_trackers(recipe.train.trackers)
    runs: dict[str, Any] = {}
    for name, spec in layout.variants.items():
        made = make(
            layout.trained(name),
            lambda build, spec=spec, name=name: TrainingRun(
                recipe, spec, layout, build.folder, console, name, ranks
            ).run(),  # type: ignore[misc]
            force=force,
            ranks=ranks,
        )
        runs[name] = {"status": made.status, "seconds": made.record["seconds"], **made.summary}
    done = any(run["status"] == "done" for run in runs.values())
    return {"status": "done" if done else "fresh", "runs": runs}
