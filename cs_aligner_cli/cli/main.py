"""The command line: parse, call a stage, print."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cs_aligner_cli import __version__
from cs_aligner_cli.cli import experiments
from cs_aligner_cli.cli.demo import demo
from cs_aligner_cli.cli.options import SETTINGS, Archive, AsJson, Debug, Force, Overrides, Quiet, RecipeArgument, finish
from cs_aligner_cli.cli.recipes import recipes
from cs_aligner_cli.cli.remedies import complete_commands
from cs_aligner_cli.common import streams
from cs_aligner_cli.common.console import INTERRUPTED, Console
from cs_aligner_cli.common.errors import InputError, TooManyBadItems
from cs_aligner_cli.stages.table import STAGES, Stage

if TYPE_CHECKING:
    from cs_aligner_cli.common.results import Frozen
    from cs_aligner_cli.recipe.recipe import Recipe

_HELP = "Align vision and language, from data to report, driven by one YAML recipe."
_EPILOG = (
    "Begin with: csalign recipe list. Exit codes: 0 done; 2 something for you to correct; 3 done, but more"
    " items were bad than the recipe allows; 130 interrupted, the same command goes on; 1 a bug in csalign."
)

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)
app.add_typer(recipes, name="recipe")


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


def answer(command: str, recipe: Recipe, result: Frozen) -> dict[str, Any]:
    """What --json prints of a command on a recipe."""
    return {"command": command, "name": recipe.name, "run_dir": str(recipe.folder), **result.data()}


def _stage(
    stage: str,
    recipe: str | None,
    overrides: list[str] | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    debug: bool,
    archive: bool = False,
) -> NoReturn:
    def call(console: Console) -> None:
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pipeline import run_stage

        loaded = load_recipe(recipe, overrides or ())
        try:
            result = run_stage(stage, loaded, console, force, archive=archive)
        except TooManyBadItems as error:
            if error.result is not None:
                console.result(answer("prepare", loaded, error.result), error.result.tables())
            raise
        if result.status == "fresh":
            console.say(f"{stage}: nothing to do, its inputs have not changed (--force redoes it)")
        for remark in result.remarks():
            console.say(complete_commands(remark, recipe, overrides or ()))
        console.result(answer(stage, loaded, result), result.tables())

    finish(call, debug, as_json, quiet, recipe, overrides, stage)


def _stage_command(stage: Stage) -> Callable[..., None]:
    """The command of a stage that has only the options that all have, or all whose finished work is kept."""

    def command(
        recipe: RecipeArgument = None,
        overrides: Overrides = None,
        as_json: AsJson = False,
        force: Force = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        _stage(stage.name, recipe, overrides, as_json, force, quiet, debug)

    def keeping(
        recipe: RecipeArgument = None,
        overrides: Overrides = None,
        as_json: AsJson = False,
        force: Force = False,
        archive: Archive = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        _stage(stage.name, recipe, overrides, as_json, force, quiet, debug, archive)

    return command if stage.protects == "nothing" else keeping


def _embed(
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
    archive: Archive = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    if adapter is not None:
        overrides = [*(overrides or ()), f"embed.weights={adapter}"]
    _stage("embed", recipe, overrides, as_json, force, quiet, debug, archive)


# The commands of stages with options of their own; those of the others are made from the table.
_OWN: dict[str, Callable[..., None]] = {"embed": _embed}
for _name, _entry in STAGES.items():
    app.command(_entry.command, help=_entry.about)(_OWN.get(_name, _stage_command(_entry)))


def _is_sentence(given: str) -> bool:
    """Whether what stands in the recipe's place is rather a sentence to search for: words, and no file's name."""
    is_path = "/" in given or given.lower().endswith((".yaml", ".yml")) or os.path.exists(given)  # noqa: PTH110 (takes any length)
    return " " in given and not is_path


@app.command()
def search(
    recipe: RecipeArgument = None,
    sentence: Annotated[
        list[str] | None,
        typer.Argument(metavar="SENTENCE", help="What to search for, as with --text.", show_default=False),
    ] = None,
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
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Put first hits in the order of the recipe's matching head.")
    ] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search the index for sentences, photos or known ids."""

    def call(console: Console) -> None:
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.search import SearchRequest
        from cs_aligner_cli.stages.search import search as search_stage

        if len(sentence or ()) > 1:
            whole = f"csalign search {shlex.quote(recipe or '')} {shlex.quote(' '.join(sentence or ()))}"
            raise InputError(f"{' '.join(sentence or ())}: more than one word, unquoted", f"In quotes: {whole}")
        texts = [*(text or ()), *(sentence or ())]
        if recipe and not (texts or image or id_) and _is_sentence(recipe):
            given = f"csalign search RECIPE {shlex.quote(recipe)}"
            raise InputError(f"{recipe}: no such recipe", f"A sentence stands behind the recipe: {given}")
        loaded = load_recipe(recipe, overrides or ())
        request = SearchRequest(texts, image or (), id_ or (), k, store, gallery, photos, html, rerank)
        result = search_stage(loaded, console, request)
        console.result(answer("search", loaded, result), result.tables())
        if html is not None:
            console.say(f"page: {html}")

    finish(call, debug, as_json, quiet, recipe, overrides)


@app.command(name="pair-score")
def pair_score(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="RUN", help="The folder of a run with other encoders; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score encoders by the pairs at hand, untrained."""

    def call(console: Console) -> None:
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pair_score import pair_score as score

        loaded = load_recipe(recipe, overrides or ())
        result = score(loaded, console, [path.resolve() for path in beside or ()])
        for note in result.notes:
            console.say(note)
        console.result(answer("pair-score", loaded, result), result.tables())

    finish(call, debug, as_json, quiet, recipe, overrides)


@app.command()
def run(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    archive: Archive = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run all stages in order, skipping what is up to date."""

    def call(console: Console) -> None:
        from cs_aligner_cli.experiments.expected import published_tables
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pipeline import run_all
        from cs_aligner_cli.stages.run_result import run_result, run_tables

        loaded = load_recipe(recipe, overrides or ())
        try:
            results = run_all(loaded, console, force, archive=archive)
        except TooManyBadItems as error:
            if error.result is not None:
                console.result(answer("prepare", loaded, error.result), error.result.tables())
            raise
        result = run_result(loaded, results)
        tables = [*run_tables(results), *published_tables(result.expected, loaded.expected)]
        console.result(answer("run", loaded, result), tables)
        for line in result.verdict:
            console.say(line)
        console.say(f"report: {result.report}")

    finish(call, debug, as_json, quiet, recipe, overrides)


app.command()(demo)
app.command()(experiments.sweep)
app.command()(experiments.compare)
app.command()(experiments.leaderboard)


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

    def call(console: Console) -> None:
        from cs_aligner_cli.cli.doctor import DoctorResult, examine, refuse_failed
        from cs_aligner_cli.recipe.recipe import named_recipe

        checks = examine(named_recipe(recipe), overrides or ())
        result = DoctorResult.of(checks)
        console.result({"command": "doctor", **result.data()}, result.tables())
        refuse_failed(checks)

    finish(call, debug, as_json, False, recipe, overrides)


def main() -> None:
    """The console script. SIGTERM, which batch systems send, is answered like Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # Threads that spin while they wait lose whole time slices to any other busy process: on two shared cores a
    # training step then takes a hundred times as long. Set before torch loads its OpenMP runtime.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # NumPy's products have threads of their own, which spin whatever that says: beside torch's they cost more than they
    # gain even where nobody else is busy. What takes long is torch's, but for closed forms. Set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    streams.open_closed()
    streams.use_utf8_paths()
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        usage: Any = error  # a wrong option or argument; whose class it is depends on the version of typer
        if not hasattr(usage, "format_message"):
            raise
        usage.show()
        Console("--json" in sys.argv).answer_error(usage.format_message(), usage.exit_code)
        code = usage.exit_code
    sys.exit(code)
