"""sweep: many runs of one recipe, on as many processes as asked, each done once whatever is killed meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, SomeRunsFailed
from cs_aligner_cli.experiments.ledger import SWEEP, Ledger, RunState
from cs_aligner_cli.experiments.measured_run import HEADLINE
from cs_aligner_cli.experiments.plan import PlannedRun, Source, configurations, load_sweep, plan
from cs_aligner_cli.experiments.worker import work
from cs_aligner_cli.files.artifact import write_bytes, write_json
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.stages.pipeline import run_all, run_stage

_POLL_SECONDS = 0.5
# The longest that a run waits for another one that makes what both share.
_PATIENCE_SECONDS = 6 * 3600.0


class SweepResult(BaseModel):
    """What a sweep did: its configurations and runs, and which of them failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    status: Literal["done", "fresh", "planned"]
    folder: str
    configurations: int
    runs: int
    done_before: int
    done_now: int
    seconds: float
    estimated_seconds: float | None
    failed: list[RunState]
    planned: list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """How a sweep is run; nothing here changes a number."""

    grid: tuple[str, ...] = ()
    seeds: str | None = None
    jobs: int = 1
    dry_run: bool = False
    fail_fast: bool = False
    retry_failed: bool = False


def sweep(source: Source, options: Options, console: Console) -> SweepResult:
    """Bring every run of a sweep to an end; return what was done.

    All configurations are resolved before anything runs. What all runs share is made first, once. Raises InputError
    for whatever is wrong with the sweep, SomeRunsFailed (exit code 3, the result with it) where a run failed.
    """
    base = load_sweep(source, options.grid, options.seeds)
    assert base.sweep is not None
    runs = plan(source, base, configurations(base.sweep))
    ledger = Ledger(base.folder)
    states = [ledger.state(run) for run in runs]
    if options.dry_run:
        return _result("planned", base, runs, states, [], 0.0)
    if options.retry_failed:
        for run, state in zip(runs, states, strict=True):
            if state is not None and state.status == "failed":
                ledger.forget(run)
        states = [None if state and state.status == "failed" else state for state in states]
    left = [run for run, state in zip(runs, states, strict=True) if state is None]
    started = time.monotonic()
    if left:
        write_bytes(_made(base.folder) / SWEEP, base.to_yaml().encode())
        make_shared(left, console, all_need_it=len(left) == len(runs))
        done = len(runs) - len(left)
        with console.progress(f"sweep {base.name}", len(runs), done=done) as advance:
            if options.jobs == 1:
                _here(left, ledger, options, base.sweep.report, advance)
            else:
                _side_by_side(left, ledger, source, options, advance)
    ended = [ledger.state(run) for run in runs]
    result = _result("done" if left else "fresh", base, runs, states, ended, time.monotonic() - started)
    if result.failed:
        raise SomeRunsFailed(_failures(result.failed, ledger, runs), result.model_dump(mode="json"))
    return result


def execute(recipe: Recipe, report: bool) -> None:
    """All stages of one run; without its report the headline metrics of the gap."""
    run_all(recipe, Console(quiet=True), left_out=() if report else ("gap_report",), patience=_PATIENCE_SECONDS)
    if not report:
        write_json(recipe.folder / HEADLINE, _headline(recipe))


def make_shared(runs: Sequence[PlannedRun], console: Console, all_need_it: bool) -> None:
    """The prepared data and frozen stores that several runs share, each made once before they begin.

    What cannot be made fails the runs that need it, as any other error would; InputError if that is all of a sweep's.
    """
    firsts = {(str(run.recipe.data.dir), str(run.recipe.embed.dir)): run for run in reversed(runs)}
    failures = 0
    for run in firsts.values():
        try:
            for stage in ("prepare", "embed"):
                result = run_stage(stage, run.recipe, console, patience=_PATIENCE_SECONDS)
                if result.status == "done":
                    console.say(f"{stage}: done, for all runs that share it")
        except InputError:
            failures += 1
            if all_need_it and failures == len(firsts):
                raise


def _here(
    runs: Sequence[PlannedRun], ledger: Ledger, options: Options, report: bool, advance: Callable[..., None]
) -> None:
    """The runs in this process, one after another."""
    work(
        runs,
        ledger,
        lambda recipe: execute(recipe, report),
        fail_fast=options.fail_fast,
        on_start=lambda run: advance(0, run.label),
        on_end=lambda state: advance(1, f"{state.configuration}, seed {state.seed}: {state.status}"),
    )


def _side_by_side(
    runs: Sequence[PlannedRun], ledger: Ledger, source: Source, options: Options, advance: Callable[..., None]
) -> None:
    """The runs on several processes, which divide the cores and have a GPU each where there are several."""
    context = multiprocessing.get_context("spawn")
    jobs = min(options.jobs, len(runs))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers = []
    for number in range(jobs):
        environment = {"OMP_NUM_THREADS": str(threads), **_one_gpu(number)}
        # A child reads its environment when it starts, and torch its threads from there.
        former = {key: os.environ.get(key) for key in environment}
        os.environ.update(environment)
        worker = context.Process(target=_worker, args=(source, options), daemon=True)
        worker.start()
        workers.append(worker)
        for key, value in former.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
    known: set[str] = set()
    try:
        while True:
            alive = any(worker.is_alive() for worker in workers)
            for run in runs:
                if run.id not in known and (state := ledger.state(run)) is not None:
                    known.add(run.id)
                    advance(1, f"{state.configuration}, seed {state.seed}: {state.status}")
            if not alive:
                break
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    if any(worker.exitcode not in (0, -15) for worker in workers) and len(known) < len(runs):
        raise InputError(
            f"a process of the sweep ended early (exit codes {Counter(w.exitcode for w in workers)})",
            "The same command goes on with the runs that are left; --jobs 1 shows what is wrong.",
        )


def _worker(source: Source, options: Options) -> None:
    """One process of several: every run that nobody else has."""
    base = load_sweep(source, options.grid, options.seeds)
    assert base.sweep is not None
    report = base.sweep.report
    runs = plan(source, base, configurations(base.sweep))
    work(runs, Ledger(base.folder), lambda recipe: execute(recipe, report), fail_fast=options.fail_fast)


def _one_gpu(number: int) -> dict[str, str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [part for part in given.split(",") if part]
    else:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}


def _headline(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The headline gap metrics of every store of a run on the split of its gap report, one caption per image."""
    from cs_aligner_cli.data.prepared import PreparedData
    from cs_aligner_cli.gap.paired_rows import evenly_spaced
    from cs_aligner_cli.gap.quick import headline_gap
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.stores.embeddings import Store

    layout = Layout(recipe)
    split = PreparedData(layout.prepared.path).split(recipe.gap_split, "gap_report.split")
    images, captions = split.pairs
    chosen = evenly_spaced(len(images), recipe.gap_report.max_pairs)
    found = {}
    for name, artifact in layout.stores(recipe.gap_split).items():
        store = Store(artifact.path)
        if store.shares_space and name in layout.aligned_names:
            rows = store.array("image").take(images[chosen]), store.array("text").take(captions[chosen])
            found[name] = headline_gap(*rows)
    return found


def _result(
    status: Literal["done", "fresh", "planned"],
    base: Recipe,
    runs: Sequence[PlannedRun],
    before: Sequence[RunState | None],
    after: Sequence[RunState | None],
    seconds: float,
) -> SweepResult:
    done_before = sum(state is not None and state.status == "done" for state in before)
    known = [state.seconds for state in (*before, *after) if state is not None and state.status == "done"]
    left = len(runs) - done_before
    ended = after or before
    return SweepResult(
        status=status,
        folder=str(base.folder),
        configurations=len({run.configuration_id for run in runs}),
        runs=len(runs),
        done_before=done_before,
        done_now=max(0, sum(state is not None and state.status == "done" for state in after) - done_before),
        seconds=round(seconds, 2),
        estimated_seconds=round(left * sum(known) / len(known), 1) if known and status == "planned" else None,
        failed=[state for state in ended if state is not None and state.status == "failed"],
        planned=[
            {
                "configuration": run.configuration.name,
                "seed": run.seed,
                "id": run.id,
                "state": state.status if state else "to run",
            }
            for run, state in zip(runs, before, strict=True)
        ]
        if status == "planned"
        else [],
    )


def _failures(failed: Sequence[RunState], ledger: Ledger, runs: Sequence[PlannedRun]) -> str:
    logs = {run.id: ledger.log(run) for run in runs}
    lines = [f"{len(failed)} of {len(runs)} runs failed:"]
    lines += [f"  {s.configuration}, seed {s.seed}: {s.error.splitlines()[0]} ({logs[s.id]})" for s in failed]
    return "\n".join([*lines, "--retry-failed tries them again."])


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}", "Name another run_dir.") from None
    return folder
