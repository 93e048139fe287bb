"""Trackers of training: the real libraries, a run that is killed and resumed, packages that are not there."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.training.trackers import STATE, TrackedRun, Trackers

LOG = "metrics.jsonl"
Points = dict[str, list[tuple[int, float]]]


def tensorboard_points(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "aligned"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_points(folder: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").resolve().as_uri())
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
    }


def wandb_points(folder: Path) -> Points:
    """What the offline files hold; W&B's own process may still be writing them for a moment after a run is finished."""
    points: Points = {}
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.stem for file in files}) == 1, "a resumed run is the same run"
    for file in files:
        deadline = time.monotonic() + 60
        while not (records := wandb_records(file)) or records[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < deadline, "the run was never closed"
            time.sleep(0.1)
        for record in records:
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    points.setdefault(name, []).append((record.history.step.num, float(item.value_json)))
    return points


def wandb_records(file: Path) -> list[Any]:
    """The whole records of a file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, place, part, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of the block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(content):
            break
        if kind in (1, 4):  # whole, or the last of several parts
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


READERS = {"tensorboard": tensorboard_points, "mlflow": mlflow_points, "wandb": wandb_points}
INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in READERS
]


def logged(path: Path) -> Points:
    """The points of metrics.jsonl, under the trackers' names."""
    points: Points = {}

    def add(step: int, name: str, value: Any) -> None:
        value = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            for key, inner in value.items():
                add(step, f"{name}/{key}" if name else key, inner)
        else:
            points.setdefault(name.replace("@", "_at_"), []).append((step, value))

    for line in path.read_text().splitlines():
        row = json.loads(line)
        add(row.pop("step"), "", row)
    return points


def same(found: Points, expected: Points) -> None:
    # A line of a step and a line of its validation both say the epoch, and W&B keeps one of two equal ones.
    assert set(found) == set(expected)
    for name, values in expected.items():
        steps, numbers = zip(*(dict.fromkeys(values) if name == "epoch" else values), strict=True)
        seen = list(dict.fromkeys(found[name]) if name == "epoch" else found[name])
        assert tuple(step for step, _ in seen) == steps, name
        assert [value for _, value in seen] == pytest.approx(numbers, rel=1e-6), name


def write_log(path: Path, steps: int) -> int:
    rows = [
        {"step": i, "epoch": 1, "loss": 1 / i, "terms": {"cs": i / 7}, "val_R@1": {"i2t": 0.5}}
        for i in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.stat().st_size


@pytest.mark.parametrize("name", INSTALLED)
def test_a_tracker_gets_every_point_once_though_the_run_is_cut(name: str, tmp_path: Path) -> None:
    work, run = tmp_path / "work", tmp_path / "run"
    work.mkdir()
    tracked = TrackedRun(run, "a recipe", "aligned", {"train": {"lr": 1e-3}, "many": list(range(900))}, resumed=False)
    size = write_log(work / LOG, 3)
    with Trackers([name], work, LOG, tracked) as trackers:
        trackers.catch_up(0)
        trackers.catch_up(size)
        trackers.catch_up(size)
    time.sleep(1.1 if name == "wandb" else 0)  # it names an offline folder by the second
    size = write_log(work / LOG, 5)
    with Trackers([name], work, LOG, tracked._replace(resumed=True)) as trackers:
        trackers.catch_up(size)
    same(READERS[name](run), logged(work / LOG))
    assert json.loads((work / STATE).read_text())[name]["bytes"] == size


@pytest.mark.parametrize("name", INSTALLED)
def test_a_training_run_is_tracked(
    name: str, csalign: Callable[..., Any], features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"--set=train.trackers=[{name}]", "--set=train.epochs=4", "--set=train.log_steps=2"]
    for stage in ("prepare", "embed", "train"):
        called = csalign(stage, features_recipe, "-q", *settings)
        assert called.exit_code == 0, called.stderr
    log = tmp_path / "run" / "train" / "aligned" / LOG
    same(READERS[name](tmp_path / "run"), logged(log))
    # Another tracker makes no other run, so nothing is trained again.
    assert csalign("train", features_recipe, "-q", "--json", *settings[1:]).json["status"] == "fresh"
    if name == "tensorboard":  # begun again, the old points go
        assert csalign("train", features_recipe, "-q", "--force", *settings, "--set=train.epochs=2").exit_code == 0
        same(READERS[name](tmp_path / "run"), logged(log))


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_killed_run_is_tracked_to_the_end(features_recipe: Path, csalign: Callable[..., Any], tmp_path: Path) -> None:
    from test_train import _killed_and_resumed

    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q").exit_code == 0
    settings = ["train.trackers=[tensorboard]", "train.epochs=20", "train.log_steps=1"]
    assert "going on from step" in _killed_and_resumed(features_recipe, tmp_path / "run", *settings)
    found = tensorboard_points(tmp_path / "run")["loss"]
    expected = logged(tmp_path / "run" / "train" / "aligned" / LOG)["loss"]
    steps = [step for step, _ in found]
    assert len(set(steps)) == len(steps)
    # Points of one checkpoint may be lost where the kill fell between noting them and handing them over.
    assert len(expected) - 3 <= len(found) <= len(expected)
    assert set(steps) <= {step for step, _ in expected}


@pytest.mark.parametrize("name", READERS)
def test_an_absent_package_is_reported_before_anything_is_trained(
    name: str, refused: Callable[..., str], features_recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = refused("train", features_recipe, f"--set=train.trackers=[{name}]")
    assert f"train.trackers needs {name}, which is not installed" in message
    assert f"pip install 'cs-aligner-cli[{name}]'" in message
    assert not (tmp_path / "run" / "train").exists()


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    size = write_log(tmp_path / LOG, 2)
    with Trackers([], tmp_path, LOG, TrackedRun(tmp_path, "n", "aligned", {}, resumed=False)) as trackers:
        trackers.catch_up(size)
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def test_the_schema_names_the_trackers_there_are() -> None:
    from typing import get_args

    from cs_aligner_cli.recipe.train import Train
    from cs_aligner_cli.training.trackers import TRACKERS

    (inner,) = get_args(Train.model_fields["trackers"].annotation)
    assert set(get_args(inner)) == set(TRACKERS) == set(READERS)
