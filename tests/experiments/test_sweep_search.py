"""The search of a sweep: what is tried is a function of what was measured, whatever is killed meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Csalign, features_recipe_content

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.plan import Source, load_sweep
from cs_aligner_cli.experiments.search import JOURNAL, Searcher
from cs_aligner_cli.experiments.worker import TrialPruned

FEATURES = {"image": {"kind": "features"}, "text": {"kind": "features"}}
WEIGHT, LR = "train.objective.divergence.weight", "train.lr"
KEYS = {WEIGHT: {"low": 0.01, "high": 10.0, "log": True}, LR: {"choices": [1e-3, 1e-4]}}


@pytest.fixture
def searcher(write_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., Searcher]:
    """``searcher("folder", trials=8)``: the search of a sweep in a folder, opened (again)."""

    def opened(folder: str = "sweep", **search: Any) -> Searcher:
        section = {"search": {"keys": KEYS, "startup_trials": 3, **search}, "seeds": 1}
        file = write_yaml("r.yaml", name="r", run_dir=str(tmp_path / folder), encoders=FEATURES, sweep=section)
        return Searcher(load_sweep(Source(str(file))))

    return opened


def height(settings: dict[str, Any]) -> float:
    """What the trials measure: best at weight 1 with the larger learning rate."""
    return -abs(settings[WEIGHT] - 1) + settings[LR]


def tried(searcher: Searcher) -> list[dict[str, Any]]:
    """Bring a search to its end, and return what was set, in order."""
    settings = []
    while not searcher.over:
        trial = searcher.take()
        if trial is not None:
            settings.append(trial.configuration.settings)
            searcher.tell(trial, height(settings[-1]))
            trial.claim.release()
    return settings


def test_a_search_that_is_killed_tries_what_an_uninterrupted_one_does(searcher: Callable[..., Searcher]) -> None:
    expected = tried(searcher("one", trials=8))
    assert len({json.dumps(one, sort_keys=True) for one in expected}) == 8
    found: list[dict[str, Any]] = []
    for _ in range(8):
        killed = searcher("other", trials=8).take()  # its claim dies with it, before anything is told
        assert killed is not None
        killed.claim.release()
        again = searcher("other", trials=8)
        trial = again.take()
        assert trial is not None
        assert trial.configuration == killed.configuration
        found.append(trial.configuration.settings)
        again.tell(trial, height(found[-1]))
        trial.claim.release()
    assert found == expected
    best = searcher("other", trials=8).outcome().best
    assert best is not None
    assert (best.settings, best.value) == (max(expected, key=height), pytest.approx(max(map(height, expected))))


def test_a_trial_that_another_process_has_is_left_to_it(searcher: Callable[..., Searcher]) -> None:
    one, other = searcher(trials=2), searcher(trials=2)
    first, second = one.take(), other.take()
    assert first is not None and second is not None
    assert first.configuration != second.configuration
    assert one.take() is None and not one.over
    other.tell(second, 1.0)
    second.claim.release()
    first.claim.release()
    left = other.take()
    assert left is not None
    assert left.configuration == first.configuration
    left.claim.release()


def test_nothing_is_tried_twice_and_a_small_space_ends(searcher: Callable[..., Searcher]) -> None:
    keys = {LR: {"choices": [1e-3, 1e-4]}, "train.epochs": {"low": 1, "high": 2, "whole": True}}
    search = searcher(trials=50, keys=keys)
    found = set()
    while (trial := search.take()) is not None:
        found.add(trial.configuration.name)
        search.tell(trial, 1.0)
        trial.claim.release()
    assert found == {"lr=0.001, epochs=1", "lr=0.001, epochs=2", "lr=0.0001, epochs=1", "lr=0.0001, epochs=2"}
    assert search.over
    assert (search.outcome().done, search.outcome().exhausted) == (4, True)


def test_more_trials_go_on_with_the_same_search(searcher: Callable[..., Searcher]) -> None:
    first = tried(searcher(trials=3))
    assert [*first, *tried(searcher(trials=6))] == tried(searcher("all", trials=6))


def test_a_trial_below_the_median_ends_early(searcher: Callable[..., Searcher]) -> None:
    search = searcher(trials=9, prune_after=2)
    for recall in (0.3, 0.4, 0.5):
        trial = search.take()
        assert trial is not None
        for epoch in (1, 2, 3):
            search.report(trial, epoch, recall)  # the first are never ended
        search.tell(trial, recall)
        trial.claim.release()
    trial = search.take()
    assert trial is not None
    search.report(trial, 1, 0.0)
    with pytest.raises(TrialPruned, match=r"10\.0% after 2 epochs"):
        search.report(trial, 2, 0.1)
    search.tell(trial, None)
    trial.claim.release()
    assert (search.outcome().done, search.outcome().pruned) == (3, 1)


def test_a_trial_that_failed_is_tried_again_where_asked(searcher: Callable[..., Searcher]) -> None:
    search = searcher(trials=1)
    trial = search.take()
    assert trial is not None
    search.tell(trial, None, "no memory\nand more")
    trial.claim.release()
    assert search.over
    assert search.outcome().failed == [f"{trial.configuration.name}: no memory"]
    search.retry_failed()
    again = search.take()
    assert again is not None
    assert again.configuration.settings == trial.configuration.settings
    search.tell(again, 1.0)
    again.claim.release()
    assert (search.over, search.outcome().failed, search.outcome().done) == (True, [], 1)


def test_a_line_that_was_not_written_to_the_end_did_not_happen(
    searcher: Callable[..., Searcher], tmp_path: Path
) -> None:
    tried(searcher(trials=2))
    journal = tmp_path / "sweep" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "study_')
    (tmp_path / "sweep" / f"{JOURNAL}.lock").touch()  # of the process that was killed
    assert searcher(trials=2).over
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("line", ["no json", "7", '{"op_code": 4}'])
def test_a_damaged_journal_is_named(searcher: Callable[..., Searcher], tmp_path: Path, line: str) -> None:
    tried(searcher(trials=1))
    journal = tmp_path / "sweep" / JOURNAL
    journal.write_text(f"{line}\n{journal.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises(InputError, match=r"search\.journal: is damaged.*\nRemove it"):
        searcher(trials=1)


@pytest.fixture
def recipe(features_root: Path, tmp_path: Path, write_yaml: Any) -> Callable[..., Path]:
    def write(**sweep: Any) -> Path:
        content = features_recipe_content(features_root, tmp_path / "sweep")
        content["train"] |= {"epochs": 3, "val_fraction": 0.3}
        content["eval_retrieval"] = {"split": "dev", "bootstrap": 0}
        return write_yaml("search.yaml", **content, sweep=sweep)

    return write


def test_a_search_from_the_command_line(csalign: Csalign, recipe: Callable[..., Path], tmp_path: Path) -> None:
    keys = {LR: {"choices": [1e-9, 1e-2, 2e-9]}}
    search = {"trials": 9, "keys": keys, "startup_trials": 1, "prune_after": 1}
    file = recipe(settings={"InfoNCE": {WEIGHT: 0}}, search=search, seeds=1, control="InfoNCE")
    planned = csalign("sweep", file, "--dry-run", "--json").json
    assert (planned["configurations"], planned["runs"], planned["search"]) == (10, 10, None)
    assert not (tmp_path / "sweep").exists()
    done = csalign("sweep", file, "--json").json
    found = done["search"]
    assert found["exhausted"] and found["failed"] == []
    assert found["done"] + found["pruned"] == 3 and found["pruned"] >= 1
    assert found["best"]["configuration"] == "lr=0.01"
    rows = {row["name"]: row for row in done["comparison"]["rows"]}
    assert rows["lr=0.01"]["searched"] and not rows["InfoNCE"]["searched"]
    assert any("from a search" in line for line in done["comparison"]["conclusions"])
    states = {path: path.read_bytes() for path in (tmp_path / "sweep" / "states").iterdir()}
    assert len(states) == 1 + found["done"]
    again = csalign("sweep", file, "--json").json
    assert again["done_now"] == 0
    assert states == {path: path.read_bytes() for path in (tmp_path / "sweep" / "states").iterdir()}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"search": {"keys": {"train.lrr": {"choices": [1]}}}}, "unknown key; did you mean train.lr?"),
        ({"search": {"keys": {LR: {"low": -1.0, "high": 1.0}}}}, "sweep (lr=-1): train.lr"),
        ({"search": {"keys": {}}}, "search.keys: expected at least one key path"),
        ({"search": {"keys": {LR: {}}}}, "sweep.search.keys.train.lr: expected low and high, or choices"),
        ({"search": {"keys": {"train.epochs": {"low": 1.2, "high": 1.8, "whole": True}}}}, "no whole number from 1.2"),
        (
            {"search": {"keys": KEYS, "prune_after": 1}, "objective": {"metric": "x", "direction": "minimize"}},
            "says nothing of a metric that is to be small",
        ),
        (
            {
                "search": {"keys": KEYS, "prune_after": 1},
                "objective": {"metric": "gap_report.aligned.centroid_gap"},
            },
            "says nothing of a metric that is to be small",
        ),
        (
            {
                "search": {"keys": KEYS},
                "objective": {"metric": "gap_report.aligned.centroid_gap", "direction": "maximize"},
            },
            "objective gap_report.aligned.centroid_gap: lower is better, and its direction is maximize",
        ),
        (
            {"search": {"keys": KEYS}, "objective": {"metric": "cost.seconds"}},
            "objective cost.seconds: whether more or less of it is better is not known",
        ),
        (
            {"search": {"keys": KEYS}, "objective": {"metric": "eval_retrieval.aligned.mean.R@7"}},
            "will have the metric 'eval_retrieval.aligned.mean.R@7'; did you mean eval_retrieval.aligned.mean.R@5?",
        ),
        (
            {"search": {"keys": KEYS}, "objective": {"metric": "eval_retreival.aligned.mean.R@1"}},
            "no stage of this recipe is named 'eval_retreival'; did you mean eval_retrieval?",
        ),
        (
            {"search": {"keys": KEYS}, "objective": {"metric": "gap_report.aligned.centroid"}},
            "no run will have the metric 'gap_report.aligned.centroid' (without sweep.report); did you mean "
            "gap_report.aligned.centroid_gap?",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_anything_runs(
    refused: Callable[..., str], recipe: Callable[..., Path], tmp_path: Path, sweep: Any, message: str
) -> None:
    assert message in refused("sweep", recipe(**sweep))
    assert not (tmp_path / "sweep").exists()


def test_a_metric_that_a_run_lacks_ends_the_search_with_its_nearest_name(
    csalign: Csalign, recipe: Callable[..., Path]
) -> None:
    objective = {"metric": "eval_retrieval.aligned.mixed.R@3"}
    called = csalign("sweep", recipe(search={"keys": KEYS, "trials": 5}, seeds=1, objective=objective))
    assert called.exit_code == 2
    assert "has no metric 'eval_retrieval.aligned.mixed.R@3'; did you mean eval_retrieval" in called.stderr


def test_without_optuna_one_message_says_what_to_install(
    refused: Callable[..., str], recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = refused("sweep", recipe(search={"keys": KEYS}))
    assert message.splitlines() == [
        "sweep.search needs optuna, which is not installed",
        "pip install 'cs-aligner-cli[search]'",
    ]
