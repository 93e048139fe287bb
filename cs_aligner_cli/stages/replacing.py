"""Finished work is not replaced without a word: what took long is kept, moved aside, or replaced by --force alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import count

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.placing import beside
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.continuing import goes_on, more_epochs
from cs_aligner_cli.stages.making import took_long
from cs_aligner_cli.stages.table import Stage

_NAMED = 5
_NO_STATE = (
    "\nMore epochs can only go on from a training whose last state is there, and it kept none: with"
    " train.keep_states: 1 the next one will."
)


def keep_finished(stage: Stage, recipe: Recipe, console: Console, archive: bool) -> None:
    """Refuse to replace the finished outputs of a stage, or say where they will be kept.

    An earlier output stays in its place until the new one is there, so that a run that fails or is killed costs none.

    Training is protected however short it was; an embedding store if it took more than ten minutes. What is made from
    another output of the stage goes with that one, and is protected from other keys of its own. Raises InputError that
    names the recipe keys that differ, and what can be done.
    """
    protected = _protected(stage, Layout(recipe))
    names = {artifact.name for artifact in protected}
    for artifact in protected:
        changes = _changes(artifact)
        if any(need.name in names for need in artifact.needs) and not archive:
            changes = _own(changes)
        if not changes:
            continue
        if stage.name == "train" and goes_on(artifact) and not archive:
            continue
        if archive:
            console.say(
                f"{artifact.name}: the earlier one is kept as {beside(artifact.path)} once the new one is there"
            )
        else:
            raise _refusal(stage.command, artifact, changes, recipe)


def refuse_to_replace(stages: Sequence[Stage], recipe: Recipe) -> None:
    """Before a whole run begins, refuse if the recipe itself would have it replace finished work."""
    layout = Layout(recipe)
    for stage in stages:
        for artifact in _protected(stage, layout):
            if stage.name == "train" and goes_on(artifact):
                continue
            if own := _own(_changes(artifact)):
                raise _refusal("run", artifact, own, recipe)


def _own(changes: Sequence[str]) -> list[str]:
    """Those changes that are of the recipe's keys, not of what an output is made from."""
    return [change for change in changes if not change.startswith("the ")]


def _protected(stage: Stage, layout: Layout) -> list[Artifact]:
    outputs = stage.outputs(layout) if stage.protects != "nothing" else []
    if stage.protects == "all":
        return [*outputs]
    return [output for output in outputs if took_long(output)]


def _changes(artifact: Artifact) -> list[str]:
    """In what a finished output differs from what is wanted now; [] where it does not, or there is none.

    Files outside csalign are not looked at.
    """
    record = artifact.record()
    if record is None:
        return []
    return artifact.changes(record)


def _refusal(command: str, artifact: Artifact, changes: Sequence[str], recipe: Recipe) -> InputError:
    """Why a finished output is not replaced, and three commands with which to go on."""
    more = f", and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    record, again = artifact.record() or {}, f"csalign {command} RECIPE"
    elsewhere = _elsewhere(recipe)
    return InputError(
        f"the finished {artifact.name} in {artifact.path} ({record.get('finished')}, {record.get('seconds')} s) would"
        f" be replaced: {'; '.join(changes[:_NAMED])}{more}",
        f"Keep it and write elsewhere: csalign run RECIPE --set {elsewhere}\n"
        f"Move it aside, to {beside(artifact.path).name}: {again} --archive\n"
        f"Replace it: {again} --force" + (_NO_STATE if more_epochs(artifact) else ""),
    )


def _elsewhere(recipe: Recipe) -> str:
    """The setting that has a run written into a folder of its own: the first free one of NAME-2, NAME-3, ..."""
    free = next(path for n in count(2) if not (path := recipe.folder.with_name(f"{recipe.folder.name}-{n}")).exists())
    return shlex.quote(f"name={free.name}" if recipe.run_dir is None else f"run_dir={free}")
