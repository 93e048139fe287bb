"""Finished work is not replaced without a word: what took long is kept, moved aside, or replaced by --force alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.places import moved
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

    Training is protected however short it was; an embedding store if it took more than ten minutes; and prepared data
    and stores in a folder that the recipe names for several runs, of which the others were made. What is made from
    another output of the stage goes with that one, and is protected from other keys of its own. Raises InputError that
    names the recipe keys that differ, and what can be done.
    """
    protected = _protected(stage, Layout(recipe))
    archive = archive and stage.protects != "nothing"
    names = {artifact.name for artifact in protected}
    for artifact in protected:
        changes = _changes(stage, artifact, recipe)
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
            raise _refusal(stage.command, stage, artifact, changes, recipe)


def refuse_to_replace(stages: Sequence[Stage], recipe: Recipe) -> None:
    """Before a whole run begins, refuse if the recipe itself would have it replace finished work."""
    layout = Layout(recipe)
    for stage in stages:
        for artifact in _protected(stage, layout):
            if stage.name == "train" and goes_on(artifact):
                continue
            if own := _own(_changes(stage, artifact, recipe)):
                raise _refusal("run", stage, artifact, own, recipe)


def _own(changes: Sequence[str]) -> list[str]:
    """Those changes that are of the recipe's keys, not of what an output is made from."""
    return [change for change in changes if not change.startswith("the ")]


def _protected(stage: Stage, layout: Layout) -> list[Artifact]:
    if stage.protects == "nothing" and not stage.shared:
        return []
    return [
        output for output in stage.outputs(layout) if is_kept(stage, output) or shared_by(stage, output, layout.recipe)
    ]


def is_kept(stage: Stage, artifact: Artifact) -> bool:
    """Whether an output of a stage, once finished, is not replaced without a word even in a run's own folder."""
    return stage.protects == "all" or (stage.protects == "long" and took_long(artifact))


def shared_by(stage: Stage, artifact: Artifact, recipe: Recipe) -> str:
    """The recipe key that names the folder of an output outside the run, where other runs may use it; "" for others."""
    folder: Path | None = getattr(recipe, stage.shared).dir if stage.shared else None
    outside = folder is not None and artifact.path.is_relative_to(folder) and not folder.is_relative_to(recipe.folder)
    return f"{stage.shared}.dir" if outside else ""


def _changes(stage: Stage, artifact: Artifact, recipe: Recipe) -> list[str]:
    """In what a finished output differs from what is wanted now; [] where it does not, or there is none.

    Files outside csalign are not looked at, but of one that is shared whether the recipe names others that differ.
    """
    record = artifact.record()
    if record is None:
        return []
    changes, now = artifact.changes(record), artifact.places
    if changes or not shared_by(stage, artifact, recipe):
        return changes
    # A key that is no longer set may still mean the same files, by the manifest.
    before = {key: path for key, path in record.get("places", {}).items() if key in now or "." not in key}
    change = moved(before, now)
    return [change] if change else []


def _refusal(command: str, stage: Stage, artifact: Artifact, changes: Sequence[str], recipe: Recipe) -> InputError:
    """Why a finished output is not replaced, and the commands with which to go on."""
    more = f", and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    record, again = artifact.record() or {}, f"csalign {command} RECIPE"
    key = shared_by(stage, artifact, recipe)
    elsewhere = f"{key}=null" if key else _elsewhere(recipe)
    aside = (
        f"Move it aside, to {beside(artifact.path).name}: {again} --archive\n" if stage.protects != "nothing" else ""
    )
    return InputError(
        f"the finished {artifact.name} in {artifact.path} ({record.get('finished')}, {record.get('seconds')} s) would"
        f" be replaced: {'; '.join(changes[:_NAMED])}{more}",
        f"Keep it and write elsewhere: csalign run RECIPE --set {elsewhere}\n"
        f"{aside}Replace it{', as every run that shares it will notice' if key else ''}: {again} --force"
        + (_NO_STATE if more_epochs(artifact) else ""),
    )


def _elsewhere(recipe: Recipe) -> str:
    """The setting that has a run written into a folder of its own: the first free one of NAME-2, NAME-3, ..."""
    free = next(path for n in count(2) if not (path := recipe.folder.with_name(f"{recipe.folder.name}-{n}")).exists())
    return shlex.quote(f"name={free.name}" if recipe.run_dir is None else f"run_dir={free}")
