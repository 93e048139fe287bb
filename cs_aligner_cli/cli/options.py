"""What the commands share: their arguments and options, and how each of them ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from cs_aligner_cli.common.console import guarded

SETTINGS = {"help_option_names": ["-h", "--help"]}

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a shipped one [default: $CSALIGN_RECIPE, then ./recipe.yaml].",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key, as in --set train.lr=1e-3; may be repeated."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout in place of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Do the work again even if its inputs have not changed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="With an error, show its traceback too.")]


def finish(call: Callable[[], None], debug: bool) -> NoReturn:
    """Do what a command does, and end the process with its exit code."""
    raise typer.Exit(guarded(call, debug))
