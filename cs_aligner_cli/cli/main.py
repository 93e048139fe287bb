"""The command line: parse, call a stage, print."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cs_aligner_cli import __version__
from cs_aligner_cli.common.console import Console, guarded, print_json
from cs_aligner_cli.common.errors import InputError, TooManyBadItems
from cs_aligner_cli.recipe import shelf

_HELP = "Align vision and language, from data to report, driven by one YAML recipe."
_EPILOG = (
    "Begin with: csalign recipe list. Exit codes: 0 done; 2 something for you to correct; 3 done, but more"
    " items were bad than the recipe allows; 130 interrupted, the same command goes on; 1 a bug in csalign."
)
_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)
recipes = typer.Typer(
    help="List, show, copy and check recipes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)
app.add_typer(recipes, name="recipe")

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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(help=_HELP)
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _finish(call: Callable[[], None], debug: bool) -> NoReturn:
    raise typer.Exit(guarded(call, debug))


def _stage(
    stage: str,
    recipe: str | None,
    overrides: list[str] | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    debug: bool,
) -> NoReturn:
    def call() -> None:
        from cs_aligner_cli.cli.tables import TABLES, stage_data
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pipeline import run_stage

        loaded = load_recipe(recipe, overrides or ())
        console = Console(as_json, quiet)
        try:
            result = run_stage(stage, loaded, console, force)
        except TooManyBadItems as error:
            console.result(stage_data(stage, loaded, error.result), TABLES[stage](error.result))
            raise
        if result["status"] == "fresh":
            console.say(f"{stage}: nothing to do, its inputs have not changed (--force redoes it)")
        for name in result.get("waiting_for_training", ()):
            console.say(f"no finished training run {name} yet: csalign train, then csalign embed makes its store")
        for note in result.get("notes", ()):
            console.say(note)
        if stage == "gap_report":
            console.say(f"report: {result['report']}")
        console.result(stage_data(stage, loaded, result), TABLES[stage](result))

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
    """Read the data into tables of images and captions."""
    _stage("prepare", recipe, overrides, as_json, force, quiet, debug)


@app.command()
def embed(
    recipe: RecipeArgument = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Embed through the towers that another run trained (its folder or weights file); as --set"
            " embed.weights=RUN.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute the embeddings, frozen and (once trained) aligned."""
    if adapter is not None:
        overrides = [*(overrides or ()), f"embed.weights={adapter}"]
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
    """Train; an interrupted run goes on where it stopped."""
    _stage("train", recipe, overrides, as_json, force, quiet, debug)


@app.command("eval-retrieval")
def eval_retrieval(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="RUN_A RUN_B",
            help="Instead: test whether two finished runs differ; each a run's folder, or RUN:STORE.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure retrieval both ways, with intervals; save indexes."""
    if compare is None:
        _stage("eval_retrieval", recipe, overrides, as_json, force, quiet, debug)

    def call() -> None:
        from cs_aligner_cli.cli.tables import compare_tables
        from cs_aligner_cli.stages.compare_runs import compare_runs

        if recipe is not None or overrides:
            raise InputError("--compare reads two finished runs: it takes neither a recipe nor --set")
        result = compare_runs(*compare)
        console = Console(as_json, quiet)
        console.result({"command": "compare", **result}, compare_tables(result))
        for line in result["verdict"]:
            console.say(line)

    _finish(call, debug)


@app.command()
def search(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A sentence to search for; may be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="A photo to search for; may be repeated.")] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="An image or caption of the split, by id; may be repeated.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="How many results [default: 10, or all].", show_default=False)
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Whose index is searched [default: aligned].", show_default=False)
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="image or text: what is looked for [default: the other modality].", show_default=False),
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of the photos, by image id, where the data are stored features.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page of thumbnails to this file.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search the index for sentences, photos or known ids."""

    def call() -> None:
        from cs_aligner_cli.cli.tables import search_tables, stage_data
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.search import Asked
        from cs_aligner_cli.stages.search import search as search_stage

        loaded = load_recipe(recipe, overrides or ())
        console = Console(as_json, quiet)
        asked = Asked(text or (), image or (), id_ or (), k, store, gallery, photos, html)
        result = search_stage(loaded, console, asked)
        console.result(stage_data("search", loaded, result), search_tables(result))
        if html is not None:
            console.say(f"page: {html}")

    _finish(call, debug)


@app.command("zero-shot")
def zero_shot(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify images by prompts of class names."""
    _stage("zero_shot", recipe, overrides, as_json, force, quiet, debug)


@app.command("gap-report")
def gap_report(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure and draw the modality gap, as one HTML page."""
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
    """Run all stages in order, skipping what is up to date."""

    def call() -> None:
        from cs_aligner_cli.cli.tables import prepare_tables, run_data, run_tables, stage_data
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pipeline import run_all

        loaded = load_recipe(recipe, overrides or ())
        console = Console(as_json, quiet)
        try:
            results = run_all(loaded, console, force)
        except TooManyBadItems as error:
            console.result(stage_data("prepare", loaded, error.result), prepare_tables(error.result))
            raise
        console.result(run_data(loaded, results), run_tables(results))
        console.say(f"report: {results['gap_report']['report']}")

    _finish(call, debug)


@app.command()
def doctor(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check the installation, and all that a recipe needs.

    Exit code 2 if something is missing. Nothing is downloaded or written; without a recipe only the machine counts.
    """

    def call() -> None:
        from cs_aligner_cli.cli.doctor import as_data, examine, refuse_failed
        from cs_aligner_cli.cli.tables import doctor_tables
        from cs_aligner_cli.recipe.recipe import named_recipe

        checks = examine(named_recipe(recipe), overrides or ())
        Console(as_json).result(as_data(checks), doctor_tables(checks))
        refuse_failed(checks)

    _finish(call, debug)


@recipes.command("list")
def list_recipes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the shipped recipes: what each does, and how to run it."""

    def call() -> None:
        found = {name: _described(name) for name in shelf.names("recipes")}
        if as_json:
            print_json(found)
        else:
            typer.echo("\n\n".join(f"{about['command']}\n  {about['about']}" for about in found.values()))

    _finish(call, debug)


@recipes.command()
def show(name: Name, debug: Debug = False) -> None:
    """Print a recipe as it is written."""
    _finish(lambda: typer.echo(_text(shelf.find("recipes", name)), nl=False), debug)


@recipes.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; an existing one is left as it is.")],
    debug: Debug = False,
) -> None:
    """Copy a recipe, to make it your own."""

    def call() -> None:
        source = shelf.find("recipes", name)
        text = _text(source)
        if source.parent == shelf.folder("recipes"):
            text = _at_home_in(file, source, text)
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
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a recipe and its manifest, listing every problem.

    With --json, prints the recipe with all its defaults.
    """

    def call() -> None:
        from cs_aligner_cli.data.manifest import DrawnManifest, load_manifest, read_manifest
        from cs_aligner_cli.recipe.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())
        manifest = read_manifest(loaded)
        if isinstance(manifest, DrawnManifest) or loaded.data.root or manifest.root:
            load_manifest(loaded)
        else:
            Console(as_json, quiet).say("still to be named: the folder of the data, --set data.root=FOLDER")
        if as_json:
            print_json(loaded.model_dump(mode="json"))
        else:
            typer.echo(f"{loaded.name}: valid")

    _finish(call, debug)


@recipes.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of recipes, for editors."""

    def call() -> None:
        from cs_aligner_cli.recipe.recipe import recipe_schema

        print_json(recipe_schema())

    _finish(call, debug)


def _text(recipe: Path) -> str:
    try:
        return recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe}: cannot be read as UTF-8 text: {error}") from None


def _described(name: str) -> dict[str, str]:
    """The command of a shipped recipe (its first line) and what it does (its other leading comment lines)."""
    lines = _text(shelf.find("recipes", name)).splitlines()
    comments = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    about = " ".join(line for line in comments[1:] if not line.startswith("yaml-language-server:"))
    return {"command": comments[0].replace(f"recipes/{name}.yaml", name), "about": about}


def _at_home_in(file: Path, source: Path, text: str) -> str:
    """The text of a shipped recipe with the comments that name its own place changed to name ``file``."""
    schema = f"$schema={shelf.RECIPE_SCHEMA}"
    text = text.replace(schema, f"$schema={source.with_name(shelf.RECIPE_SCHEMA)}", 1)
    return text.replace(f"# csalign run recipes/{source.name}", f"# csalign run {file}", 1)


def main() -> None:
    """The console script. SIGTERM, which batch systems send, is answered like Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # Threads that spin while they wait lose whole time slices to any other busy process: on two shared cores a
    # training step then takes a hundred times as long. Set before torch loads its OpenMP runtime.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
