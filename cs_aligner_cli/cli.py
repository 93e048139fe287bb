"""The command line: parse, call a stage, print."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cs_aligner_cli import __version__, shelf
from cs_aligner_cli.console import Console, guarded
from cs_aligner_cli.errors import InputError

app = typer.Typer(
    help="csalign: distributional vision-language alignment, from data to report, driven by one YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")

RecipeArgument = Annotated[
    str | None,
    typer.Argument(help="Recipe file, or name of a shipped recipe [default: $CSALIGN_RECIPE, then ./recipe.yaml]"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY.PATH=VALUE", help="Override a key of the recipe; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Redo the work even if its inputs have not changed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no talk on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """csalign: distributional vision-language alignment, from data to report, driven by one YAML recipe."""


def _finish(call: Callable[[], None], debug: bool) -> NoReturn:
    raise typer.Exit(guarded(call, debug))


def _stage(
    stage: str, recipe: str | None, overrides: list[str] | None, as_json: bool, force: bool, quiet: bool, debug: bool
) -> NoReturn:
    def call() -> None:
        from cs_aligner_cli.pipeline import run_stage
        from cs_aligner_cli.recipe import load_recipe
        from cs_aligner_cli.views import TABLES

        loaded = load_recipe(recipe, overrides or ())
        console = Console(as_json, quiet)
        result = run_stage(stage, loaded, console, force)
        if result["status"] == "fresh":
            console.say(f"{stage}: nothing to do, its inputs have not changed (--force redoes it)")
        for name in result.get("waiting_for_training", ()):
            console.say(f"no finished training run {name} yet: csalign train, then csalign embed once more makes its store")
        for note in result.get("notes", ()):
            console.say(note)
        if stage == "gap_report":
            console.say(f"report: {result['report']}")
        console.result({"command": stage, "name": loaded.name, "run_dir": str(loaded.folder), **result}, TABLES[stage](result))

    _finish(call, debug)


@app.command()
def prepare(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn the recipe's manifest into the two tables of images and captions."""
    _stage("prepare", recipe, overrides, as_json, force, quiet, debug)


@app.command()
def embed(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute the embedding stores: the frozen ones and, once training is done, the aligned ones."""
    _stage("embed", recipe, overrides, as_json, force, quiet, debug)


@app.command()
def train(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the towers; an interrupted run goes on where it stopped."""
    _stage("train", recipe, overrides, as_json, force, quiet, debug)


@app.command("eval-retrieval")
def eval_retrieval(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search every store both ways: R@k, median and mean rank."""
    _stage("eval_retrieval", recipe, overrides, as_json, force, quiet, debug)


@app.command("gap-report")
def gap_report(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure and draw the modality gap of every store, side by side, as one HTML page."""
    _stage("gap_report", recipe, overrides, as_json, force, quiet, debug)


@app.command()
def run(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run all stages in order, skipping those whose inputs have not changed."""

    def call() -> None:
        from cs_aligner_cli.pipeline import run_all
        from cs_aligner_cli.recipe import load_recipe
        from cs_aligner_cli.views import run_tables

        loaded = load_recipe(recipe, overrides or ())
        console = Console(as_json, quiet)
        results = run_all(loaded, console, force)
        report = results["gap_report"]["report"]
        data: dict[str, Any] = {
            "command": "run",
            "name": loaded.name,
            "run_dir": str(loaded.folder),
            "seed": loaded.seed,
            "status": {stage: result["status"] for stage, result in results.items()},
            "train": results.get("train", {}).get("runs", {}),
            "eval_retrieval": results["eval_retrieval"]["eval_retrieval"],
            "gap_report": results["gap_report"]["gap_report"],
            "null_floor": results["gap_report"]["null_floor"],
            "notes": list(dict.fromkeys([*results["eval_retrieval"]["notes"], *results["gap_report"]["notes"]])),
            "report": report,
        }
        console.result(data, run_tables(results))
        console.say(f"report: {report}")

    _finish(call, debug)


@recipes.command("list")
def list_recipes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the shipped recipes, each with the command that runs it."""

    def call() -> None:
        lines = {name: _first_line(shelf.find("recipes", name)) for name in shelf.names("recipes")}
        if as_json:
            typer.echo(json.dumps(lines, indent=2))
        else:
            width = max(map(len, lines))
            typer.echo("\n".join(f"{name:<{width}}  {line}" for name, line in lines.items()))

    _finish(call, debug)


@recipes.command()
def show(name: Annotated[str, typer.Argument(help="Name or file of a recipe.")], debug: Debug = False) -> None:
    """Print a recipe as it is written."""
    _finish(lambda: typer.echo(_text(name), nl=False), debug)


@recipes.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name or file of a recipe.")],
    file: Annotated[Path, typer.Argument(help="Where the copy goes; an existing file is not overwritten.")],
    debug: Debug = False,
) -> None:
    """Copy a recipe to start your own."""

    def call() -> None:
        text = _text(name)
        try:
            with file.open("x", encoding="utf-8") as target:
                target.write(text)
        except FileExistsError:
            raise InputError(f"{file}: exists already, and is left as it is") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be written: {error.strerror}") from None

    _finish(call, debug)


@recipes.command()
def validate(
    recipe: RecipeArgument = None, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Check a recipe and its manifest; every problem is listed. Prints the recipe with all defaults with --json."""

    def call() -> None:
        from cs_aligner_cli.data.manifest import load_manifest, manifest_path
        from cs_aligner_cli.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())
        if loaded.data.root is None:
            manifest_path(loaded)  # the manifest must exist; where its files lie may be told later
        else:
            load_manifest(loaded)
        typer.echo(json.dumps(loaded.model_dump(mode="json"), indent=2) if as_json else f"{loaded.name}: valid")

    _finish(call, debug)


@recipes.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of recipes, for editors."""

    def call() -> None:
        from cs_aligner_cli.recipe import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=2))

    _finish(call, debug)


def _text(name: str) -> str:
    return shelf.find("recipes", name).read_text(encoding="utf-8")


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def main() -> None:
    """The console script. SIGTERM, which batch systems send, is answered like Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    app()
