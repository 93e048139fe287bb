"""The commands on many runs: sweep, compare and leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cs_aligner_cli.cli.options import AsJson, Debug, Overrides, Quiet, RecipeArgument, finish
from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import SomeRunsFailed
from cs_aligner_cli.common.p_values import rounded_p
from cs_aligner_cli.common.tables import Table

if TYPE_CHECKING:
    from cs_aligner_cli.experiments.comparison import Comparison, Difference
    from cs_aligner_cli.experiments.ranks import AcrossDataSets

Launch = Literal["slurm", "local"]
Better = Annotated[
    Literal["maximize", "minimize"] | None,
    typer.Option("--direction", help="Which way the objective is better [default: as is known of the metric]."),
]
Grid = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="KEY=A,B", help="Values of a key, all combinations of which are run; repeatable."),
]


def sweep(
    recipe: RecipeArgument = None,
    overrides: Overrides = None,
    grid: Grid = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N", help="How many seeds, or a list of them as in [0,1,7].")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes on this machine.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and what they may cost; run none.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Begin no further run after one that failed.")] = False,
    launch: Annotated[
        Launch | None,
        typer.Option(
            help="Submit --jobs jobs (as sweep.slurm says) and return; local: jobs of submitit on this machine."
        ),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try runs again that failed before.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every configuration of a sweep with every seed."""

    def call(console: Console) -> None:
        from cs_aligner_cli.experiments.plan import Source
        from cs_aligner_cli.stages.compare import compare as compare_runs
        from cs_aligner_cli.stages.sweep import Options
        from cs_aligner_cli.stages.sweep import sweep as run_sweep

        source = Source.of(recipe, overrides or ())
        options = Options(tuple(grid or ()), seeds, jobs, dry_run, fail_fast, retry_failed, launch)
        failed: SomeRunsFailed | None = None
        try:
            result = run_sweep(source, options, console).model_dump(mode="json")
        except SomeRunsFailed as error:
            failed, result = error, error.result
        data, tables = {"command": "sweep", **result}, sweep_tables(result)
        if result["done_before"] + result["done_now"] > 0 and result["status"] in ("done", "fresh"):
            found = compare_runs([result["folder"]], out=[Path(result["folder"]) / "comparison.html"])
            data["comparison"] = found.model_dump(mode="json")
            tables = [*all_tables(found), *tables]
            for line in all_conclusions(found):
                console.say(line)
            console.say(f"page: {Path(result['folder']) / 'comparison.html'}")
        console.result(data, tables)
        if result["jobs"]:
            console.say(f"submitted: {', '.join(result['jobs'])}; logs in {Path(result['folder']) / 'jobs'}")
        if failed is not None:
            raise failed

    finish(call, debug, as_json, quiet, recipe, overrides)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Finished runs (folder, or RUN:STORE), or a sweep's folder.")
    ],
    control: Annotated[
        str | None,
        typer.Option(help="The configuration that the others are tested against [default: the first, or the sweep's]."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="The metric that is tested, by its path [default: the mean R@1 of both ways].")
    ] = None,
    direction: Better = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A further metric, by its path; may be repeated.")
    ] = None,
    former: Annotated[
        bool, typer.Option("--former", help="Also what a sweep finished of configurations that it no longer has.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", "-o", help="Also write .md, .csv, .tex, .json, .html or .svg; repeatable."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare finished runs, with intervals and tests."""

    def call(console: Console) -> None:
        from cs_aligner_cli.stages.compare import compare as compare_runs

        found = compare_runs(runs, control, objective, metric or (), out or (), direction, former)
        console.result({"command": "compare", **found.model_dump(mode="json")}, all_tables(found))
        for line in all_conclusions(found):
            console.say(line)
        for path in out or ():
            console.say(f"written: {path}")

    finish(call, debug, as_json, quiet, takes_recipe=False)


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Below it, finished runs are looked for.")],
    objective: Annotated[
        str | None, typer.Option(help="The metric to rank by, by its path [default: the mean R@1 of both ways].")
    ] = None,
    direction: Better = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", help="Write .md, .html or .json; repeatable [default: FOLDER/leaderboard.md, .html]."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank finished runs that were measured alike."""

    def call(console: Console) -> None:
        from cs_aligner_cli.experiments.leaderboard import rows_of
        from cs_aligner_cli.stages.leaderboard import leaderboard as rank_runs

        files = out or [folder / f"leaderboard{suffix}" for suffix in (".md", ".html")]
        found = rank_runs(folder, objective, files, direction)
        tables = [
            table(
                f"{board.comparison.data_set}, split {board.comparison.split},"
                f" {counted(board.comparison.images, 'images')}",
                [
                    "configuration",
                    "place",
                    *(column.title + column.arrow for column in board.comparison.columns),
                    *("seeds", "recipe", "code", "date"),
                ],
                [*rows_of(board)],
            )
            for board in found.boards
        ]
        console.result({"command": "leaderboard", **found.model_dump(mode="json")}, tables)
        for one in found.left_out:
            console.say(f"left out: {one.folder}: {one.why}")
        for path in files:
            console.say(f"written: {path}")

    finish(call, debug, as_json, quiet, takes_recipe=False)


def all_tables(found: Comparison | AcrossDataSets) -> list[Table]:
    """What a comparison shows on a terminal; of several data sets the mean ranks come last."""
    from cs_aligner_cli.experiments import rank_tables
    from cs_aligner_cli.experiments.comparison import Comparison

    if isinstance(found, Comparison):
        return comparison_tables(found)
    ranks = found.ranks
    rows = [rank_tables.cells(row, ranks) for row in ranks.rows]
    title = f"mean ranks; {ranks.critical_difference:.2f} apart is more than chance (Nemenyi, 5%)"
    own = [part for one in found.comparisons for part in comparison_tables(one)]
    return [*own, table(title, rank_tables.columns(ranks), rows)]


def all_conclusions(found: Comparison | AcrossDataSets) -> list[str]:
    """What follows from a comparison, line by line."""
    from cs_aligner_cli.experiments.comparison import Comparison

    if isinstance(found, Comparison):
        return found.conclusions
    own = [f"{one.data_set}: {line}" for one in found.comparisons for line in one.conclusions]
    return [*own, *found.ranks.conclusions]


def comparison_tables(found: Comparison) -> list[Table]:
    """Configurations times metrics, then every test of the objective against the control."""
    from cs_aligner_cli.experiments.expected import published_tables
    from cs_aligner_cli.experiments.text_tables import CLEAR, cell_text

    columns = ["configuration", *(column.title + column.arrow for column in found.columns)]
    rows = [
        (
            f"{row.name} (control)" if row.is_control else row.name,
            *(cell_text(row.cells.get(column.key), column) for column in found.columns),
        )
        for row in found.rows
    ]
    tables = [table("mean \N{PLUS-MINUS SIGN} standard deviation over seeds", columns, rows)]
    published = published_tables(found.expected)
    if found.control is None:
        return [*tables, *published]
    objective = found.column(found.objective)
    tests = [
        (row.name, *_test(cell.difference, objective.digits))
        for row in found.rows
        if (cell := row.cells.get(found.objective)) is not None and cell.difference is not None
    ]
    title = f"{objective.title} less that of {found.control} ({CLEAR} above: p < .05 after Holm's correction)"
    columns = ["configuration", "difference", "95% interval", "p", "p (Holm)"]
    return [*tables, table(title, columns, tests), *published]


def _test(test: Difference, digits: int) -> tuple[str, ...]:
    span = f"{test.interval[0]:+.{digits}f} to {test.interval[1]:+.{digits}f}" if test.interval else ""
    return f"{test.mean:+.{digits}f}", span, *("" if p is None else rounded_p(p) for p in (test.p, test.p_holm))


def sweep_tables(result: Mapping[str, Any]) -> list[Table]:
    """How many runs there are, done and failed; with --dry-run each of them."""
    counts = [
        ("configurations", str(result["configurations"])),
        ("runs", str(result["runs"])),
        ("done before", str(result["done_before"])),
        ("done now", str(result["done_now"])),
        ("failed", str(len(result["failed"]))),
        ("seconds", f"{result['seconds']:.0f}"),
    ]
    if result["status"] == "planned":
        cost = result["estimated_seconds"]
        known = "unknown until one run is done" if cost is None else f"about {cost:.0f} s in one process"
        counts = [*counts[:3], ("the other runs' cost", known)]
    planned = [(run["configuration"], str(run["seed"]), run["id"], run["state"]) for run in result["planned"]]
    runs = [table("runs", ["configuration", "seed", "id", "state"], planned, names=2)] if planned else []
    if (search := result["search"]) is not None:
        counts += [(f"trials {what}", str(count)) for what, count in _trials(search)]
        if best := search["best"]:
            counts.append(("best trial", f"{best['configuration']}: {best['value']:.4g}"))
    return [*runs, table(f"sweep in {result['folder']}", ["what", "how many"], counts)]


def _trials(search: Mapping[str, Any]) -> list[tuple[str, object]]:
    wanted = f"{search['wanted']}" + (", and the space holds no more" if search["exhausted"] else "")
    return [
        ("wanted", wanted),
        ("done", search["done"]),
        ("ended early", search["pruned"]),
        ("failed", len(search["failed"])),
    ]
