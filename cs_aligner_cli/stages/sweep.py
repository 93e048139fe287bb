"""sweep: many runs of one recipe, on as many processes as asked, each done once whatever is killed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cs_aligner_cli.common.console import INTERRUPTED, Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, SomeRunsFailed
from cs_aligner_cli.experiments.cluster import Cluster, launch, require_submitit
from cs_aligner_cli.experiments.columns import better_of
from cs_aligner_cli.experiments.comparison import Comparison
from cs_aligner_cli.experiments.headline import HEADLINE, headline
from cs_aligner_cli.experiments.ledger import SWEEP, Ledger, RunState
from cs_aligner_cli.experiments.objective_path import refuse_unmeasured
from cs_aligner_cli.experiments.plan import (
    Configuration,
    PlannedRun,
    Source,
    configurations,
    load_sweep,
    named_by,
    plan,
)
from cs_aligner_cli.experiments.processes import side_by_side
from cs_aligner_cli.experiments.ranks import AcrossDataSets
from cs_aligner_cli.experiments.search import Searcher, SearchOutcome, extremes
from cs_aligner_cli.experiments.trials import search
from cs_aligner_cli.experiments.worker import any_failed, work
from cs_aligner_cli.files.artifact import write_bytes, write_json
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.sweep import PRUNED_BY_RECALL
from cs_aligner_cli.stages.pipeline import run_all
from cs_aligner_cli.stages.shared_stores import PATIENCE_SECONDS, make_shared
from cs_aligner_cli.stages.table import STAGES


class PlannedState(BaseModel):
    """One run of a sweep that was only planned."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    configuration: str
    seed: int
    id: str
    state: Literal["to run", "done", "failed"]


class SweepResult(BaseModel):
    """What a sweep did: its configurations and runs, and which of them failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    status: Literal["done", "fresh", "planned", "submitted"]
    folder: str = Field(description="the sweep's folder, an absolute path")
    configurations: int = Field(description="how many there are, those of a search as many as it may try")
    runs: int = Field(description="configurations times seeds")
    done_before: int
    done_now: int
    seconds: float
    estimated_seconds: float | None = Field(description="of a plan, what the runs that are left cost in one process")
    failed: list[RunState]
    planned: list[PlannedState] = Field(description="of a plan, every run but those of a search")
    search: SearchOutcome | None = None
    jobs: list[str] = Field([], description="of what was submitted, the ids of the jobs")
    comparison: Comparison | AcrossDataSets | None = Field(
        None, description="of the runs that are done, as csalign compare makes it"
    )


@dataclass(frozen=True)
class Options:
    """How a sweep is run; nothing here changes a number."""

    grid: tuple[str, ...] = ()
    seeds: str | None = None
    jobs: int = 1
    dry_run: bool = False
    fail_fast: bool = False
    retry_failed: bool = False
    launch: Cluster | None = None


@dataclass(frozen=True)
class _Sweep:
    """A sweep as every process of it reads it: its recipe, its runs but those of a search, its ledger."""

    source: Source
    options: Options
    base: Recipe
    runs: list[PlannedRun]

    @classmethod
    def load(cls, source: Source, options: Options) -> _Sweep:
        base = load_sweep(source, options.grid, options.seeds)
        assert base.sweep is not None
        return cls(source, options, base, plan(source, base, configurations(base.sweep)))

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.base.folder)

    @cached_property
    def searcher(self) -> Searcher | None:
        return Searcher(self.base) if self.base.sweep and self.base.sweep.search else None

    def resolve(self, configuration: Configuration, seed: int) -> PlannedRun:
        """One run of a search's configuration."""
        return self.source.resolve(self.base, configuration, seed)

    def probe(self, run: PlannedRun) -> PlannedRun:
        """A run that makes what a search shares, and is none of its trials: it has a folder of its own."""
        recipe = run.recipe.model_copy(update={"run_dir": self.base.folder / "shared"})
        return replace(run, recipe=recipe)

    def execute(self, recipe: Recipe, watcher: Callable[[int, float], None] | None = None) -> None:
        """All stages of one run; without its report the headline metrics of the gap."""
        assert self.base.sweep is not None
        watching: AbstractContextManager[None] = nullcontext()
        if watcher is not None:
            from cs_aligner_cli.training.watching import watched

            watching = watched(watcher)
        left_out = () if self.base.sweep.report else ("gap_report",)
        with watching:
            run_all(recipe, Console(quiet=True), left_out=left_out, patience=PATIENCE_SECONDS)
        if left_out:
            write_json(recipe.folder / HEADLINE, headline(recipe))

    def work(
        self, ids: Collection[str], failures: int, advance: Callable[..., None] = lambda count=1, note="": None
    ) -> None:
        """Of the runs of these ids, and the trials, all that is left and that no other process has, one by one.

        ``failures``: how many trials had failed before.
        """
        fail_fast, ledger = self.options.fail_fast, self.ledger
        left = [run for run in self.runs if run.id in ids]
        work(
            left,
            ledger,
            self.execute,
            fail_fast=fail_fast,
            on_start=lambda run: advance(0, run.label),
            on_end=lambda state: advance(1, f"{state.configuration}, seed {state.seed}: {state.status}"),
        )
        if self.searcher is not None and not (fail_fast and any_failed(left, ledger)):
            search(
                self.searcher,
                ledger,
                self.resolve,
                self.execute,
                fail_fast=fail_fast,
                failures=failures,
                on_start=lambda run: advance(0, run.label),
                on_end=lambda trial: advance(1, f"trial {trial.number}: {trial.configuration.name}"),
            )

    def retry_failed(self) -> None:
        """Let runs and trials that failed be tried again."""
        own = {run.id for run in self.runs}
        for state in self.ledger.states():
            if state.status == "failed" and (state.id in own or state.trial is not None):
                self.ledger.forget(state.id)
        if self.searcher is not None:
            self.searcher.retry_failed()


def sweep(source: Source, options: Options, console: Console) -> SweepResult:
    """Bring every run of a sweep to an end; return what was done.

    All configurations are resolved before anything runs. What all runs share is made first, once. Raises InputError
    for whatever is wrong with the sweep, SomeRunsFailed (exit code 3, the result with it) where a run failed.
    """
    this = _Sweep.load(source, options)
    probes = _probes(this)
    _refuse_objective(this, [*this.runs, *probes])
    this.ledger.refuse_other_files(this.runs, probes[0] if probes else None)
    before, started = this.ledger.states(), time.monotonic()
    if options.dry_run:
        return _result("planned", this, before, before, 0.0)
    if options.retry_failed:
        this.retry_failed()
        before = this.ledger.states()
    ended = {state.id for state in before}
    left = [run for run in this.runs if run.id not in ended]
    searching = this.searcher is not None and not this.searcher.over
    if (left or searching) and options.launch:
        return _submitted(this, left, options.launch, before)
    _written(this)
    if left or searching:
        # Where there is only a search, what it shares is made before its first trial, too.
        probe = [] if this.runs else [this.probe(probes[0])]
        make_shared(left or probe, console, all_need_it=len(left) == len(this.runs))
        _work(this, left, console)
    seconds = time.monotonic() - started
    result = _result("done" if left or searching else "fresh", this, before, this.ledger.states(), seconds)
    if result.failed or (result.search and result.search.failed):
        raise SomeRunsFailed(_failures(result, this), result.model_dump(mode="json"))
    return result


def _work(this: _Sweep, left: Sequence[PlannedRun], console: Console) -> None:
    """What is left, in this process or on several, with a display of how far it is."""
    searcher = this.searcher
    wanted, tried = (searcher.spec.trials, searcher.ended) if searcher else (0, 0)
    ids, failures = [run.id for run in left], searcher.failures if searcher else 0
    done = len(this.runs) - len(left) + tried
    with console.progress(f"sweep {this.base.name}", len(this.runs) + wanted, done=done) as advance:
        jobs = min(this.options.jobs, len(left) + wanted - tried)
        if jobs > 1:
            known: set[str] = set()

            def poll() -> bool:
                nonlocal tried
                for run in left:
                    if run.id not in known and (state := this.ledger.state(run)) is not None:
                        known.add(run.id)
                        advance(1, f"{state.configuration}, seed {state.seed}: {state.status}")
                if searcher is not None and (ended := searcher.ended) > tried:
                    advance(ended - tried, counted(ended, "trials"))
                    tried = ended
                return len(known) == len(left) and (searcher is None or searcher.over)

            side_by_side(jobs, _worker, (this.source, this.options, ids, failures), poll)
            if this.options.fail_fast and any_failed(left, this.ledger):
                return
        this.work([run.id for run in left if this.ledger.state(run) is None], failures, advance)


def _worker(source: Source, options: Options, ids: Collection[str], failures: int) -> None:
    """One process of several: every run that nobody else has, as ``_Sweep.work``."""
    try:
        _Sweep.load(source, options).work(ids, failures)
    except InputError as error:
        raise SystemExit(str(error)) from None  # on stderr, in place of a traceback
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None  # the process that waits for this one says so


def _submitted(this: _Sweep, left: Sequence[PlannedRun], cluster: Cluster, before: Sequence[RunState]) -> SweepResult:
    """Hand the work to jobs that each do what nobody else has, and return."""
    assert this.base.sweep is not None
    require_submitit(cluster)
    _written(this)
    ids, failures = [run.id for run in left], this.searcher.failures if this.searcher else 0
    call = partial(_worker, this.source, replace(this.options, launch=None), ids, failures)
    jobs = launch(call, this.options.jobs, this.base.sweep.slurm, this.base.folder, this.base.name, cluster)
    return _result("submitted", this, before, before, 0.0).model_copy(update={"jobs": [job.job_id for job in jobs]})


def _probes(this: _Sweep) -> list[PlannedRun]:
    """The ends of every range of the search, each alone: InputError if one of them is no valid recipe."""
    sweep = this.base.sweep
    chosen = [{key: value} for key, value in extremes(sweep.search)] if sweep and sweep.search else []
    return [this.resolve(Configuration(named_by(one), one), sweep.seeds[0]) for one in chosen] if sweep else []


def _refuse_objective(this: _Sweep, runs: Sequence[PlannedRun]) -> None:
    """Refuse an objective that no run will have, or that is not known to be better large or small."""
    sweep = this.base.sweep
    assert sweep is not None
    recipe = runs[0].recipe
    stages = [stage.name for stage in STAGES.values() if stage.runs_for(recipe)]
    refuse_unmeasured(sweep.objective.metric, recipe, stages, sweep.report)
    better = better_of(sweep.objective.metric, sweep.objective.direction)
    if sweep.search and sweep.search.prune_after and better == "lower":
        raise InputError(f"sweep.{PRUNED_BY_RECALL}")


def _result(
    status: Literal["done", "fresh", "planned", "submitted"],
    this: _Sweep,
    before: Sequence[RunState],
    after: Sequence[RunState],
    seconds: float,
) -> SweepResult:
    sweep = this.base.sweep
    assert sweep is not None
    trials = sweep.search.trials if sweep.search else 0
    own = {run.id for run in this.runs}
    before, after = (
        [s for s in states if s.id in own or (trials and s.trial is not None)] for states in (before, after)
    )
    done_before, done = (sum(state.status == "done" for state in states) for states in (before, after))
    seconds_each = [state.seconds for state in after if state.status == "done"]
    runs = len(this.runs) + trials * len(sweep.seeds)
    planned = status == "planned"
    known = {state.id: state.status for state in before}
    return SweepResult(
        status=status,
        folder=str(this.base.folder),
        configurations=len({run.configuration_id for run in this.runs}) + trials,
        runs=runs,
        done_before=done_before,
        done_now=done - done_before,
        seconds=round(seconds, 2),
        estimated_seconds=round((runs - done) * sum(seconds_each) / done, 1) if planned and done else None,
        failed=[state for state in after if state.status == "failed"],
        planned=[
            PlannedState(
                configuration=run.configuration.name, seed=run.seed, id=run.id, state=known.get(run.id, "to run")
            )
            for run in (this.runs if planned else ())
        ],
        search=this.searcher.outcome() if not planned and this.searcher is not None else None,
    )


def _failures(result: SweepResult, this: _Sweep) -> str:
    lines = [f"{len(result.failed)} of {result.runs} runs failed:"]
    lines += [
        f"  {s.configuration}, seed {s.seed}: {s.error.splitlines()[0]} ({this.ledger.log(s.id)})"
        for s in result.failed
    ]
    trials = result.search.failed if result.search else []
    lines += (
        [f"{counted(len(trials), 'trials')} of the search failed:", *(f"  {trial}" for trial in trials)]
        if trials
        else []
    )
    return "\n".join([*(lines if result.failed else lines[1:]), "--retry-failed tries them again."])


def _written(this: _Sweep) -> None:
    """Keep the recipe in the sweep's folder: of a sweep that is done, too, objective and control may have changed."""
    folder, text = this.base.folder, this.base.to_yaml().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}", "Name another run_dir.") from None
    file = folder / SWEEP
    if not file.is_file() or file.read_bytes() != text:
        write_bytes(file, text)
    this.ledger.keep_plan(this.runs)
