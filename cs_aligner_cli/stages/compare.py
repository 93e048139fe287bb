"""compare: finished runs side by side, as a table with tests, a page, and files for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.comparison import OBJECTIVE, Comparison
from cs_aligner_cli.experiments.comparison import compare as compared
from cs_aligner_cli.experiments.ledger import STATES, SWEEP
from cs_aligner_cli.experiments.measured_run import find_run
from cs_aligner_cli.experiments.page import render_page
from cs_aligner_cli.experiments.text_tables import FORMATS
from cs_aligner_cli.experiments.words import conclusions
from cs_aligner_cli.files.artifact import write_bytes
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.sweep import Sweep


def compare(
    given: Sequence[str],
    control: str | None = None,
    objective: str | None = None,
    further: Sequence[str] = (),
    out: Sequence[Path] = (),
) -> Comparison:
    """Compare runs and sweeps, each ``RUN``, ``RUN:STORE`` or a sweep's folder; write the comparison to files.

    A sweep names its own control and objective; of single runs the first one is the control. Raises InputError as
    ``experiments.compare``, and before anything is read for a file whose suffix is no format.
    """
    for path in out:
        if path.suffix not in (*FORMATS, ".json", ".html"):
            raise InputError(
                f"--out {path}: cannot write {path.suffix or 'a file without suffix'}",
                f"Formats: {', '.join((*FORMATS, '.json', '.html'))}.",
            )
    runs = [run for one in given for run in find_run(one)]
    sweep = _sweep_of(given)
    if control is None:
        control = sweep.control if sweep else runs[0].configuration
    if len({run.configuration_id for run in runs}) == 1:
        control = None
    better: Literal["higher", "lower"] | None = None
    if sweep and objective in (None, sweep.objective.metric):
        better = "higher" if sweep.objective.direction == "maximize" else "lower"
    wanted = objective or (sweep.objective.metric if sweep else OBJECTIVE)
    found = compared(runs, control, wanted, better, further)
    found = found.model_copy(update={"conclusions": conclusions(found)})
    for path in out:
        write_bytes(path, _written(found, path.suffix, " and ".join(given)).encode())
    return found


def _sweep_of(given: Sequence[str]) -> Sweep | None:
    """The sweep section of the one sweep among these, None where there is none."""
    places = {folder.absolute() for one in given for folder in (Path(one), Path("runs") / one)}
    sweeps = [folder for folder in places if (folder / STATES).is_dir()]
    return load_recipe(str(sweeps[0] / SWEEP)).sweep if len(sweeps) == 1 else None


def _written(found: Comparison, suffix: str, title: str) -> str:
    if suffix == ".json":
        return found.model_dump_json(indent=1) + "\n"
    if suffix == ".html":
        return render_page(found, f"Comparison of {title}")
    return FORMATS[suffix](found)
