"""Runs from Python: made, opened where they lie now, and used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import features_recipe_content, make_features, make_photos
from trained_runs import QUIET

from cs_aligner_cli import InputError, Run, load_recipe, open_run, run
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store


@pytest.fixture(scope="module")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("features")
    content = features_recipe_content(make_features(folder / "data"), folder / "run")
    return run(content, ["train.epochs=2", "eval_retrieval.bootstrap=0"], quiet=True)


def test_a_run_has_its_numbers_and_a_second_one_does_nothing(features_run: Run) -> None:
    metrics = features_run.metrics
    assert {"frozen+cca", "aligned"} <= set(metrics)
    assert 0 < metrics["aligned"]["i2t"]["R@10"] <= 1
    assert metrics["aligned"]["gap"]["centroid_gap"] > 0
    assert features_run.report.is_file() and features_run.folder.name in repr(features_run)
    before = features_run.folder.joinpath("train/aligned/best.safetensors").stat().st_mtime_ns
    again = run(features_run.recipe, quiet=True)
    assert again.metrics == metrics
    assert features_run.folder.joinpath("train/aligned/best.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="loaded already"):
        run(features_run.recipe, ["seed=1"])


def test_apply_maps_features_as_the_run_did_wherever_the_run_lies(features_run: Run, tmp_path: Path) -> None:
    moved = open_run(shutil.copytree(features_run.folder, tmp_path / "moved"))
    assert moved.folder == tmp_path / "moved" and moved.metrics == features_run.metrics
    root = features_run.recipe.data.root
    assert root is not None
    features = {"image": "image_mobilenet_v2.npy", "text": "text_minilm.npy"}
    rows = {"image": slice(120, 160), "text": slice(600, 800)}  # those of dev
    store = Store(Layout(features_run.recipe).aligned("aligned", "dev").path)
    for modality, file in features.items():
        found = moved.apply(np.load(root / file)[rows[modality]], modality)
        np.testing.assert_allclose(found, store.array(modality).all(), atol=1e-5)


def test_what_a_run_cannot_do_is_refused(features_run: Run, tmp_path: Path) -> None:
    rows = np.ones((2, 24), np.float32)
    for call, message in (
        (lambda: open_run(tmp_path), "holds no run"),
        (lambda: features_run.embed(texts=["a dog"]), "encoders.text is of kind features"),
        (lambda: features_run.embed(texts=[]), "got none"),
        (lambda: features_run.embed(images=[], texts=["a"]), "encoders.text is of kind features"),
        (lambda: features_run.embed(texts="a dog"), "texts: expected a list, got 'a dog' alone"),
        (lambda: features_run.embed(images=tmp_path / "a.png"), "images: expected a list, got .*png' alone"),
        (lambda: features_run.embed(texts=np.array(["a", None])), "texts: item 1 is None, expected a string"),
        (lambda: features_run.search(texts="dog"), "texts: expected a list"),
        (lambda: features_run.search(ids="0130.jpg"), "ids: expected a list"),
        (lambda: features_run.search(images=[3]), "images: item 0 is 3, expected a path"),
        (lambda: features_run.apply(rows, "image", store="control"), "this run has no 'control'"),
        (lambda: features_run.apply(rows, "image", store="frozen"), "have no adapter"),
        (lambda: features_run.apply(rows, "text"), "rows have 24 dimensions"),
        (lambda: features_run.apply(rows, None), "expected one of: image, text"),  # type: ignore[arg-type]
        (lambda: features_run.apply(rows, "imge"), "did you mean image"),
        (lambda: features_run.search(ids=["0130.jpg"], k=2.0), "k: expected a whole number, got 2.0"),  # type: ignore[arg-type]
        (lambda: features_run.search(ids=["0130.jpg"], k=0), "k = 0 but the index holds"),
        (lambda: features_run.search(ids=["0130.jpg"], gallery=3), "expected image or text"),  # type: ignore[arg-type]
        (lambda: features_run.search(ids=["0130.jpg"], store=3), "no such index"),  # type: ignore[arg-type]
        (lambda: features_run.search(ids=3), "ids: expected a list, got 3"),  # type: ignore[arg-type]
        (lambda: features_run.search(ids=["nobody"]), "no image and no caption"),
        (lambda: Run(load_recipe("scenes", [f"run_dir={tmp_path}/none"])).metrics, "nothing is measured yet"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_search_finds_a_known_item_of_the_split(features_run: Run) -> None:
    (answer,) = features_run.search(ids=["0130.jpg"], gallery="image", k=3).queries
    assert [found.rank for found in answer.results] == [1, 2, 3]
    assert features_run.search(ids=["0130.jpg"], k=3).k == 3
    assert answer.results[0].id == "0130.jpg" and answer.results[0].score == pytest.approx(1, abs=1e-5)


def test_photos_and_sentences_are_embedded_as_those_of_the_split(
    tmp_path: Path, tiny_clip_config: dict[str, Any], write_yaml: Callable[..., Path]
) -> None:
    root = make_photos(tmp_path / "photos")
    recipe = write_yaml(
        "photos.yaml",
        name="photos",
        run_dir=str(tmp_path / "run"),
        data={"manifest": "flickr8k_images", "root": str(root)},
        encoders={"image": {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}},
        train={"epochs": 1, "batch_size": 4},
        eval_retrieval={"split": "dev", "ks": [1, 2], "bootstrap": 0},
    )
    done = Run(load_recipe(str(recipe)))
    for stage in ("prepare", "embed", "train", "embed", "eval_retrieval"):
        run_stage(stage, done.recipe, QUIET)
    store = Store(Layout(done.recipe).aligned("aligned", "dev").path)
    photos = [root / "images" / name for name in ("08.jpg", "09.png", "10.jpg", "11.png")]
    texts = [f"noise number {i}, told the {k}. time" for i in range(8, 12) for k in range(2)]
    image, text = done.embed(images=photos, texts=texts)
    np.testing.assert_allclose(image, store.array("image").all(), atol=1e-4)
    np.testing.assert_allclose(text, store.array("text").all(), atol=1e-4)
    assert not np.allclose(done.embed(texts=texts, store="frozen"), text, atol=1e-3)
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        done.embed(images=[root / "nowhere.jpg"])
    found = done.search(images=photos[:1], k=2).queries[0]
    assert found.gallery == "text" and len(found.results) == 2

    def searched(text: str) -> list[tuple[str, float]]:
        return [(item.id, item.score) for item in done.search(texts=[text], k=3).queries[0].results]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(searched, texts[:4])) == [searched(text) for text in texts[:4]], (
            "weights drawn side by side"
        )
        fresh = Run(done.recipe)
        for rows in threads.map(lambda _: fresh.embed(texts=texts), range(4)):
            np.testing.assert_array_equal(rows, text)
