"""The state of a sweep, which is its folder alone: what is done, what failed, and what some process is working on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.plan import PlannedRun
from cs_aligner_cli.files.artifact import read_json, write_json
from cs_aligner_cli.files.checksums import sealed, unsealed
from cs_aligner_cli.files.places import moved

# The folder of the states, by which a sweep's folder is known.
STATES = "states"
# The sweep's recipe, as it was resolved.
SWEEP = "sweep.yaml"
# The ids of its configurations: what is finished beside them is of a sweep that was planned otherwise.
PLAN = "plan.json"


class RunState(BaseModel):
    """What became of one run of a sweep. ``trial``: the number of the search's trial that it belongs to; ``places``: by
    key of its recipe, where the files from outside lay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    configuration_id: str
    configuration: str
    settings: dict[str, Any]
    seed: int
    status: Literal["done", "failed"]
    seconds: float
    finished: str
    error: str = ""
    trial: int | None = None
    places: dict[str, str] = {}


class Ledger:
    """The folder of a sweep.

    ``runs/ID``: a run's own folder; ``states/ID.json``: that it is done, or failed and why; ``claims/ID.lock``: held
    by the process that works on it, on this machine or another, and free again when that process dies;
    ``logs/ID.log``: the talk of a run that failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self, run: PlannedRun) -> RunState | None:
        """What became of a run, None if it has not ended; raise InputError if the file that says so is damaged."""
        path = self._state_path(run.id)
        return self._read(path) if path.is_file() else None

    def states(self) -> list[RunState]:
        """What became of every run that has ended, whatever sweep it was planned by; InputError as ``state``."""
        return [self._read(path) for path in sorted((self.folder / STATES).glob("*.json"))]

    def planned(self) -> set[str] | None:
        """The ids of the configurations that the sweep has now; None where it was not run since they are kept."""
        path, hint = self.folder / PLAN, "Start the sweep again: what is finished is not done twice."
        return set(unsealed(read_json(path, hint), path, hint)["configurations"]) if path.is_file() else None

    def keep_plan(self, runs: Sequence[PlannedRun]) -> None:
        """Keep the ids of the configurations of these runs, for ``planned``."""
        write_json(self.folder / PLAN, sealed({"configurations": sorted({run.configuration_id for run in runs})}))

    def refuse_other_files(self, runs: Sequence[PlannedRun], trial: PlannedRun | None = None) -> None:
        """Raise InputError if runs that have ended were made from other files than ``runs`` name now.

        ``trial``: any run of the search, against which its trials are held.
        """
        own = {run.id: run.places for run in runs}
        pairs = []
        for state in self.states():
            before, now = state.places, own.get(state.id)
            if now is None and trial is not None and state.trial is not None:  # its own keys may be varied
                now = {key: path for key, path in trial.places.items() if key in before}
                before = {key: before[key] for key in now}
            if now is not None and (before, now) not in pairs:
                pairs.append((before, now))
        for before, now in pairs:
            if change := moved(before, now):
                raise InputError(
                    f"{self.folder}: {change}, where other files lie: their runs would stand in one table",
                    "Name another run_dir for the sweep over the new files.",
                )

    def _read(self, path: Path) -> RunState:
        hint = "Remove it: the run is then looked at again, and what it finished is not done twice."
        try:
            return RunState.model_validate(unsealed(read_json(path, hint), path, hint))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is no state of a run of this csalign", hint) from None

    def end(self, run: PlannedRun, seconds: float, error: str = "") -> RunState:
        """Note that a run is done or, with an ``error``, that it failed."""
        state = RunState(
            id=run.id,
            configuration_id=run.configuration_id,
            configuration=run.configuration.name,
            settings=run.configuration.settings,
            seed=run.seed,
            status="failed" if error else "done",
            seconds=round(seconds, 2),
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            error=error,
            trial=run.configuration.trial,
            places=run.places,
        )
        path = self._state_path(run.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, sealed(state.model_dump(mode="json")))
        if not error:
            self.log(run.id).unlink(missing_ok=True)
        return state

    def forget(self, run_id: str) -> None:
        """Let a run that failed be tried again."""
        self._state_path(run_id).unlink(missing_ok=True)

    def log(self, run_id: str) -> Path:
        """Where the talk of a run goes; kept where it failed."""
        return self.folder / "logs" / f"{run_id}.log"

    @contextmanager
    def claimed(self, run: PlannedRun) -> Iterator[bool]:
        """Whether this process may work on a run now: nobody else does."""
        claims = self.folder / "claims"
        try:
            claims.mkdir(parents=True, exist_ok=True)
            lock = FileLock(claims / f"{run.id}.lock")
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise InputError(f"{claims}: cannot be written: {error.strerror}", "Name another run_dir.") from None
        try:
            yield True
        finally:
            lock.release()

    def _state_path(self, run_id: str) -> Path:
        return self.folder / STATES / f"{run_id}.json"
