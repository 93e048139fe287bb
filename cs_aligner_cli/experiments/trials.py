"""The work of one process of a search: trials that nobody has done or is doing, one after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.experiments.ledger import Ledger, RunState
from cs_aligner_cli.experiments.measured_run import MeasuredRun
from cs_aligner_cli.experiments.plan import Configuration, PlannedRun
from cs_aligner_cli.experiments.search import Searcher, Trial
from cs_aligner_cli.experiments.worker import TrialPruned, work
from cs_aligner_cli.recipe.recipe import Recipe

_POLL_SECONDS = 0.5


class Execute(Protocol):
    """Does all stages of one run; calls ``watcher`` with epoch and validation R@1 after every epoch of training."""

    def __call__(self, recipe: Recipe, watcher: Callable[[int, float], None] | None = None) -> None:
        """Do them."""
        ...


def search(
    searcher: Searcher,
    ledger: Ledger,
    resolve: Callable[[Configuration, int], PlannedRun],
    execute: Execute,
    *,
    fail_fast: bool = False,
    failures: int = 0,
    on_start: Callable[[PlannedRun], None] = lambda run: None,
    on_end: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Bring the search to its end: this process's trials, and the wait for those that others have claimed.

    With ``fail_fast`` no trial is begun once more than ``failures``, those of before, have failed, here or in another
    process. Raises InputError if a run that is done lacks the objective's metric: no later one would have it.
    """
    while not (searcher.over or (fail_fast and searcher.failures > failures)):
        trial = searcher.take()
        if trial is None:
            if not searcher.over:
                time.sleep(_POLL_SECONDS)
            continue
        try:
            _tried(searcher, trial, ledger, resolve, execute, on_start)
        finally:
            trial.claim.release()
        on_end(trial)


def _tried(
    searcher: Searcher,
    trial: Trial,
    ledger: Ledger,
    resolve: Callable[[Configuration, int], PlannedRun],
    execute: Execute,
    on_start: Callable[[PlannedRun], None],
) -> None:
    """Run a trial with every seed and tell what it measured, or that it failed."""
    values = []
    for seed in searcher.sweep.seeds:
        try:
            run = resolve(trial.configuration, seed)
        except InputError as error:
            searcher.tell(trial, None, str(error))
            return
        first = seed == searcher.sweep.seeds[0]
        watcher = partial(searcher.report, trial) if first else None
        try:
            state = work([run], ledger, partial(execute, watcher=watcher), on_start=on_start)[0]
        except TrialPruned:
            ledger.log(run.id).unlink(missing_ok=True)
            searcher.tell(trial, None)
            return
        if state.status == "failed":
            searcher.tell(trial, None, f"seed {seed}: {state.error}")
            return
        values.append(_objective(ledger, state, searcher.sweep.objective.metric))
    mean = sum(values) / len(values)
    searcher.tell(trial, mean, "" if math.isfinite(mean) else f"the objective is {mean}")


def _objective(ledger: Ledger, state: RunState, metric: str) -> float:
    run = MeasuredRun(
        ledger.folder / "runs" / state.id, ALIGNED, state.configuration, state.configuration_id, state.seed, {}
    )
    value = run.number(metric)
    if value is None:
        raise InputError(
            f"sweep.objective.metric: {state.configuration}, seed {state.seed} has no metric {metric!r}"
            + did_you_mean(metric, sorted(run.numbers))
        )
    return value
