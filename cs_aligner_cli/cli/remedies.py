"""Commands that work, for a message that names one: with this call's recipe and settings, and no dead end behind it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from cs_aligner_cli.common.errors import CsalignError
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.differences import StaleError
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.stages.table import STAGES

# A command on a recipe that a message names without one, or with the word RECIPE in its place.
_NAMED_COMMAND = re.compile(
    rf"(\bcsalign (?:(?:sweep|run)(?= RECIPE)|{'|'.join(stage.command for stage in STAGES.values())}))"
    r"(?: RECIPE)?(?![\w-]| '| [^ \n]*(?:\.yaml|/))"
)
# Stages that only read what is stale.
_READERS = ("eval_retrieval", "zero_shot", "generate", "gap_report")


def complete_commands(message: str, recipe: str | None, overrides: Sequence[str]) -> str:
    """A message whose commands of stages carry the recipe and the settings of this call, so that they can be pasted."""
    if recipe == shelf.STANDARD_INPUT:
        return message
    given = [shlex.quote(recipe)] if recipe else []
    given += [f"--set {shlex.quote(text)}" for text in overrides]
    return _NAMED_COMMAND.sub(lambda found: " ".join([found[1], *given]), message)


def of_stale(error: StaleError, stage: str, recipe: str | None, overrides: Sequence[str]) -> str:
    """The message on a stale output with the ways out: read it by the recipe that it was made with, or make it again.

    The first is named only where all that the ``stage`` of this call ("": none) reads is as that recipe wants it.
    """
    found = error.artifact
    ways = [str(error).partition("\n")[0]]
    if command := _as_it_was_made(stage, recipe, overrides) if stage in _READERS else "":
        ways.append(f"Read what is there, by the recipe that it was made with: {command}")
    return "\n".join([*ways, *_made_again(found, recipe, overrides)])


def _made_again(artifact: Artifact, recipe: str | None, overrides: Sequence[str]) -> Iterator[str]:
    """How to make an output anew: what is not replaced without a word is kept, or left to the runs that share it."""
    from cs_aligner_cli.files.placing import beside
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.stages.continuing import goes_on
    from cs_aligner_cli.stages.replacing import is_kept, shared_by

    stage = next((s for s in STAGES.values() if artifact.command == f"csalign {s.command}"), None)
    try:
        key = shared_by(stage, artifact, load_recipe(recipe, overrides)) if stage else ""
    except CsalignError:  # a command without a recipe, or one that cannot be read twice
        key = ""
    if not (stage and (key or is_kept(stage, artifact))) or goes_on(artifact):
        yield f"Make it again: {artifact.command}"
        return
    if key:
        yield f"Leave it to the runs that share it, and make this run's own: csalign run RECIPE --set {key}=null"
    if stage.protects != "nothing":
        yield f"Make it again, the earlier one kept as {beside(artifact.path).name}: {artifact.command} --archive"
    else:
        yield f"Make it again, as every run that shares it will notice: {artifact.command} --force"


def _as_it_was_made(stage: str, recipe: str | None, overrides: Sequence[str]) -> str:
    """The command of this call on the recipe in the run's folder; "" where that would find something stale, too."""
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.runs.layout import Layout

    try:
        own = load_recipe(recipe, overrides).folder / "recipe.yaml"
        for output in STAGES[stage].outputs(Layout(load_recipe(str(own)))):
            for need in output.needs:
                need.current()
    except CsalignError:
        return ""
    return f"csalign {STAGES[stage].command} {shlex.quote(str(_from_here(own)))}"


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
