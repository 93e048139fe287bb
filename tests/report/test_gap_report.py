"""The gap report as a stage: baselines and other runs beside the stores, examples, files, refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import features_recipe_content, make_features
from PIL import Image
from typer.testing import CliRunner

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.data.thumbnails import Photos
from cs_aligner_cli.gap.glossary import describe
from cs_aligner_cli.report.curves import training_curves
from cs_aligner_cli.report.page import render_page
from cs_aligner_cli.stages.gap_report.drawing import _panels
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.training.metrics_log import LogLine, LogMark, TrainingLog, read_training_log

FIGURES = (
    "gap_against_recall",
    "projection",
    "cosine_histograms",
    "divergence_curve",
    "spectra",
    "conflict",
    "training",
)
EVIL = "<img src=x onerror=alert(1)> & a dog"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with a control and baselines over features of one dimension; one caption holds HTML, some have photos."""
    folder = tmp_path_factory.mktemp("report")
    root = make_features(folder / "features")
    image = np.load(root / "image_mobilenet_v2.npy")
    np.save(root / "image_mobilenet_v2.npy", image[:, :16])
    captions = pd.read_csv(root / "captions.csv")
    captions.loc[captions["split"] == "dev", "caption"] = EVIL
    captions.to_csv(root / "captions.csv", index=False)
    (folder / "photos").mkdir()
    for i in range(0, 200, 2):
        Image.new("RGB", (300, 200), (i, 100, 50)).save(folder / "photos" / f"{i:04d}.jpg")
    recipe = folder / "features.yaml"
    recipe.write_text(yaml.safe_dump(features_recipe_content(root, folder / "run")), encoding="utf-8")
    settings = {
        "train.pairwise_only": "true",
        "gap_report.photos": folder / "photos",
        "gap_report.baselines.frozen": "[centred,procrustes]",
        "gap_report.formats": "[png,pdf]",
        "eval_retrieval.ks": "[1,2]",
    }
    arguments = [f"--set={key}={value}" for key, value in settings.items()]
    called = CliRunner().invoke(app, ["run", str(recipe), "--json", "-q", *arguments])
    assert called.exit_code == 0, called.stderr
    page = folder / "run" / "gap_report"
    found = json.loads((page / "report.json").read_text())
    return {"root": folder, "recipe": recipe, "folder": page, "arguments": arguments, "json": found}


@pytest.fixture
def report(made: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same in a folder of the test's own: what it does there is nobody else's."""
    shutil.copytree(made["root"] / "run", tmp_path / "run")
    arguments = [*made["arguments"], f"--set=run_dir={tmp_path / 'run'}"]
    return {**made, "folder": tmp_path / "run" / "gap_report", "arguments": arguments}


def test_a_report_holds_stores_baselines_and_everything_measured_of_them(
    report: dict[str, Any], tmp_path: Path, csalign: Callable[..., Any]
) -> None:
    found, folder = report["json"], report["folder"]
    kinds = {
        "frozen": "store",
        "frozen+centred": "baseline",
        "frozen+procrustes": "baseline",
        "pairwise_only": "store",
        "pairwise_only+centred": "baseline",
        "aligned": "store",
    }
    assert found["kinds"] == kinds
    for part in ("stores", "intervals", "null", "tests", "bands", "samples", "sweep", "retrieval", "recall_intervals"):
        assert list(found[part]) == list(kinds), part
    assert list(found["conflict"]) == ["frozen", "pairwise_only", "aligned"]
    assert found["subject"] == "aligned"
    assert {row["store"] for row in found["differences"]} == set(kinds) - {"aligned"}
    assert {"R@1", "centroid_gap", "mutual_knn"} <= {row["metric"] for row in found["differences"]}
    for name in FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert b"<svg" in (folder / f"{name}.svg").read_bytes()
    for name in ("report", "differences", "sweep", "conflict", "spectra"):
        assert len(pd.read_csv(folder / f"{name}.csv")) > 10, name
    table = pd.read_csv(folder / "report.csv")
    assert list(table) == ["store", "metric", "value", "low", "high", "null", "p", "pairs"]
    markdown = (folder / "report.md").read_text()
    assert "| pairwise\\_only+centred |" in markdown
    assert "Baselines are fitted on split train" in markdown

    # The baseline is the training split's means taken from unit rows, and nothing of the measured split's.
    train, dev = (Store(tmp_path / "run" / "embeddings" / "frozen" / split) for split in ("train", "dev"))
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (train.array("image").all(), dev.array("image").all())
    ]
    centred = unit[1] - unit[0].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    conformity = (np.square(centred.sum(axis=0)).sum() - 40) / (40 * 39)
    assert found["stores"]["frozen+centred"]["conformity_image"] == pytest.approx(conformity, abs=1e-5)

    again = csalign("gap-report", report["recipe"], "-q", "--json", *report["arguments"])
    assert again.json["status"] == "fresh"
    questions = ("Did it close the gap? ", "What did it cost? ", "Could one have had it for free? ")
    assert [answer.startswith(q) for answer, q in zip(again.json["verdict"], questions, strict=True)] == [True] * 3
    page = unescape((folder / "report.html").read_text()).replace("</strong>", "")
    assert all(answer in page for answer in again.json["verdict"])


def test_the_panels_are_those_of_the_run_and_its_strongest_rivals() -> None:
    """Six have room: CCA, Procrustes and the centred control are among them, whichever come first."""
    closed = ("centred", "mean_shift", "whitened", "procrustes", "cca")
    kinds = {"frozen": "store", **{f"frozen+{kind}": "baseline" for kind in closed}, "pairwise_only": "store"}
    kinds |= {"pairwise_only+centred": "baseline", "aligned": "store"}
    recalls = {"frozen+procrustes": 0.18, "frozen+cca": 0.2, "pairwise_only+centred": 0.02}
    retrieval = {name: {way: {"R@1": recalls.get(name, 0.1)} for way in ("i2t", "t2i")} for name in kinds}
    found = _panels({"kinds": kinds, "retrieval": retrieval, "stores": kinds}, dict.fromkeys(kinds))
    assert found == [
        "frozen", "frozen+procrustes", "frozen+cca", "pairwise_only", "pairwise_only+centred", "aligned",
    ]  # fmt: skip


def test_the_page_shows_all_of_it_and_runs_none_of_the_data(report: dict[str, Any]) -> None:
    page = (report["folder"] / "report.html").read_text()
    text = unescape(
        re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", page.replace("<wbr>", ""), flags=re.DOTALL)
    )
    for name in report["json"]["kinds"]:
        assert name in text
    for key in report["json"]["stores"]["aligned"]:
        assert key == "pairs" or describe(key).label in text, key
    assert text.count(EVIL) > 10
    assert "onerror=alert(1)>" not in page
    assert page.count("<script") == 1
    assert "data:image/jpeg;base64," in page
    assert "Best pairs" in text
    assert not re.search(r"(src|href)=\"(?!data:image/|#)", page)


def test_the_page_shows_what_was_published_beside_ones_own(made: dict[str, Any]) -> None:
    published = {"title": "beside", "columns": ["metric", "own"], "rows": [["i2t.R@1", "91.8"], [EVIL, "not measured"]]}
    page = render_page({**made["json"], "published": [published]}, {})
    assert '<a href="#published">' in page and "<td>91.8</td>" in page and unescape(page).count(EVIL) == 1
    assert "#published" not in render_page({**made["json"], "published": []}, {})


def test_other_runs_stand_beside_this_one(
    report: dict[str, Any], csalign: Callable[..., Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    features_recipe = report["recipe"]
    other = csalign(
        "run", features_recipe, "-q", "--json", *report["arguments"], f"--set=run_dir={tmp_path / 'other'}",
        "--set=name=other", "--set=train.pairwise_only=false", "--set=gap_report.baselines.frozen=[]",
        "--set=train.epochs=1",
    )  # fmt: skip
    assert other.exit_code == 0, other.stderr
    beside = f"--set=gap_report.beside=[{tmp_path / 'other'}]"
    called = csalign("gap-report", features_recipe, "-q", "--json", *report["arguments"], beside)
    assert called.exit_code == 0, called.stderr
    theirs = json.loads((tmp_path / "other" / "gap_report" / "report.json").read_text())
    assert called.json["gap_report"]["other:aligned"] == theirs["stores"]["aligned"]
    found = json.loads((report["folder"] / "report.json").read_text())
    assert found["kinds"]["other:aligned"] == "run"
    assert found["subject"] == "aligned"
    assert "other:aligned" in {row["store"] for row in found["differences"]}

    elsewhere = make_features(tmp_path / "elsewhere", {"train": 110, "dev": 40})
    moved = [f"--set=run_dir={tmp_path / 'third'}", f"--set=data.root={elsewhere}", "--set=train.epochs=1"]
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q", *moved).exit_code == 0
    beside = f"--set=gap_report.beside=[{tmp_path / 'third'}]"
    message = refused("gap-report", features_recipe, *report["arguments"], beside)
    expected = "holds other items than split 'dev' of this run: image_id of row 0 is 0110.jpg, expected 0120.jpg"
    assert expected in message
    message = refused("gap-report", features_recipe, *report["arguments"], f"--set=gap_report.beside=[{tmp_path}]")
    assert f"gap_report.beside: {tmp_path} holds no finished store of split 'dev' in embeddings/" in message
    assert json.loads((report["folder"] / "report.json").read_text()) == found


def test_what_cannot_be_compared_is_reported(csalign: Callable[..., Any], features_recipe: Path) -> None:
    """Towers of other dimensions have no centring; without training nothing says what to fit a baseline on."""
    every = "--set=gap_report.baselines.frozen=[centred,cca]"
    called = csalign(
        "run", features_recipe, "-q", "--json", every, "--set=train.epochs=1", "--set=gap_report.examples=0"
    )
    notes = "\n".join(called.json["notes"])
    assert "frozen: no centred, which need towers of one dimension." in notes
    assert list(called.json["gap_report"]) == ["frozen+cca", "aligned"]
    untrained = ["--set=train=null", "--set=gap_report.max_gallery=10", "-q", "--json", every]
    named = "--set=gap_report.baselines.split=train"
    called = csalign("run", features_recipe, *untrained, named)
    assert called.exit_code == 2
    assert "nothing to measure" in called.stderr
    called = csalign("run", features_recipe, *untrained, "--set=gap_report.baselines.split=nowhere")
    assert "gap_report.baselines.split: split 'nowhere' is absent" in called.stderr


def test_photos_are_found_by_locator_or_id_and_never_outside(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    photos = Photos(tmp_path, tmp_path / "in")

    def thumbnail(locator: str, image_id: str) -> bytes | None:
        return photos.thumbnail({"locator": locator, "image_id": image_id})

    assert thumbnail("a.png", "x").startswith(b"\xff\xd8")
    (tmp_path / "in" / "sub").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "sub" / "b.png")
    assert thumbnail("", "sub/b.png").startswith(b"\xff\xd8")
    for image_id in ("../a.png", "sub/../../a.png", str(tmp_path / "a.png"), "absent.png", "broken.png", "", "nul\0"):
        assert thumbnail("", image_id) is None
    assert Photos(tmp_path).thumbnail({"locator": "", "image_id": "a.png"}) is None


def test_a_training_log_ends_where_a_crash_cut_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "los')
    assert read_training_log(tmp_path) == [{"step": 1}, {"step": 2}]
    assert read_training_log(tmp_path / "nowhere") == []


def test_what_is_not_finite_is_null_in_a_training_log(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, LogMark()) as log:
        log.write(
            {"step": 10, "epoch": 1, "loss": 2.5, "terms": {"infonce": 2.5, "sinkhorn": math.nan}, "far": [math.inf]}
        )
    (row,) = read_training_log(tmp_path)
    assert row == {"step": 10, "epoch": 1, "loss": 2.5, "terms": {"infonce": 2.5, "sinkhorn": None}, "far": [None]}
    assert LogLine(**row).terms["sinkhorn"] is None
    assert training_curves({"aligned": [row]})
