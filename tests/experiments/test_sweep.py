"""Sweeps from the command line on tiny data: each run once, whatever fails or is killed; then compared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Csalign
from trained_runs import killed_after

from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.common.cores import usable_cores
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.cluster import Requeued, launch
from cs_aligner_cli.experiments.ledger import Ledger
from cs_aligner_cli.experiments.plan import PlannedRun, Source, configurations, load_sweep, plan
from cs_aligner_cli.experiments.processes import side_by_side
from cs_aligner_cli.experiments.worker import work
from cs_aligner_cli.recipe.sweep import Slurm
from cs_aligner_cli.stages.sweep import Options, _worker


def planned(file: Path) -> list[PlannedRun]:
    base = load_sweep(Source(str(file)))
    assert base.sweep is not None
    return plan(Source(str(file)), base, configurations(base.sweep))


def test_a_sweep_runs_everything_once_and_compares_it(csalign: Csalign, finished_sweep: Path) -> None:
    folder, recipe = finished_sweep, finished_sweep.with_name("sweep.yaml")
    plan_, first = (json.loads((folder.with_name(f"{name}.json")).read_text()) for name in ("planned", "printed"))
    assert (plan_["configurations"], plan_["runs"], plan_["done_before"]) == (2, 4, 0)
    assert (first["status"], first["done_now"], first["failed"]) == ("done", 4, [])
    for result in (plan_, first):
        jsonschema.validate(result, result_schema("sweep"))
    # Prepared and embedded once, for all runs: one store for each of the two splits that they read.
    stores = list((folder / "frozen").rglob("stage.json"))
    assert len(stores) == 2 and len([*(folder / "data").glob("*/stage.json")]) == 1
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")}
    assert len({path.relative_to(folder).parts[1] for path in stores}) == 1
    again = csalign("sweep", recipe, "--json").json
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


def test_a_sweep_that_is_done_is_compared_by_what_its_recipe_says_now(
    csalign: Csalign, finished_sweep: Path, sweep_recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_sweep, tmp_path / "sweep")
    features = str(finished_sweep.with_name("features"))
    changed = ["--set", "sweep.objective.metric=gap_report.aligned.centroid_gap", "--set", "sweep.control=CS"]
    changed += ["--set", f"data.root={features}", "--json"]
    csalign("sweep", sweep_recipe, *changed, "--dry-run")
    assert "control: InfoNCE" in (tmp_path / "sweep" / "sweep.yaml").read_text()
    found = csalign("sweep", sweep_recipe, *changed).json
    assert found["status"] == "fresh"
    assert found["comparison"]["control"] == "CS"
    column = found["comparison"]["columns"][0]
    assert (column["key"], column["better"]) == ("gap_report.aligned.centroid_gap", "lower")


def test_what_a_sweep_no_longer_has_is_not_compared_nor_counted(
    csalign: Csalign, finished_sweep: Path, sweep_recipe: Path, tmp_path: Path
) -> None:
    """The grid is changed, then the recipe below it: under the same name stands another experiment."""
    shutil.copytree(finished_sweep, tmp_path / "sweep")
    features = ["--set", f"data.root={finished_sweep.with_name('features')}", "--json"]
    one = {"InfoNCE": {"train.objective.divergence.weight": 0}}
    settings = ["--set", f"sweep.settings={json.dumps(one)}", *features]
    fewer = csalign("sweep", sweep_recipe, *settings).json
    assert (fewer["status"], [row["name"] for row in fewer["comparison"]["rows"]]) == ("fresh", ["InfoNCE"])
    said = csalign("compare", tmp_path / "sweep")
    assert "1 finished configuration is no longer in the sweep, and left out" in said.stderr and "CS" in said.stderr
    every = csalign("compare", tmp_path / "sweep", "--former", "--json").json
    assert [row["name"] for row in every["rows"]] == ["InfoNCE", "CS"]
    assert "compared all the same: CS." in every["conclusions"][-1]
    again = csalign("sweep", sweep_recipe, *settings, "--set", "train.epochs=1", "--seeds", "1").json
    assert [row["name"] for row in again["comparison"]["rows"]] == ["InfoNCE"]
    assert "2 finished configurations are no longer in the sweep" in again["comparison"]["conclusions"][-1]


def test_more_seeds_run_only_what_is_missing(csalign: Csalign, sweep_recipe: Path) -> None:
    one = ("--set", "sweep.settings={InfoNCE: {}}", "--json")
    csalign("sweep", sweep_recipe, "--seeds", "1", *one)
    more = csalign("sweep", sweep_recipe, "--seeds", "[0,3]", *one).json
    assert (more["runs"], more["done_before"], more["done_now"]) == (2, 1, 1)


def test_moved_data_are_known_again_and_other_data_are_refused(
    csalign: Csalign, sweep_recipe: Path, features_root: Path, tmp_path: Path
) -> None:
    one = ("--set", "sweep={settings: {InfoNCE: {}}, seeds: 1}", "--json")
    csalign("sweep", sweep_recipe, *one)
    moved = features_root.rename(tmp_path / "moved")
    again = csalign("sweep", sweep_recipe, "--set", f"data.root={moved}", *one).json
    assert (again["status"], again["done_before"]) == ("fresh", 1)
    features_root.mkdir()  # now the former place holds something else
    refused = csalign("sweep", sweep_recipe, "--set", f"data.root={moved}", *one)
    assert refused.exit_code == 2
    assert "data.root was " in refused.stderr and "Name another run_dir" in refused.stderr


def test_a_run_that_fails_is_told_and_stops_no_other(csalign: Csalign, sweep_recipe: Path, tmp_path: Path) -> None:
    grid = ("--set", "sweep={settings: {InfoNCE: {}}}", "--grid", "train.split=no_such_split")
    called = csalign("sweep", sweep_recipe, *grid, "--seeds", "1", "--json")
    assert called.exit_code == 3
    assert "1 of 2 runs failed" in called.stderr
    failed = called.json["failed"][0]
    assert failed["configuration"] == "split=no_such_split"
    log = tmp_path / "sweep" / "logs" / f"{failed['id']}.log"
    assert "no_such_split" in log.read_text(encoding="utf-8")
    again = csalign("sweep", sweep_recipe, *grid, "--seeds", "1", "--json", "--retry-failed").json
    assert (again["done_before"], len(again["failed"])) == (1, 1)


def test_what_another_process_works_on_is_left_to_it_and_taken_up_when_it_dies(
    sweep_recipe: Path, tmp_path: Path
) -> None:
    runs = planned(sweep_recipe)
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


def test_fail_fast_begins_no_further_run(sweep_recipe: Path, tmp_path: Path) -> None:
    runs = planned(sweep_recipe)

    def execute(recipe: Any) -> None:
        raise ValueError("no")

    states = work(runs, Ledger(tmp_path / "sweep"), execute, fail_fast=True)
    assert [state.error for state in states] == ["no"]


def test_fail_fast_heeds_a_run_that_failed_in_another_process(sweep_recipe: Path, tmp_path: Path) -> None:
    runs, ledger = planned(sweep_recipe), Ledger(tmp_path / "sweep")
    begun: list[str] = []

    def execute(recipe: Any) -> None:
        begun.append(recipe.folder.name)
        ledger.end(runs[-1], 1.0, "no")

    states = work(runs, ledger, execute, fail_fast=True)
    assert begun == [runs[0].id]
    assert [state.status for state in states] == ["done", "failed"]


@pytest.mark.slow
def test_fail_fast_holds_for_all_jobs(csalign: Csalign, sweep_recipe: Path) -> None:
    lr = "train.lr: 0.00"
    others = ", ".join(f"{i}: {{{lr}{i}}}" for i in range(1, 5))
    several = f"sweep={{settings: {{bad: {{train.split: gone}}, {others}}}, seeds: 1}}"
    called = csalign("sweep", sweep_recipe, "--set", several, "--jobs", "2", "--fail-fast", "--json")
    assert called.exit_code == 3
    # Some may be under way when the first fails; whichever process has them begins no other.
    assert (len(called.json["failed"]), called.json["done_now"] < 3) == (1, True)


def test_the_first_run_may_fail_where_others_can_do_without_what_it_lacks(csalign: Csalign, sweep_recipe: Path) -> None:
    several = "sweep={grid: {train.split: [no_such_split, train]}, seeds: 1}"
    called = csalign("sweep", sweep_recipe, "--set", several, "--json")
    assert called.exit_code == 3
    assert called.json["done_now"] == 1
    assert [state["configuration"] for state in called.json["failed"]] == ["split=no_such_split"]


def test_processes_side_by_side_divide_the_cores_and_a_dead_one_is_noticed(tmp_path: Path) -> None:
    one = "import os, uuid; open(os.path.join(FOLDER, uuid.uuid4().hex), 'w').write(os.environ['OMP_NUM_THREADS'])"
    side_by_side(2, exec, (one.replace("FOLDER", repr(str(tmp_path))),))
    threads = [path.read_text() for path in tmp_path.iterdir()]
    assert threads == [str(max(1, usable_cores() // 2))] * 2
    with pytest.raises(InputError, match=r"a process of the sweep ended early \(exit codes \{7: 1\}\)"):
        side_by_side(1, exec, ("import os; os._exit(7)",))
    side_by_side(1, exec, ("import os; os._exit(7)",), poll=lambda: True)  # others have done what there was to do


def test_an_interrupted_process_of_a_sweep_ends_without_a_traceback(
    sweep_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(1, monkeypatch)
    ids = [run.id for run in planned(sweep_recipe)]
    with pytest.raises(SystemExit) as ended:
        _worker(Source(str(sweep_recipe)), Options(), ids, 0)
    assert ended.value.code == 130 and ended.value.__suppress_context__


@pytest.mark.slow
def test_two_jobs_make_what_one_process_makes(csalign: Csalign, sweep_recipe: Path, tmp_path: Path) -> None:
    csalign("sweep", sweep_recipe, "--set", f"run_dir={tmp_path / 'alone'}")
    done = csalign("sweep", sweep_recipe, "--jobs", "2", "--json").json
    assert (done["status"], done["done_now"], done["failed"]) == ("done", 4, [])
    weights = {path.relative_to(tmp_path / "alone"): path for path in (tmp_path / "alone").rglob("last.safetensors")}
    assert len(weights) == 4
    for place, path in weights.items():
        assert path.read_bytes() == (tmp_path / "sweep" / place).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "no/such/run"), "no/such/run: no such folder"),
        (("compare", "SWEEP", "--out", "x.pdf"), "cannot write .pdf"),
        (("compare", "SWEEP", "--out", "x.CSV"), "no run of this sweep is finished yet"),
        (("compare", "SWEEP"), "no run of this sweep is finished yet"),
        (("sweep", "RECIPE", "--grid", "train.lr"), "expected key.path=value,value"),
        (("sweep", "RECIPE", "--grid", "train.split=a,{"), "--grid train.split=a,{: [a,{] is no list as YAML has them"),
        (("sweep", "RECIPE", "--grid", "train.lrr=1,2"), "unknown key; did you mean train.lr?"),
    ],
)
def test_bad_input_is_refused(
    csalign: Csalign, sweep_recipe: Path, tmp_path: Path, arguments: Any, message: str
) -> None:
    folder = tmp_path / "sweep"
    (folder / "states").mkdir(parents=True)
    (folder / "sweep.yaml").write_text(sweep_recipe.read_text(encoding="utf-8"), encoding="utf-8")
    places = {"SWEEP": str(folder), "RECIPE": sweep_recipe}
    called = csalign(*(places.get(argument, argument) for argument in arguments))
    assert called.exit_code == 2
    assert message in called.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its log open
def test_submitted_jobs_do_the_work_and_go_back_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = partial(exec, "open('made', 'a').write('x')")
    jobs = launch(call, 2, Slurm(minutes=1), tmp_path, "tiny", "debug")  # type: ignore[arg-type]
    assert [job.result() for job in jobs] == [None, None]
    assert (tmp_path / "made").read_text() == "xx"
    again = Requeued(call).checkpoint()
    again.result()
    assert (tmp_path / "made").read_text() == "xxx"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit lets go of its jobs
def test_a_sweep_is_launched_and_taken_up(csalign: Csalign, sweep_recipe: Path, tmp_path: Path) -> None:
    submitted = csalign("sweep", sweep_recipe, "--launch", "local", "--jobs", "2", "--json").json
    assert (submitted["status"], len(submitted["jobs"])) == ("submitted", 2)
    waited = time.monotonic()
    while len([*(tmp_path / "sweep" / "states").glob("*.json")]) < 4:
        assert time.monotonic() - waited < 300, [
            path.read_text() for path in (tmp_path / "sweep" / "jobs").glob("*.err")
        ]
        time.sleep(0.5)
    assert csalign("sweep", sweep_recipe, "--json").json["status"] == "fresh"


def test_what_a_launch_needs_is_named(
    refused: Callable[..., str], sweep_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused("sweep", sweep_recipe, "--launch", "slurm").splitlines() == [
        "--launch slurm: there is no sbatch on this machine",
        "Call it where jobs are submitted; --jobs N runs N processes here.",
    ]
    monkeypatch.setitem(sys.modules, "submitit", None)
    message = refused("sweep", sweep_recipe, "--launch", "slurm")
    assert "--launch slurm needs submitit" in message and "cs-aligner-cli[slurm]" in message
    assert not (tmp_path / "sweep").exists()
