"""Finished work is not replaced without a word: what took long is kept, moved aside, or replaced by --force alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.differences import differences
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.table import Stage

# A store that took longer is not replaced without being asked for.
_LONG_SECONDS = 600.0
_NAMED = 5


def keep_finished(stage: Stage, recipe: Recipe, console: Console, archive: bool) -> None:
    """Move the finished outputs of a stage that its run would replace aside, if asked, else refuse to replace them.

    Training is protected however short it was; an embedding store if it took more than ten minutes. Raises InputError
    that names the recipe keys that differ, and what can be done.
    """
    layout = Layout(recipe)
    for artifact in _protected(stage, layout):
        if not (changes := _changes(artifact)):
            continue
        if archive:
            console.say(f"{artifact.name}: the earlier one is now {_moved_aside(artifact)}")
        else:
            raise _refusal(artifact, changes, recipe)


def refuse_to_replace(stages: Sequence[Stage], recipe: Recipe) -> None:
    """Before a whole run begins, refuse if the recipe itself would have it replace finished work."""
    layout = Layout(recipe)
    for stage in stages:
        for artifact in _protected(stage, layout):
            own = [change for change in _changes(artifact) if not change.startswith("the ")]
            if own:
                raise _refusal(artifact, own, recipe)


def _protected(stage: Stage, layout: Layout) -> list[Artifact]:
    outputs = stage.outputs(layout) if stage.protects != "nothing" else []
    if stage.protects == "all":
        return [*outputs]
    return [output for output in outputs if ((output.record() or {}).get("seconds") or 0) > _LONG_SECONDS]


def _changes(artifact: Artifact) -> list[str]:
    """In what a finished output differs from what is wanted now; [] where it does not, or there is none.

    Files outside csalign are not looked at.
    """
    record = artifact.record()
    if record is None:
        return []
    wanted = artifact.wanted()
    return [*differences({key: record["inputs"].get(key) for key in wanted}, wanted)]


def _moved_aside(artifact: Artifact) -> Path:
    """Rename a finished output to the first free of NAME.1, NAME.2, ..., and return where it is."""
    number = 1
    while (aside := artifact.path.with_name(f"{artifact.path.name}.{number}")).exists():
        number += 1
    artifact.path.rename(aside)
    return aside


def _refusal(artifact: Artifact, changes: Sequence[str], recipe: Recipe) -> InputError:
    more = f", and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    elsewhere = "name" if recipe.run_dir is None else "run_dir"
    record = artifact.record() or {}
    return InputError(
        f"the finished {artifact.name} in {artifact.path} ({record.get('finished')}, {record.get('seconds')} s) would"
        f" be replaced: {'; '.join(changes[:_NAMED])}{more}",
        f"Keep it and write elsewhere: --set {elsewhere}=...; move it aside, to {artifact.path.name}.1: --archive; or"
        " replace it: --force.",
    )
