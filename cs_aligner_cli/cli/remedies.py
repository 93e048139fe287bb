"""Commands that work, for a message that names one: with this call's recipe and settings, and no dead end behind it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
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
    kept = _kept_as(found)
    ways.append(f"Make it again{f', the earlier one kept as {kept}' if kept else ''}: {found.command}")
    return "\n".join(ways) + (" --archive" if kept else "")


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


def _kept_as(artifact: Artifact) -> str:
    """The name under which --archive keeps an output that is not replaced without a word; "" for others."""
    from cs_aligner_cli.files.placing import beside
    from cs_aligner_cli.stages.continuing import goes_on
    from cs_aligner_cli.stages.making import took_long

    stage = next((s for s in STAGES.values() if artifact.command == f"csalign {s.command}"), None)
    protects = stage.protects if stage else "nothing"
    if protects == "nothing" or (protects == "long" and not took_long(artifact)) or goes_on(artifact):
        return ""
    return beside(artifact.path).name
