"""train: every variant of a recipe, by the loop of ``training.loop``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.continuing import earlier_ends, epochs_of, goes_on, mark_of, take_state
from cs_aligner_cli.stages.making import Made, Summary, joined, make
from cs_aligner_cli.stages.train.result import TrainedHead, TrainedRun, TrainResult


def train(
    recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE, archive: bool = False
) -> TrainResult:
    """Train every variant of a recipe, then a matching head for each where one is wanted; return what became of them.

    A run that was interrupted goes on from its last checkpoint and ends as if it had not been. Raises InputError if
    the recipe trains nothing or what it trains on is missing or stale, DivergedError on a non-finite loss.
    """
    layout = Layout(recipe)
    if not layout.variants:
        why = "embed.weights names weights" if recipe.train else "train is null"
        raise InputError(f"this recipe trains nothing: {why}")

    ranks.broadcast(layout.refuse_absent_origin)
    variants = {name: _Variant(recipe, layout, console, ranks, name, spec) for name, spec in layout.variants.items()}
    made = {name: _train(variant, force, archive) for name, variant in variants.items()}
    heads = {name: _train_head(one, force, archive) for name, one in variants.items() if one.spec.matching}
    runs = {name: part.result(TrainedRun, seconds=part.record["seconds"]) for name, part in made.items()}
    matching = {name: part.result(TrainedHead, seconds=part.record["seconds"]) for name, part in heads.items()}
    return TrainResult(
        status=joined(*made.values(), *heads.values()), runs=runs, **({"heads": matching} if heads else {})
    )


@dataclass(frozen=True)
class _Variant:
    """One training of a recipe, and what it takes to do it."""

    recipe: Recipe
    layout: Layout
    console: Console
    ranks: Ranks
    name: str
    spec: Train

    def write(self, build: Build, earlier: dict[str, Any] | None) -> Summary:
        """Train in the folder of a build, from the end of an ``earlier`` training if there is one."""
        from cs_aligner_cli.training.checkpoint import states_beyond
        from cs_aligner_cli.training.loop import TrainingRun

        if earlier and self.ranks.main and not build.resumed:
            self._say_schedule(earlier)
        if earlier and self.ranks.main:
            take_state(self.layout.trained(self.name), earlier, build.folder)
        self.ranks.barrier()
        run = TrainingRun(self.recipe, self.spec, self.layout, build.folder, self.console, self.name, self.ranks)
        summary = run.run()
        build.leftovers += states_beyond(build.folder, self.spec.keep_states)
        return {**summary, **({"continued_from_epochs": earlier_ends(earlier)} if earlier else {})}

    def write_head(self, build: Build) -> Summary:
        """Train the matching head in the folder of a build; rank 0 does, and the others wait."""
        from cs_aligner_cli.training.checkpoint import states_beyond
        from cs_aligner_cli.training.matching import HeadTraining

        if not self.ranks.main:
            return {}
        training = HeadTraining(self.recipe, self.spec, self.layout, build.folder, self.console, self.name)
        summary = training.run()
        build.leftovers += states_beyond(build.folder, 0)
        return summary

    def _say_schedule(self, earlier: dict[str, Any]) -> None:
        from cs_aligner_cli.training.optimizer import learning_rate

        done, before = earlier["summary"]["steps"], epochs_of(earlier)
        rate = learning_rate(self.spec, done, done * self.spec.epochs // before)
        self.console.say(
            f"{self.name}: goes on from the end of epoch {before} with the schedule of"
            f" {counted(self.spec.epochs, 'epochs')}: a learning rate of {rate:.3g} there, where that of {before} had"
            " come down to 0"
        )


def _train(variant: _Variant, force: bool, archive: bool) -> Made:
    """One training: anew, or from the end of a finished one of fewer epochs (not with ``force``)."""
    artifact, ranks = variant.layout.trained(variant.name), variant.ranks
    earlier = None if force else ranks.broadcast(lambda: goes_on(artifact))
    return make(
        artifact,
        partial(variant.write, earlier=earlier),
        force=force,
        ranks=ranks,
        archive=archive,
        continues=mark_of(earlier) if earlier else "",
    )


def _train_head(variant: _Variant, force: bool, archive: bool) -> Made:
    """The matching head of one training."""
    artifact = variant.layout.matching(variant.name)
    return make(artifact, variant.write_head, force=force, ranks=variant.ranks, archive=archive)
