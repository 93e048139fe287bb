"""Trackers of training runs behind one small interface: TensorBoard, Weights & Biases, MLflow.

The run's metrics.jsonl is the record; a tracker is fed from it whenever a checkpoint is saved, so it never holds a
point that a resumed run would make again. How far each has been fed stands in trackers.json beside it, and is written
before the points are handed over: a kill in between may cost a tracker some points, and never repeats one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from uuid import uuid4

from cs_aligner_cli.files.artifact import read_json, write_json

STATE = "trackers.json"
# MLflow's limits on one call.
_MLFLOW_BATCH, _MLFLOW_VALUE = 1000, 500

Scalars = Mapping[str, float]


class TrackedRun(NamedTuple):
    """What a tracker is told of a run: where its files may lie, its names, its settings, whether it goes on."""

    folder: Path
    name: str
    variant: str
    config: Mapping[str, Any]
    resumed: bool


class Tracker(Protocol):
    """One open run of a tracking service."""

    id: str  # by which the service finds the run again

    def log(self, points: Iterable[tuple[int, Scalars]]) -> None:
        """Hand over (step, values), steps in order."""
        ...

    def close(self) -> None:
        """Say that the run is over for now."""
        ...


class _TensorBoard:
    """Event files in RUN_DIR/tensorboard/VARIANT; ``tensorboard --logdir RUN_DIR/tensorboard`` shows them."""

    def __init__(self, run: TrackedRun, run_id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard" / run.variant
        if not run.resumed:
            shutil.rmtree(folder, ignore_errors=True)
        self.id = str(folder)
        self._writer = SummaryWriter(str(folder))

    def log(self, points: Iterable[tuple[int, Scalars]]) -> None:
        for step, values in points:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Offline in RUN_DIR/wandb (``wandb sync`` uploads it), unless $WANDB_MODE says otherwise."""

    def __init__(self, run: TrackedRun, run_id: str | None) -> None:
        import wandb

        self.id = run_id or uuid4().hex[:8]
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "csalign"),
            name=f"{run.name}-{run.variant}",
            id=self.id,
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
            mode=cast(Any, os.environ.get("WANDB_MODE", "offline")),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, points: Iterable[tuple[int, Scalars]]) -> None:
        for step, values in points:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of the experiment NAME in RUN_DIR/mlruns, unless $MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, run: TrackedRun, run_id: str | None) -> None:
        local = "MLFLOW_TRACKING_URI" not in os.environ
        if local:  # a server is MLflow's default by now; plain files are asked for by name
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        folder = run.folder / "mlruns"
        self._client = MlflowClient(folder.resolve().as_uri() if local else None)
        found = self._client.get_experiment_by_name(run.name)
        experiment = found.experiment_id if found else self._client.create_experiment(run.name)
        if run_id is None:
            self.id = self._client.create_run(experiment, run_name=run.variant).info.run_id
            for key, value in _flat(run.config).items():
                self._client.log_param(self.id, key, str(value)[:_MLFLOW_VALUE])
        else:
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")

    def log(self, points: Iterable[tuple[int, Scalars]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self.id, metrics[start : start + _MLFLOW_BATCH])

    def close(self) -> None:
        self._client.set_terminated(self.id)


TRACKERS: dict[str, Callable[[TrackedRun, str | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}


class Trackers:
    """The trackers of one run; ``with Trackers(...) as trackers``, and ``trackers.catch_up(bytes)`` at a checkpoint.

    ``work`` is the folder of the run's metrics.jsonl. A tracker that the run has had before goes on where it was, one
    that was added since gets the whole log. Without names nothing is opened or written.
    """

    def __init__(self, names: Sequence[str], work: Path, log: str, run: TrackedRun) -> None:
        self._work, self._log = work, work / log
        path = work / STATE
        # A run that begins again has no use for what an earlier one told the trackers.
        self._state: dict[str, Any] = read_json(path) if names and run.resumed and path.is_file() else {}
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            known = self._state.get(name)
            tracker = TRACKERS[name](run._replace(resumed=known is not None), known["id"] if known else None)
            self._open[name] = tracker
            self._state.setdefault(name, {"id": tracker.id, "bytes": 0})

    def catch_up(self, size: int) -> None:
        """Hand every tracker what it has not had of the first ``size`` bytes of the log."""
        for name, tracker in self._open.items():
            start = self._state[name]["bytes"]
            if start >= size:
                continue
            with self._log.open("rb") as file:
                file.seek(start)
                lines = file.read(size - start).decode("utf-8").splitlines()
            self._state[name]["bytes"] = size
            write_json(self._work / STATE, self._state)
            tracker.log(_points(lines))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._open.values():
            tracker.close()


def _points(lines: Iterable[str]) -> Iterable[tuple[int, dict[str, float]]]:
    for line in lines:
        row = json.loads(line)
        step = row.pop("step")
        row = {key: dict(enumerate(value)) if isinstance(value, list) else value for key, value in row.items()}
        yield step, {name: float(value) for name, value in _flat(row).items() if value is not None}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their path, as in terms/infonce; "@", which MLflow does not take in a name, is spelled out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + str(key).replace("@", "_at_")
        flat |= _flat(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return flat
