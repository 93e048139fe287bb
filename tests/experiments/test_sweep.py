"""Sweeps from the command line on tiny data: each run once, whatever fails or is killed; then compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Csalign, features_recipe_content

from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.experiments.ledger import Ledger
from cs_aligner_cli.experiments.plan import PlannedRun, Source, configurations, load_sweep, plan
from cs_aligner_cli.experiments.worker import work

WEIGHT = "train.objective.divergence.weight"
SWEEP = {"settings": {"InfoNCE": {WEIGHT: 0}, "CS": {WEIGHT: 1.0}}, "seeds": 2, "control": "InfoNCE"}


@pytest.fixture
def recipe(features_root: Path, tmp_path: Path, write_yaml: Any) -> Path:
    content = features_recipe_content(features_root, tmp_path / "sweep")
    content["eval_retrieval"] = {**content.get("eval_retrieval", {}), "bootstrap": 0}
    return write_yaml("sweep.yaml", **content, sweep=SWEEP)


def planned(file: Path) -> list[PlannedRun]:
    base = load_sweep(Source(str(file)))
    assert base.sweep is not None
    return plan(Source(str(file)), base, configurations(base.sweep))


def test_a_sweep_runs_everything_once_and_compares_it(csalign: Csalign, recipe: Path, tmp_path: Path) -> None:
    plan_ = csalign("sweep", str(recipe), "--dry-run", "--json").json
    assert (plan_["configurations"], plan_["runs"], plan_["done_before"]) == (2, 4, 0)
    first = csalign("sweep", str(recipe), "--json").json
    assert (first["status"], first["done_now"], first["failed"]) == ("done", 4, [])
    for result in (plan_, first):
        jsonschema.validate(result, result_schema("sweep"))
    folder = tmp_path / "sweep"
    # Prepared and embedded once, for all runs.
    stores = list((folder / "frozen").rglob("stage.json"))
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")}
    assert len({path.relative_to(folder).parts[1] for path in stores}) == 1
    again = csalign("sweep", str(recipe), "--json").json
    assert (again["status"], again["done_before"], again["done_now"]) == ("fresh", 4, 0)
    assert made == {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")}

    found = first["comparison"]
    assert [row["name"] for row in found["rows"]] == ["InfoNCE", "CS"]
    control, cs = found["rows"]
    assert control["is_control"]
    assert control["seeds"] == [0, 1]
    objective = cs["cells"][found["objective"]]
    assert objective["mean"] == pytest.approx(sum(objective["values"]) / 2, abs=1e-6)
    assert objective["covers"] == "seeds and images"
    assert objective["difference"]["mean"] == pytest.approx(
        objective["mean"] - control["cells"][found["objective"]]["mean"]
    )
    assert "gap_report.aligned.centroid_gap" in cs["cells"]

    out = [tmp_path / f"table{suffix}" for suffix in (".md", ".tex", ".csv", ".json", ".html")]
    csalign("compare", str(folder), *(part for path in out for part in ("--out", str(path))))
    texts = [path.read_text(encoding="utf-8") for path in out]
    assert all("InfoNCE" in text for text in texts)
    assert json.loads(texts[3]) == found
    assert texts[1].count("\\\\") == 3 and texts[1].count("{") == texts[1].count("}")
    assert "http" not in texts[4].replace("http-equiv", "")


def test_more_seeds_run_only_what_is_missing(csalign: Csalign, recipe: Path) -> None:
    csalign("sweep", str(recipe), "--seeds", "1", "--json")
    more = csalign("sweep", str(recipe), "--seeds", "[0,3]", "--json").json
    assert (more["runs"], more["done_before"], more["done_now"]) == (4, 2, 2)


def test_a_run_that_fails_is_told_and_stops_no_other(csalign: Csalign, recipe: Path, tmp_path: Path) -> None:
    grid = ("--set", "sweep.settings={InfoNCE: {}}", "--grid", "train.split=dev,no_such_split")
    called = csalign("sweep", str(recipe), *grid, "--seeds", "1", "--json")
    assert called.exit_code == 3
    assert "1 of 3 runs failed" in called.stderr
    failed = called.json["failed"][0]
    assert failed["configuration"] == "split=no_such_split"
    log = tmp_path / "sweep" / "logs" / f"{failed['id']}.log"
    assert "no_such_split" in log.read_text(encoding="utf-8")
    again = csalign("sweep", str(recipe), *grid, "--seeds", "1", "--json", "--retry-failed").json
    assert (again["done_before"], len(again["failed"])) == (2, 1)


def test_what_another_process_works_on_is_left_to_it_and_taken_up_when_it_dies(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe)
    ledger = Ledger(tmp_path / "sweep")
    claims = tmp_path / "sweep" / "claims"
    claims.mkdir(parents=True)
    lock = claims / f"{runs[0].id}.lock"
    holding = f"import filelock, time; held = filelock.FileLock({str(lock)!r}); held.acquire(); "
    holding += "print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    order: list[str] = []

    def execute(done: Any) -> None:
        order.append(done.folder.name)
        if len(order) == len(runs) - 1:
            other.kill()

    started = time.monotonic()
    states = work(runs, ledger, execute)
    assert [state.status for state in states] == ["done"] * len(runs)
    assert order == [run.id for run in (*runs[1:], runs[0])]
    assert time.monotonic() - started < 30
    other.wait()
    other.stdout.close()


def test_fail_fast_begins_no_further_run(recipe: Path, tmp_path: Path) -> None:
    runs = planned(recipe)

    def execute(recipe: Any) -> None:
        raise ValueError("no")

    states = work(runs, Ledger(tmp_path / "sweep"), execute, fail_fast=True)
    assert [state.error for state in states] == ["no"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "no/such/run"), "no/such/run: no such folder"),
        (("compare", "SWEEP", "--out", "x.pdf"), "cannot write .pdf"),
        (("compare", "SWEEP"), "no run of this sweep is finished yet"),
        (("sweep", "RECIPE", "--grid", "train.lr"), "expected key.path=value,value"),
        (("sweep", "RECIPE", "--grid", "train.lrr=1,2"), "unknown key; did you mean train.lr?"),
    ],
)
def test_bad_input_is_refused(csalign: Csalign, recipe: Path, tmp_path: Path, arguments: Any, message: str) -> None:
    folder = tmp_path / "sweep"
    (folder / "states").mkdir(parents=True)
    (folder / "sweep.yaml").write_text(recipe.read_text(encoding="utf-8"), encoding="utf-8")
    places = {"SWEEP": str(folder), "RECIPE": str(recipe)}
    called = csalign(*(places.get(argument, argument) for argument in arguments))
    assert called.exit_code == 2
    assert message in called.stderr
