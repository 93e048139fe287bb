"""The paper's experiments: their recipes on drawn data, what they expect, and what doctor says is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trained_runs import QUIET

from cs_aligner_cli.experiments.expected import beside_published, published_tables
from cs_aligner_cli.experiments.measured_run import find_run
from cs_aligner_cli.experiments.plan import Source, configurations, load_sweep, plan
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.recipe.shelf import names
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.gap_report import published_beside
from cs_aligner_cli.stages.pipeline import run_all, run_stage
from cs_aligner_cli.stages.run_result import run_result, run_tables

Csalign = Callable[..., Any]
RETRIEVAL = ["paper_retrieval", "paper_unpaired", "paper_multicaption", "paper_tokens", "paper_lora"]
SETS = ["flickr30k", "urban1k", "docci", "coco_karpathy"]


@pytest.fixture
def twin(tmp_path: Path, write_yaml: Callable[..., Path], tiny_clip_config: dict[str, Any]) -> Callable[..., Recipe]:
    """``twin(name)``: a recipe of the paper on a few drawn scenes with tiny encoders; all else is as it stands."""
    drawn = write_yaml("drawn.yaml", name="drawn", kind="scenes", images={"train": 24, "val": 8, "test": 8}, seed=0)

    def make(name: str, **settings: Any) -> Recipe:
        own = load_recipe(name)
        sets = [{"name": found.key, "manifest": str(drawn)} for found in own.eval_retrieval.sets[:2]]
        clip = {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}
        changes = {
            "run_dir": str(tmp_path / name),
            "data.manifest": str(drawn),
            "eval_retrieval.sets": sets,
            "encoders": {"image": clip},
            "train.epochs": 1,
            "train.batch_size": 8,
            "eval_retrieval.ks": [1, 2],
            "eval_retrieval.bootstrap": 0,
            "eval_retrieval.mixed": None,
            "gap_report.max_pairs": 10,
        }
        return load_recipe(name, settings={**changes, **settings})

    return make


def test_every_experiment_of_the_paper_says_what_is_expected_and_what_is_ours() -> None:
    assert set(RETRIEVAL) <= set(names("recipes"))
    for name in RETRIEVAL:
        expected = load_recipe(name).expected
        assert expected is not None and "train.objective.divergence.bandwidth" in expected.ours, name
        assert expected.remarks, name
    values = load_recipe("paper_retrieval").expected
    assert values is not None
    assert [v.value for v in values.values] == [0.918, 0.81, 0.876, 0.922, 0.866, 0.891]
    assert {v.metric.split(".")[2] for v in values.values} == set(SETS) - {"coco_karpathy"}


def test_one_recipe_trains_on_one_data_set_and_is_evaluated_on_others(twin: Callable[..., Recipe]) -> None:
    recipe = twin("paper_retrieval")
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, QUIET)
    found: Any = run_stage("eval_retrieval", recipe, QUIET)
    assert list(found.sets) == SETS[:2]
    assert found.sets["urban1k"].split == "test" and found.split == "val"
    assert set(found.sets["urban1k"].eval_retrieval) == {"frozen", "pairwise_only", "aligned"}
    assert not found.sets["urban1k"].indexes and found.indexes
    # The sets are the same drawn scenes, so what is measured on one is measured on the other.
    assert found.sets["urban1k"].eval_retrieval == found.sets["flickr30k"].eval_retrieval
    assert run_stage("eval_retrieval", recipe, QUIET).status == "fresh"
    (measured,) = find_run(str(recipe.folder))
    values = beside_published(recipe.expected, measured)
    assert [value.own is None for value in values] == [False, False, False, False, True, True]
    assert values[0].own == found.sets["flickr30k"].eval_retrieval["aligned"]["i2t"]["R@1"]
    assert values[0].difference == pytest.approx(values[0].own - 0.918) and values[0].within is False
    numbers, remarks = published_tables(values, recipe.expected)
    assert numbers.rows[0][:3] == ("flickr30k.aligned.i2t.R@1", "91.8", "1.0") and numbers.rows[-1][3] == "not measured"
    assert ("ours, not published", "train.lr") in remarks.rows
    assert published_beside(Layout(recipe)) == [numbers, remarks]  # what the report shows


def test_a_report_made_before_retrieval_was_measured_says_so(twin: Callable[..., Recipe]) -> None:
    numbers, _ = published_beside(Layout(twin("paper_retrieval")))
    assert {row[3] for row in numbers.rows} == {"not measured"}
    assert published_beside(Layout(load_recipe("flickr8k", ["data.root=."]))) == []


@pytest.mark.parametrize("name", ["paper_unpaired", "paper_multicaption"])
def test_the_papers_sweeps_come_to_runs(name: str, twin: Callable[..., Recipe]) -> None:
    source = Source(name, ("data.root=.",))
    base = load_sweep(source)
    assert base.sweep is not None
    runs = plan(source, base, configurations(base.sweep))
    assert len(runs) == 9 and len({run.id for run in runs}) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper_tokens", "paper_lora", "paper_unpaired", "paper_multicaption"])
def test_the_papers_experiments_run_on_drawn_scenes(name: str, twin: Callable[..., Recipe]) -> None:
    settings = {"data.unpaired": {"paired_fraction": 0.5}} if name == "paper_unpaired" else {}
    recipe = twin(name, **settings)
    results = run_all(recipe, QUIET)
    result = run_result(recipe, results)
    assert "aligned" in result.eval_retrieval
    assert run_tables(results)


def test_doctor_names_every_missing_file_with_size_and_source(csalign: Csalign, tmp_path: Path) -> None:
    (tmp_path / "docci").mkdir()
    (tmp_path / "docci" / "docci_descriptions.jsonlines").write_text("")
    drawn = "--set=encoders={image: {kind: open_clip, random_init: true, config: {}}}"  # a hub need not answer
    settings = [f"--set=data.root={tmp_path}", f"--set=run_dir={tmp_path / 'run'}", drawn]
    called = csalign("doctor", "paper_retrieval", "--json", *settings)
    assert called.exit_code == 2
    found = {check["name"]: check for check in called.json["checks"]}
    assert found["data: cc3m/*.tar"]["remedy"].endswith("ConceptualCaptions/download")
    assert "13 GB, published at https://cocodataset.org" in found["eval_retrieval.sets.3: train2014"]["remedy"]
    assert "80.6 MB" in found["eval_retrieval.sets.1: image"]["remedy"]
    assert "storage.googleapis.com" in found["eval_retrieval.sets.2: images"]["remedy"]
    assert "eval_retrieval.sets.2: docci_descriptions.jsonlines" not in found
    (tmp_path / "docci" / "docci_descriptions.jsonlines").unlink()
    (tmp_path / "docci").rmdir()
    checks = csalign("doctor", "paper_retrieval", "--json", *settings).json["checks"]
    absent = f"data.root: {tmp_path / 'docci'} is not a folder"
    assert next(check for check in checks if check["name"] == "eval_retrieval.sets.2")["found"] == absent
