"""What the commands share: their arguments and options, and how each of them ends."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cs_aligner_cli.cli.remedies import complete_commands, of_stale
from cs_aligner_cli.common.console import Console, guarded
from cs_aligner_cli.common.errors import CsalignError
from cs_aligner_cli.files.differences import StaleError
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.stages.table import STAGES

# What has a published schema: what each command prints with --json, what it prints where it fails, and files of a run.
RESULTS = (
    *(stage.command for stage in STAGES.values()),
    *("search", "pair-score", "run", "sweep", "compare", "compare-data-sets", "leaderboard", "doctor", "error"),
    *("run.json", "stage.json", "metrics.jsonl"),
)
_YAML = (".yaml", ".yml")
SETTINGS = {"help_option_names": ["-h", "--help"]}


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes and, as far as they fit, YAML files and folders."""
    folder, _, stem = incomplete.rpartition("/")
    beside = [path for path in Path(folder or ".").glob(f"{glob.escape(stem)}*") if not path.name.startswith(".")]
    files = [
        f"{path}/" if path.is_dir() else str(path) for path in beside if path.is_dir() or path.suffix.lower() in _YAML
    ]
    return [name for name in shelf.names("recipes") if name.startswith(incomplete)] + sorted(files)


def complete_key(incomplete: str) -> list[str]:
    """Keys of recipes, with the = that follows; behind it, the values of a key that has only a few."""
    from cs_aligner_cli.recipe.completion import choices, settable_keys
    from cs_aligner_cli.recipe.recipe import Recipe

    key, equals, _ = incomplete.partition("=")
    values = (
        [f"{key}={choice}" for choice in choices(Recipe, key)] if equals else [f"{k}=" for k in settable_keys(Recipe)]
    )
    return [value for value in values if value.startswith(incomplete)]


RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, the name of a shipped one, or - for standard input [default: $CSALIGN_RECIPE, then"
        " ./recipe.yaml].",
        autocompletion=complete_recipe,
        show_default=False,
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a key, as in --set train.lr=1e-3; may be repeated.",
        autocompletion=complete_key,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout in place of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Do the work again even if its inputs have not changed.")]
Archive = Annotated[
    bool,
    typer.Option(
        "--archive", help="Where finished work would be replaced, keep it beside the new, as in train/aligned.1."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="With an error, show its traceback too.")]


def finish(
    call: Callable[[Console], None],
    debug: bool,
    as_json: bool = False,
    quiet: bool = False,
    recipe: str | None = None,
    overrides: Sequence[str] | None = None,
    stage: str = "",
    takes_recipe: bool = True,
) -> NoReturn:
    """Do what a command does, and end the process with its exit code.

    ``recipe`` and ``overrides`` are the command's own: commands that a message names are completed with them, unless
    this one ``takes_recipe`` not, and so knows of none.
    ``stage`` is the one that the command does.
    """
    console = Console(as_json, quiet)

    def completing() -> None:
        try:
            call(console)
        except CsalignError as error:
            message = str(error)
            if isinstance(error, StaleError):
                message = of_stale(error, stage, recipe, overrides or ())
            if takes_recipe:
                message = complete_commands(message, recipe, overrides or ())
            error.args = (message, *error.args[1:])
            raise

    raise typer.Exit(guarded(completing, debug, console))
