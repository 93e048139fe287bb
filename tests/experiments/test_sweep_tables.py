"""What is made of a finished sweep: tables and pages of a comparison, leaderboards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from conftest import Csalign

from cs_aligner_cli.cli.experiments import comparison_tables
from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.comparison import Row, compare
from cs_aligner_cli.experiments.figures import figures, main_figure
from cs_aligner_cli.experiments.measured_run import find_run, refuse_other_protocols
from cs_aligner_cli.experiments.page import render_figure
from cs_aligner_cli.experiments.words import conclusions
from cs_aligner_cli.files.checksums import sealed
from cs_aligner_cli.stages.compare import _written


def test_a_comparison_is_written_in_every_format(csalign: Csalign, finished_sweep: Path, tmp_path: Path) -> None:
    out = [tmp_path / f"table{suffix}" for suffix in (".md", ".tex", ".csv", ".json", ".html", ".svg")]
    found = csalign("compare", finished_sweep, "--json", *(part for path in out for part in ("--out", path))).json
    jsonschema.validate(found, result_schema("compare"))
    texts = [path.read_text(encoding="utf-8") for path in out]
    assert all("InfoNCE" in text for text in texts)
    assert {"command": "compare", **json.loads(texts[3])} == found
    assert texts[1].count("\\\\") == 3 and texts[1].count("{") == texts[1].count("}")
    assert "http" not in texts[4].replace("http-equiv", "")
    drawing = ElementTree.fromstring(texts[5])
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg" and "CS" in drawing.attrib["aria-label"]


def test_a_store_that_a_sweep_has_not_is_named_and_a_metric_named_twice_is_one(
    csalign: Csalign, finished_sweep: Path
) -> None:
    refused = csalign("compare", f"{finished_sweep}:alinged")
    assert refused.exit_code == 2
    assert "no store 'alinged'; did you mean aligned?" in refused.stderr
    twice = ("--metric", "eval_retrieval.aligned.i2t.hubness") * 2
    keys = [column["key"] for column in csalign("compare", finished_sweep, *twice, "--json").json["columns"]]
    assert keys.count(twice[1]) == 1


def test_a_figure_that_there_is_not_is_refused_before_anything_is_written(
    csalign: Csalign, finished_sweep: Path, tmp_path: Path
) -> None:
    run = next(path for path in (finished_sweep / "runs").iterdir() if path.is_dir())
    refused = csalign("compare", run, "--out", tmp_path / "table.md", "--out", tmp_path / "gap.svg")
    assert refused.exit_code == 2
    assert "a single configuration has no figure" in refused.stderr
    assert not list(tmp_path.iterdir())
    measured = compare(find_run(str(run)), None, "gap_report.aligned.centroid_gap")
    cells = measured.rows[0].cells
    rows = [Row(name=k, settings={"kind": k}, seeds=[0], runs=[], cells=cells) for k in ("cs", "mmd")]
    with pytest.raises(InputError, match="these configurations have no figure with the objective gap_report"):
        _written(measured.model_copy(update={"rows": rows}), ".svg", "two kinds")


def test_two_keys_are_drawn_as_a_heat_map(finished_sweep: Path) -> None:
    """Four rows of a grid, made of the one that was measured."""
    measured = compare(find_run(str(finished_sweep)), None)
    cells = measured.rows[0].cells
    grid = [(a, b) for a in (0.3, 1) for b in (0.5, 1)]
    rows = [Row(name=f"{a}, {b}", settings={"w.a": a, "w.b": b}, seeds=[0], runs=[], cells=cells) for a, b in grid]
    drawn = main_figure(measured.model_copy(update={"rows": rows}))
    assert drawn is not None
    assert drawn.title == "R@1 over a and b"
    assert ElementTree.fromstring(render_figure(drawn)).attrib["aria-label"].count(";") == 3


def test_what_a_smaller_gap_buys_in_pictures_is_drawn_where_they_were_measured(finished_sweep: Path) -> None:
    runs = find_run(str(finished_sweep))
    control, other = list(dict.fromkeys(run.configuration for run in runs))[:2]
    assert not [figure for figure in figures(compare(runs, control)) if "pictures" in figure.title]
    for run in runs:
        shares = {"accuracy_mean": 0.25 if run.configuration == control else 0.75, "prompt_R@1": 0.1}
        vars(run)["numbers"] = run.numbers | {f"generate.aligned.{name}": share for name, share in shares.items()}
    found = compare(runs, control)
    assert {"attributes", "prompt R@1"} <= {column.title for column in found.columns}
    drawn = next(figure for figure in figures(found) if "pictures" in figure.title)
    assert drawn.title == "What does a smaller gap buy in pictures (attributes)?"
    alt = ElementTree.fromstring(render_figure(drawn)).attrib["aria-label"]
    assert f"{control}: centroid gap " in alt and "attributes 25.0" in alt
    assert f"{other}: centroid gap " in alt and "attributes 75.0" in alt


def test_the_first_of_two_configurations_of_one_name_is_the_control(finished_sweep: Path) -> None:
    runs = find_run(str(finished_sweep))
    first = runs[0].configuration
    for run in runs:
        vars(run)["configuration"] = first
    found = compare(runs, first)
    (control,) = [row.name for row in found.rows if row.is_control]
    assert found.control == control == f"{first} ({runs[0].configuration_id[:6]})"


def test_sentences_say_what_intervals_and_tests_are_over(finished_sweep: Path) -> None:
    """The control has one seed: what is tested against it stands on that one."""
    infonce, *_, last = find_run(str(finished_sweep))
    found = compare([infonce, *(run for run in find_run(str(finished_sweep)) if run.configuration == "CS")], "InfoNCE")
    rows = {row.name: row.cells for row in found.rows}
    recall, total = (column.key for column in found.columns if column.title in ("R@1", "RSum"))
    assert [rows[name][recall].covers for name in ("InfoNCE", "CS")] == ["images", "seeds and images"]
    assert [rows["CS"][key].difference.covers for key in (recall, total)] == ["images", "nothing"]
    said = conclusions(found)[0]
    assert (
        "Intervals of R@1, i2t R@1, t2i R@1" in said
        and "cover seeds, or nothing (one seed, or equal ones). Tests, on the" in said
    )
    # Runs that score alike on every image: nothing is known of what could have been found.
    twin = replace(last, configuration="twin", configuration_id="twin")
    same = compare([last, twin], "CS")
    assert same.detectable is None and not [line for line in conclusions(same) if "true difference" in line]


def test_a_p_below_the_level_is_not_written_as_the_level(finished_sweep: Path) -> None:
    found = compare(find_run(str(finished_sweep)), "InfoNCE")
    row = next(row for row in found.rows if not row.is_control)
    cell = row.cells[found.objective]
    assert cell.difference is not None
    test = cell.difference.model_copy(update={"p": 0.0001, "p_holm": 0.04996})
    cells = {found.objective: cell.model_copy(update={"difference": test})}
    nearly = found.model_copy(update={"rows": [row.model_copy(update={"cells": cells})]})
    assert "p < 0.05)" in " ".join(conclusions(nearly))
    assert comparison_tables(nearly)[1].rows[0][-2:] == ("< 0.001", "< 0.05")


def test_less_of_the_objective_may_be_better(finished_sweep: Path) -> None:
    found = compare(find_run(str(finished_sweep)), "InfoNCE", "eval_retrieval.aligned.mean.mean_rank")
    gap, rank = "gap_report.aligned.centroid_gap", found.objective
    cells = [(row.cells[gap].mean, row.cells[rank].mean) for row in found.rows]
    assert [row.on_front for row in found.rows] == [
        not any(g <= x and r <= y and (g, r) != (x, y) for g, r in cells) for x, y in cells
    ]
    assert min(found.rows, key=lambda row: row.cells[rank].mean).cells[rank].best


def test_the_order_of_runs_decides_no_refusal(finished_sweep: Path) -> None:
    first, *_, last = find_run(str(finished_sweep))
    own = dict(first.protocol)
    reranked = replace(last, store="aligned+matching")
    vars(reranked)["protocol"] = own | {"reranked": "the first 20"}
    vars(last)["protocol"] = own | {"folds": 5}
    for pair in ([first, last], [last, first]):
        with pytest.raises(InputError, match="other protocols: folds"):
            refuse_other_protocols(pair)
    refuse_other_protocols([first, reranked])
    refuse_other_protocols([reranked, first])


@pytest.fixture
def runs(finished_sweep: Path, tmp_path: Path) -> Path:
    """A folder with that sweep, which a test may change."""
    shutil.copytree(finished_sweep, tmp_path / "runs" / "sweep")
    return tmp_path / "runs"


def measured_otherwise(run: Path, **changes: str) -> None:
    """Say in a run's record that its retrieval followed another protocol."""
    file = run / "eval_retrieval" / "stage.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record.pop("seal")
    record["summary"]["protocol"] |= changes
    file.write_text(json.dumps(sealed(record)), encoding="utf-8")


def test_a_leaderboard_ranks_what_was_measured_alike(csalign: Csalign, runs: Path) -> None:
    found = csalign("leaderboard", runs, "--json").json
    jsonschema.validate(found, result_schema("leaderboard"))
    (board,) = found["boards"]
    assert found["left_out"] == []
    rows = {row["name"]: row for row in board["comparison"]["rows"]}
    assert set(rows) == {"sweep: InfoNCE", "sweep: CS"}
    means = [rows[entry["name"]]["cells"][found["objective"]]["mean"] for entry in board["entries"]]
    assert means == sorted(means, reverse=True)
    assert board["entries"][0]["place"] == 1
    assert {len(entry["recipe"]) for entry in board["entries"]} == {12}
    assert all(entry["code"][0].startswith("csalign ") and entry["date"] > "2020" for entry in board["entries"])
    pages = [(runs / f"leaderboard{suffix}").read_text(encoding="utf-8") for suffix in (".md", ".html")]
    for text in pages:
        assert all(entry["recipe"] in text and "sweep: CS" in text for entry in board["entries"])
    assert "http" not in pages[1].replace("http-equiv", "")


def test_other_protocols_get_boards_of_their_own_and_the_rest_is_told(csalign: Csalign, runs: Path) -> None:
    one, other, copied, damaged = sorted((runs / "sweep" / "runs").iterdir())
    measured_otherwise(one, ties="the first row wins")
    shutil.rmtree(other / "eval_retrieval")
    shutil.copytree(copied, runs / "again")
    (damaged / "run.json").write_text("{", encoding="utf-8")
    found = csalign("leaderboard", runs, "--out", runs / "l.md", "--json").json
    assert sorted(len(board["entries"]) for board in found["boards"]) == [1, 1]
    ties = {board["comparison"]["protocol"]["ties"] for board in found["boards"]}
    assert len(ties) == 2 and "the first row wins" in ties
    reasons = {one["folder"]: one["why"] for one in found["left_out"]}
    assert reasons[f"sweep/runs/{other.name}"] == "no retrieval results in eval_retrieval"
    assert reasons[f"sweep/runs/{damaged.name}"].startswith("run.json: ")
    assert reasons[f"sweep/runs/{copied.name}"] == "is the same experiment as again"


def test_results_of_another_recipe_are_forgotten_and_not_compared(csalign: Csalign, runs: Path) -> None:
    """As where a run is begun anew with another key and killed: its recipe is the new one, its folders are not."""
    one = sorted((runs / "sweep" / "runs").iterdir())[0].rename(runs / "one")
    own = ("--set", f"run_dir={one}")
    csalign("prepare", one / "recipe.yaml", *own, "--set", "name=renamed")
    assert {"train", "eval_retrieval"} <= json.loads((one / "run.json").read_text())["stages"].keys()
    assert csalign("compare", one).exit_code == 0
    csalign("prepare", one / "recipe.yaml", *own, "--set", "train.lr=0.5")
    assert json.loads((one / "run.json").read_text())["stages"].keys() == {"prepare"}
    refused = csalign("compare", one)
    assert refused.exit_code == 2
    assert "its retrieval results are not of the recipe that" in refused.stderr
    (left_out, *_) = csalign("leaderboard", runs, "--json").json["left_out"]
    assert left_out == {
        "folder": "one",
        "why": "its retrieval results are not of the recipe that run.json has now",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone",), "gone: no such folder"),
        ((".", "--out", "x.pdf"), "cannot write .pdf"),
        ((".", "--out", "x.MD", "--out", "y.Html"), "no finished run below it can be ranked"),
        ((".",), "no finished run below it can be ranked by eval_retrieval.aligned.mean.R@1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("leaderboard", *arguments)
