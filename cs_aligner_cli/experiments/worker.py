"""The work of one process of a sweep: runs that nobody has done or is doing, one after another."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TypeAlias

from cs_aligner_cli.common.errors import CsalignError
from cs_aligner_cli.experiments.ledger import Ledger, RunState
from cs_aligner_cli.experiments.plan import PlannedRun
from cs_aligner_cli.recipe.recipe import Recipe

# Does all stages of one run.
Execute: TypeAlias = Callable[[Recipe], None]
_POLL_SECONDS = 0.5


class TrialPruned(Exception):  # noqa: N818 (nothing failed)
    """A trial of a search is behind the others after as many epochs: its run ends early, and is not one of them."""


def work(
    runs: Sequence[PlannedRun],
    ledger: Ledger,
    execute: Execute,
    *,
    fail_fast: bool = False,
    on_start: Callable[[PlannedRun], None] = lambda run: None,
    on_end: Callable[[RunState], None] = lambda state: None,
) -> list[RunState]:
    """Bring every run to an end, and return what became of them, in their order.

    A run that another process has claimed is left to it, and waited for at the end; if that process dies, its run is
    taken up here. A run that fails is noted with its log and does not stop the others, unless ``fail_fast``: then
    what has not begun when it fails, here or in another process, is left, and the states of what has ended are
    returned. ``on_end`` hears of every run once.
    """
    ended: dict[str, RunState] = {}
    while len(ended) < len(runs):
        progress = False
        for run in runs:
            if run.id in ended:
                continue
            state = ledger.state(run)
            if state is None and not (fail_fast and any_failed(runs, ledger)):
                state = _attempt(run, ledger, execute, on_start)
            if state is None:
                continue  # another process is on it, or nothing is begun any more
            ended[run.id] = state
            on_end(state)
            progress = True
            if fail_fast and state.status == "failed":
                return [ended[r.id] for r in runs if r.id in ended]
        if not progress:
            time.sleep(_POLL_SECONDS)
    return [ended[run.id] for run in runs]


def any_failed(runs: Sequence[PlannedRun], ledger: Ledger) -> bool:
    """Whether any of these runs has ended and failed."""
    return any(state.status == "failed" for run in runs if (state := ledger.state(run)))


def _attempt(
    run: PlannedRun, ledger: Ledger, execute: Execute, on_start: Callable[[PlannedRun], None]
) -> RunState | None:
    """What became of a run that was done here; None where another process has it."""
    with ledger.claimed(run) as mine:
        if not mine:
            return None
        state = ledger.state(run)  # it may have ended while this process looked at others
        if state is not None:
            return state
        on_start(run)
        started = time.monotonic()
        error = _executed(run.recipe, ledger.log(run.id), execute)
        return ledger.end(run, time.monotonic() - started, error)


def _executed(recipe: Recipe, log: Path, execute: Execute) -> str:
    """Do a run, its talk going to a log; return what went wrong, "" if nothing did."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
        try:
            execute(recipe)
        except TrialPruned:
            raise
        except Exception as error:  # noqa: BLE001 (whatever ends one run must not end the others; it is noted and told)
            file.write(str(error) if isinstance(error, CsalignError) else traceback.format_exc())
            return str(error) or type(error).__name__
    return ""
