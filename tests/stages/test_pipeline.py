"""The whole path: what is fresh, what goes stale, what is found in the JSON, and the measured stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import features_recipe_content, make_features
from typer.testing import CliRunner

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.gap import measure_gap
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.training.setup import _parts


def csalign(*arguments: object, code: int = 0) -> str:
    """Run a command in this process; return stdout for code 0, stderr else."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, f"{result.exit_code}: {result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr
    return result.stdout if code == 0 else result.stderr


def run(recipe: Path, *settings: str) -> dict:  # type: ignore[type-arg]
    return json.loads(csalign("run", recipe, "--json", *[part for s in settings for part in ("--set", s)]))


_SETTINGS = ("train.pairwise_only=true", "seed=5", "train.epochs=15")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # type: ignore[type-arg]
    """The recipe of a finished run, which no test may change, and what ``csalign run --json`` printed."""
    here = tmp_path_factory.mktemp("whole")
    content = features_recipe_content(make_features(here / "features"), here / "run")
    (here / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return here / "recipe.yaml", run(here / "recipe.yaml", *_SETTINGS)


def test_run_json_holds_what_scripts_rely_on(whole: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    data = whole[1]
    assert data["seed"] == 5
    assert set(data["eval_retrieval"]) == {
        "pairwise_only",
        "aligned",
    }  # 24-d and 16-d features share no space
    for directions in data["eval_retrieval"].values():
        for direction in ("i2t", "t2i"):
            assert {"R@1", "R@5", "R@10", "median_rank", "mean_rank"} <= set(directions[direction])
            assert 0 <= directions[direction]["R@1"] <= directions[direction]["R@10"] <= 1
    metrics = data["gap_report"]["aligned"]
    assert {
        "centroid_gap",
        "squared_gap_debiased",
        "rmg",
        "paired_cosine",
        "alignment",
        "linear_separability",
    } <= set(metrics)
    assert {"uniformity_image", "uniformity_text", "cs_divergence_v@0.5", "cs_divergence_u@0.5"} <= set(metrics)
    assert data["null_floor"]["aligned"]["centroid_gap"] > 0
    assert any("share no space" in note for note in data["notes"])
    assert Path(data["report"]).read_text().lower().startswith("<!doctype html>")


def test_what_has_not_changed_is_not_done_again(features_recipe: Path) -> None:
    first = run(features_recipe)
    assert set(first["status"].values()) == {"done"}
    second = run(features_recipe)
    assert set(second["status"].values()) == {"fresh"}
    for key in ("eval_retrieval", "gap_report", "train"):
        assert json.dumps(second[key]).replace('"fresh"', '"done"') == json.dumps(first[key])
    other_split = run(features_recipe, "eval_retrieval.split=test")
    assert other_split["status"] == {
        "prepare": "fresh", "embed": "done", "train": "fresh", "eval_retrieval": "done", "gap_report": "done"
    }  # fmt: skip
    other_lr = json.loads(csalign("run", features_recipe, "--json", "--archive", "--set", "train.lr=2e-3"))
    assert other_lr["status"]["prepare"] == "fresh"
    assert other_lr["status"]["train"] == other_lr["status"]["gap_report"] == "done"
    forced = json.loads(csalign("run", features_recipe, "--json", "--force"))
    assert set(forced["status"].values()) == {"done"}
    assert forced["eval_retrieval"] == first["eval_retrieval"]


def test_changed_data_are_seen_by_run(features_recipe: Path, features_root: Path) -> None:
    run(features_recipe)
    text = np.load(features_root / "text_minilm.npy")
    np.save(features_root / "text_minilm.npy", text[:, ::-1])
    assert set(json.loads(csalign("run", features_recipe, "--json", "--archive"))["status"].values()) == {"done"}


def test_single_stages_say_what_is_missing_or_stale(features_recipe: Path) -> None:
    assert "csalign prepare" in csalign("embed", features_recipe, code=2)
    assert "csalign prepare" in csalign("train", features_recipe, code=2)
    csalign("prepare", features_recipe)
    assert "Make it first: csalign embed" in csalign("train", features_recipe, code=2)
    csalign("embed", features_recipe)
    csalign("train", features_recipe)
    assert "no aligned store of split dev" in csalign("eval-retrieval", features_recipe, code=2)
    csalign("embed", features_recipe)
    csalign("eval-retrieval", features_recipe)
    stale = csalign("eval-retrieval", features_recipe, "--set", "train.lr=2e-3", code=2)
    assert "stale: train.lr was 0.001 and is now 0.002" in stale
    assert "csalign train" in stale
    stale = csalign("gap-report", features_recipe, "--set", "encoders.image.power=1", code=2)
    assert "encoders.image.power was 0.5 and is now 1.0" in stale


def test_stages_by_hand_equal_run(whole: tuple[Path, dict], tmp_path: Path) -> None:  # type: ignore[type-arg]
    recipe, expected = whole
    by_hand = [part for s in (f"run_dir={tmp_path / 'by_hand'}", *_SETTINGS) for part in ("--set", s)]
    for stage in ("prepare", "embed", "train", "embed"):
        csalign(stage, recipe, *by_hand)
    found = json.loads(csalign("eval-retrieval", recipe, "--json", *by_hand))
    gap = json.loads(csalign("gap-report", recipe, "--json", *by_hand))
    assert found["eval_retrieval"] == expected["eval_retrieval"]
    assert gap["gap_report"] == expected["gap_report"]


def test_results_are_those_of_the_python_surface(whole: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    data = whole[1]
    folder = Path(data["run_dir"])
    store = Store(folder / "embeddings" / "aligned" / "dev")
    image, text = store.array("image").all(), store.array("text").all()
    rows = pd.Index(store.keys("image")["image_id"]).get_indexer(store.keys("text")["image_id"])
    found = data["eval_retrieval"]["aligned"]
    assert evaluate_retrieval(image, text, rows) == {way: found[way] for way in found if way != "mixed"}
    report = json.loads((folder / "gap_report" / "report.json").read_text())
    assert report["stores"]["aligned"] == data["gap_report"]["aligned"]
    assert measure_gap(image, text[::5])["centroid_gap"] == pytest.approx(
        data["gap_report"]["aligned"]["centroid_gap"], abs=0.1
    )


def test_saved_index_and_neighbours_answer_for_plain_faiss(whole: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    data = whole[1]
    folder = Path(data["run_dir"]) / "eval_retrieval" / "aligned"
    index = faiss.read_index(str(folder / "image" / "image.index"))
    keys = pd.read_parquet(folder / "image" / "metadata" / "metadata_0.parquet")
    assert index.ntotal == len(keys) == 40
    neighbors = pd.read_parquet(folder / "text_neighbors.parquet")
    hits = neighbors[neighbors["rank"] <= 5].groupby("query")["true"].any().mean()
    assert hits == pytest.approx(data["eval_retrieval"]["aligned"]["t2i"]["R@5"])
    table = pd.read_csv(folder.parent / "results.csv")
    row = table.query("store == 'aligned' and direction == 'i2t' and metric == 'R@1'")
    assert row["value"].item() == pytest.approx(data["eval_retrieval"]["aligned"]["i2t"]["R@1"])


def test_frozen_towers_of_one_space_are_measured_beside_the_aligned_ones(
    features_recipe: Path, features_root: Path
) -> None:
    image = np.load(features_root / "image_mobilenet_v2.npy")
    np.save(features_root / "image_mobilenet_v2.npy", image[:, :16])
    data = run(features_recipe)
    assert list(data["eval_retrieval"]) == ["frozen", "aligned"]
    assert list(data["gap_report"]) == ["frozen", "frozen+cca", "aligned"]
    only = run(features_recipe, "train=null")
    assert list(only["eval_retrieval"]) == ["frozen"]
    assert "train" not in only["status"]


def test_towers_without_a_shared_space_are_no_empty_success(features_recipe: Path) -> None:
    for stage in ("prepare", "embed"):
        csalign(stage, features_recipe, "--set", "train=null")
    for stage in ("eval-retrieval", "gap-report"):
        message = csalign(stage, features_recipe, "--set", "train=null", code=2)
        assert "nothing to measure on split 'dev'" in message
        assert "Train adapters into a shared space first" in message


def test_a_leak_between_splits_is_reported_even_when_quiet(features_recipe: Path, features_root: Path) -> None:
    quiet = ["prepare", str(features_recipe), "-q"]
    assert "leak" not in CliRunner().invoke(app, quiet).stderr
    image = np.load(features_root / "image_mobilenet_v2.npy")
    image[-1] = image[0]  # a test image like a training image
    np.save(features_root / "image_mobilenet_v2.npy", image)
    stderr = CliRunner().invoke(app, quiet).stderr
    assert "warning: 1 content of images with the same content stands in several splits: a leak" in stderr


def test_several_runs_share_one_prepared_data_set_and_frozen_store(features_recipe: Path, tmp_path: Path) -> None:
    shared = [f"data.dir={tmp_path / 'data'}", f"embed.dir={tmp_path / 'frozen'}"]
    run(features_recipe, *shared, f"run_dir={tmp_path / 'a'}")
    second = run(features_recipe, *shared, f"run_dir={tmp_path / 'b'}", "seed=1")
    assert second["status"]["prepare"] == "fresh"
    assert second["status"]["train"] == "done"
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["seed"] == 1
    assert record["versions"]["torch"]
    assert yaml.safe_load((tmp_path / "b" / "recipe.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eval_retrieval.split=tset", "split 'tset' is absent; did you mean test?"),
        ("gap_report.split=nowhere", "split 'nowhere' is absent"),
        ("train.split=trian", "split 'trian' is absent; did you mean train?"),
        ("train.val_split=none", "split 'none' is absent"),
    ],
)
def test_bad_settings_have_one_clear_message(features_recipe: Path, setting: str, message: str) -> None:
    assert message in csalign("run", features_recipe, "-q", "--set", setting, code=2)
    frozen = features_recipe.parent / "run" / "embeddings" / "frozen"
    assert not [path for path in frozen.glob("*") if path.is_dir()]  # not after the first split was embedded


def test_an_adapter_file_from_another_dimension_is_refused(
    features_recipe: Path, features_root: Path, tmp_path: Path
) -> None:
    weights = Path(run(features_recipe)["run_dir"]) / "train" / "aligned" / "best.safetensors"
    other = tmp_path / "other"
    shutil.copytree(features_root, other)
    np.save(other / "image_mobilenet_v2.npy", np.load(other / "image_mobilenet_v2.npy")[:, :7])
    settings = [
        "--set",
        f"data.root={other}",
        "--set",
        f"run_dir={tmp_path / 'o'}",
        "--set",
        f"embed.weights={weights}",
    ]
    message = csalign("run", features_recipe, "-q", *settings, code=2)
    assert f"{weights}: its image tower takes 24 dimensions, but the image embeddings have 7" in message


def test_trained_weights_align_another_data_set(features_recipe: Path, features_root: Path, tmp_path: Path) -> None:
    first = run(features_recipe)
    weights = Path(first["run_dir"]) / "train" / "aligned" / "best.safetensors"
    again = run(features_recipe, f"run_dir={tmp_path / 'again'}", f"embed.weights={weights}")
    assert "train" not in again["status"]
    assert again["eval_retrieval"] == first["eval_retrieval"]


def test_a_seed_of_the_data_stays_while_seeds_of_training_vary(features_recipe: Path) -> None:
    held_out = set()
    for seed, data_seed in ((1, "null"), (2, "null"), (1, 7), (2, 7)):
        recipe = load_recipe(str(features_recipe), [f"seed={seed}", f"data.seed={data_seed}"])
        layout = Layout(recipe)
        assert recipe.data_seed == (seed if data_seed == "null" else 7)
        csalign("prepare", features_recipe, "--set", f"seed={seed}", "--set", f"data.seed={data_seed}")
        split = PreparedData(layout.prepared.path).split("train", "train.split")
        held_out.add((data_seed, *_parts(recipe, recipe.train, split, split)[1]))
    assert sorted(seed for seed, *_ in held_out if seed == 7) == [7]
    assert len(held_out) == 3
    one, other = (load_recipe(str(features_recipe), [f"seed={seed}", "data.seed=7"]) for seed in (1, 2))
    assert Layout(one).trained("aligned").wanted() != Layout(other).trained("aligned").wanted()
    assert Layout(one).prepared.wanted() == Layout(other).prepared.wanted()
