"""csalign recipe: list, show, copy, validate, schema."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from cs_aligner_cli.cli.options import RESULTS, SETTINGS, AsJson, Debug, Name, Overrides, Quiet, RecipeArgument, finish
from cs_aligner_cli.common.console import Console, print_json
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe import shelf

recipes = typer.Typer(
    help="List, show, copy and check recipes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)


@recipes.command("list")
def list_recipes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the shipped recipes: what each does, and how to run it."""

    def call(console: Console) -> None:
        found = {name: _described(name) for name in shelf.names("recipes")}
        console.result(found)
        if not as_json:
            typer.echo("\n\n".join(f"{about['command']}\n  {about['about']}" for about in found.values()))

    finish(call, debug, as_json)


@recipes.command()
def show(name: Name, debug: Debug = False) -> None:
    """Print a recipe as it is written."""
    finish(lambda console: typer.echo(shelf.read_text(shelf.find("recipes", name)), nl=False), debug)


@recipes.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; an existing one is left as it is.")],
    debug: Debug = False,
) -> None:
    """Copy a recipe, to make it your own."""

    def call(console: Console) -> None:
        source = shelf.find("recipes", name)
        text = shelf.read_text(source)
        if source.parent == shelf.folder("recipes"):
            text = _at_home_in(file, source, text)
        try:
            with file.open("x", encoding="utf-8") as target:
                target.write(text)
        except FileExistsError:
            raise InputError(f"{file}: exists already, and is left as it is") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be written: {error.strerror}") from None

    finish(call, debug)


@recipes.command()
def validate(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a recipe and its manifest, listing every problem.

    With --json, prints the recipe with all its defaults.
    """

    def call(console: Console) -> None:
        from cs_aligner_cli.data.manifest import DrawnManifest, load_manifest, read_manifest, root_of
        from cs_aligner_cli.data.manifest_files import missing_shards, require_files
        from cs_aligner_cli.data.manifest_splits import split_findings, stated_splits
        from cs_aligner_cli.recipe.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())
        manifest = read_manifest(loaded)
        if not isinstance(manifest, DrawnManifest) and root_of(loaded, manifest) is None:
            console.say("still to be named: the folder of the data, --set data.root=FOLDER")
        else:
            found = load_manifest(loaded)
            try:
                require_files(found)
                for gap in missing_shards(found):
                    console.warn(f"not here: {gap}")
            except InputError as error:  # the recipe may be meant for another machine
                console.warn(f"not here: {error}")
        for finding in split_findings(loaded, stated_splits(manifest)):
            console.warn(f"{finding.key}: {finding.message}")
        console.result(loaded.model_dump(mode="json"))
        if not as_json:
            typer.echo(f"{loaded.name}: valid")

    finish(call, debug, as_json, quiet, recipe, overrides)


@recipes.command()
def schema(
    results: Annotated[
        str | None,
        typer.Option(
            "--results",
            metavar="COMMAND",
            help="In place of recipes: what a command prints with --json, or a file that it writes.",
            autocompletion=lambda incomplete: [name for name in RESULTS if name.startswith(incomplete)],
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of recipes, for editors, or of results."""

    def call(console: Console) -> None:
        from cs_aligner_cli.recipe.recipe import recipe_schema

        if results is None:
            print_json(recipe_schema())
            return
        from cs_aligner_cli.cli.schemas import result_schema

        print_json(result_schema(results))

    finish(call, debug)


def _described(name: str) -> dict[str, str]:
    """The command of a shipped recipe (its first line) and what it does (its other leading comment lines)."""
    lines = shelf.read_text(shelf.find("recipes", name)).splitlines()
    comments = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    about = " ".join(line for line in comments[1:] if not line.startswith("yaml-language-server:"))
    return {"command": comments[0].replace(f"recipes/{name}.yaml", name), "about": about}


def _at_home_in(file: Path, source: Path, text: str) -> str:
    """The text of a shipped recipe with the comments that name its own place changed to name ``file``."""
    schema = f"$schema={shelf.RECIPE_SCHEMA}"
    text = text.replace(schema, f"$schema={source.with_name(shelf.RECIPE_SCHEMA)}", 1)
    return text.replace(f"# csalign run recipes/{source.name}", f"# csalign run {file}", 1)
