"""compare: finished runs side by side, as a table with tests, a page, and files for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, listed
from cs_aligner_cli.experiments import rank_tables, text_tables
from cs_aligner_cli.experiments.comparison import OBJECTIVE, Comparison
from cs_aligner_cli.experiments.comparison import compare as compared
from cs_aligner_cli.experiments.expected import beside_published, expected_of
from cs_aligner_cli.experiments.figures import main_figure
from cs_aligner_cli.experiments.ledger import STATES, SWEEP
from cs_aligner_cli.experiments.measured_run import MeasuredRun, find_run
from cs_aligner_cli.experiments.page import render_figure, render_page, render_ranks
from cs_aligner_cli.experiments.ranks import AcrossDataSets, mean_ranks
from cs_aligner_cli.experiments.words import conclusions
from cs_aligner_cli.files.artifact import write_bytes
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.sweep import Direction, Sweep
from cs_aligner_cli.stages.formats import format_of_output

_FORMATS = (*text_tables.FORMATS, ".json", ".html", ".svg")


def compare(
    given: Sequence[str],
    control: str | None = None,
    objective: str | None = None,
    further: Sequence[str] = (),
    out: Sequence[Path] = (),
    direction: Direction | None = None,
    former: bool = False,
) -> Comparison | AcrossDataSets:
    """Compare runs and sweeps, each ``RUN``, ``RUN:STORE`` or a sweep's folder; write the comparison to files.

    Sweeps that agree on a control and an objective name theirs; of single runs the first one is the control. Runs of
    several data sets get a comparison for each, and mean ranks over all. ``direction``: which way the objective is
    better, where that is not known of the metric. What a sweep finished of configurations that it no longer has is left
    out unless ``former``, and the conclusions name it. Raises InputError as ``experiments.compare``, and before
    anything is read for a file whose suffix is no format.
    """
    formats = [format_of_output(path, _FORMATS) for path in out]
    by_data_set: dict[str, list[MeasuredRun]] = {}
    for one in given:
        for run in find_run(one):
            by_data_set.setdefault(run.data_set, []).append(run)
    sweeps = _sweeps_of(given)
    objectives = {sweep.objective.metric: sweep.objective for sweep in sweeps}
    own = next(iter(objectives.values())) if len(objectives) == 1 else None
    if own and objective in (None, own.metric):
        direction = direction or own.direction
    wanted = objective or (own.metric if own else OBJECTIVE)
    found = []
    for every in by_data_set.values():
        runs, remark = _present(every, former)
        table = compared(runs, _control(runs, control, sweeps), wanted, direction, further)
        published = [value for run in runs for value in beside_published(expected_of(run), run)]
        found.append(table.model_copy(update={"conclusions": [*conclusions(table), *remark], "expected": published}))
    result = found[0] if len(found) == 1 else AcrossDataSets(comparisons=found, ranks=mean_ranks(found))
    texts = [_written(result, form, " and ".join(given)) for form in formats]  # all of them, or none is written
    for path, text in zip(out, texts, strict=True):
        write_bytes(path, text.encode())
    return result


def _present(runs: Sequence[MeasuredRun], former: bool) -> tuple[list[MeasuredRun], list[str]]:
    """The runs that are compared, and a sentence where a sweep has finished others that it no longer names."""
    others = {run.configuration_id: run.configuration for run in runs if run.former}
    if not others:
        return list(runs), []
    found = f"{counted(len(others), 'finished configurations', 'are')} no longer in the sweep"
    present = [run for run in runs if former or not run.former]
    if not present:
        raise InputError(
            f"{runs[0].folder.parents[1]}: {found}, and none that is has finished yet",
            "Go on with the sweep, or compare the former ones by --former.",
        )
    how = "compared all the same" if former else "left out (--former compares them, too)"
    return present, [f"{found}, and {how}: {listed([*others.values()])}."]


def _control(runs: Sequence[MeasuredRun], given: str | None, sweeps: Sequence[Sweep]) -> str | None:
    """The control of the runs of one data set; None where there is nothing to test against it."""
    if len({run.configuration_id for run in runs}) == 1:
        return None
    named = {sweep.control for sweep in sweeps}
    of_sweeps = next(iter(named)) if len(named) == 1 else None
    return given or (of_sweeps if sweeps else runs[0].configuration)


def _sweeps_of(given: Sequence[str]) -> list[Sweep]:
    """The sweep sections of the sweeps among these."""
    places = dict.fromkeys(folder.absolute() for one in given for folder in (Path(one), Path("runs") / one))
    found = [load_recipe(str(folder / SWEEP)).sweep for folder in places if (folder / STATES).is_dir()]
    return [sweep for sweep in found if sweep is not None]


def _no_figure(found: Comparison | AcrossDataSets) -> InputError:
    if isinstance(found, Comparison) and len(found.rows) > 1:
        return InputError(
            f"--out: these configurations have no figure with the objective {found.objective}",
            "A gap is drawn over two keys that vary, or over one of numbers; another objective, against the gap.",
        )
    return InputError("--out: a single configuration has no figure", "Compare several runs, or a sweep.")


def _written(found: Comparison | AcrossDataSets, suffix: str, title: str) -> str:
    if suffix == ".json":
        return found.model_dump_json(indent=1) + "\n"
    if suffix == ".svg":
        drawn = rank_tables.figure(found.ranks) if isinstance(found, AcrossDataSets) else main_figure(found)
        if drawn is None:
            raise _no_figure(found)
        return render_figure(drawn)
    if isinstance(found, AcrossDataSets):
        return (
            render_ranks(found, f"Mean ranks of {title}") if suffix == ".html" else rank_tables.FORMATS[suffix](found)
        )
    return render_page(found, f"Comparison of {title}") if suffix == ".html" else text_tables.FORMATS[suffix](found)
