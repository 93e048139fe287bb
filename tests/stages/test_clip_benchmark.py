"""Classification sets of CLIP_benchmark, from a folder as it is downloaded to zero-shot and few-shot accuracies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import photos_recipe_content
from trials import picture, tar

from cs_aligner_cli.data.prepared import PreparedData

NAMES = ["red fox", "crane", "crane", "tabby cat"]
LABELS = ["red fox", "crane (1)", "crane (2)", "tabby cat"]


def downloaded(root: Path, shots: int = 3) -> Path:
    """A set of 4 classes with two shards of each split, written as clip_benchmark_export_wds does."""
    for place, split in enumerate(("train", "test")):
        (root / split).mkdir(parents=True)
        for shard in range(2):
            members: list[tuple[str, Any]] = []
            for i in range(2 * shots):
                number = 100 * place + 10 * shard + i
                key = f"s{2 * shots * shard + i:07d}"
                members += [(f"{key}.webp", picture(number, "WEBP")), (f"{key}.cls", str(i % 4))]
            (root / split / f"{shard}.tar").write_bytes(tar(*members))
        (root / split / "nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}, drawn.\n")
    return root


@pytest.fixture
def recipe(tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """A recipe over such a folder, with a tiny open_clip model."""
    content = photos_recipe_content(tmp_path, tmp_path / "run")
    content |= {"train": None, "zero_shot": {"from_data": True}, "eval_retrieval": {"split": "test"}}
    content["data"] = {"manifest": "clip_benchmark_shots", "root": str(downloaded(tmp_path / "wds_birds"))}
    return write_yaml("r.yaml", **content)


def test_a_downloaded_set_is_classified(recipe: Path, csalign: Any, tmp_path: Path) -> None:
    shots = ("--set", "zero_shot.shots=[1, 2]", "--set", "zero_shot.draws=2")
    csalign("prepare", recipe)
    data = PreparedData(tmp_path / "run" / "data")
    test = data.split("test", "")
    expected = [LABELS[i % 4] for _ in range(2) for i in range(6)]
    assert test.labels.tolist() == expected
    names = dict(zip(LABELS, NAMES, strict=True))
    assert test.captions["text"].tolist() == [f"a photo of a {names[label]}." for label in expected]
    csalign("embed", recipe, *shots)
    found = csalign("zero-shot", recipe, "--json", *shots).json
    assert found["templates"] == ["a photo of a {}.", "a {}, drawn."] and found["classes"] == 4
    assert found["zero_shot"]["frozen"]["images"] == 12
    assert found["few_shot"]["frozen"]["zero_shot"]["1"]["mean"] == found["zero_shot"]["frozen"]["accuracy"]
    predictions = pd.read_parquet(tmp_path / "run" / "zero_shot" / "frozen.parquet")
    assert predictions["label"].tolist() == expected and {*predictions["predicted"]} <= {*LABELS}
    assert found["zero_shot"]["frozen"]["accuracy"] == (predictions["label"] == predictions["predicted"]).mean()
    own = ("--set", 'zero_shot.templates=["a {}"]')
    assert csalign("zero-shot", recipe, "--json", *own).json["templates"] == ["a {}"]


def test_labels_of_any_data_set_are_classes(csalign: Any, refused: Callable[..., str], tmp_path: Path) -> None:
    """The tables of photos have no labels, and are refused; scenes have theirs."""
    sets = ("--set", "zero_shot.from_data=true", "--set", f"run_dir={tmp_path / 'run'}", "--set", "train=null")
    few = {"data.manifest": tmp_path / "m.yaml", "eval_retrieval.split": "test"}
    (tmp_path / "m.yaml").write_text("name: m\nkind: scenes\nimages: {train: 4, val: 1, test: 9}\nsize: 32\n")
    (tmp_path / "one.yaml").write_text((tmp_path / "m.yaml").read_text() + "objects: [2]\n")
    config = json.dumps(photos_recipe_content(tmp_path, tmp_path)["encoders"])
    changed = [part for key, value in few.items() for part in ("--set", f"{key}={value}")]
    arguments = ("scenes", *sets, *changed, "--set", f"encoders={config}")
    csalign("prepare", *arguments)
    csalign("embed", *arguments)
    found = csalign("zero-shot", *arguments, "--json").json
    assert found["classes"] == 3 and found["templates"] == ["a photo of a {}."]
    labels = pd.read_parquet(tmp_path / "run" / "zero_shot" / "frozen.parquet")["label"]
    assert sorted(np.unique(labels)) == ["2 shapes", "3 shapes", "4 shapes"]
    one = (*arguments, "--set", f"data.manifest={tmp_path / 'one.yaml'}")
    csalign("prepare", *one)
    csalign("embed", *one)
    assert "zero_shot.from_data: the images have 1 labels; expected at least 2" in refused("zero-shot", *one)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classnames.txt", None, "classes: {root}/classnames.txt: no such file"),
        ("classnames.txt", "fox\n", "names 1 classes; expected one class name a line, at least 2"),
        ("classnames.txt", "fox\n\ncrane\n", "line 2 is empty"),
        ("classnames.txt", "fox\ncrane\nowl\n", "{root}/train/0.tar::s0000003.cls: there is no class 3; those of"),
        ("zeroshot_classification_templates.txt", "a {c}\na {}\n", "templates.txt:2: 'a {}' has no {c}, where"),
        ("zeroshot_classification_templates.txt", "\n", "is empty; expected a prompt a line"),
        ("dataset_type.txt", "multilabel\n", "the set is of type 'multilabel'"),
        ("dataset_type.txt", "retrieval\n", "Retrieval sets have the manifest clip_benchmark."),
    ],
)
def test_what_does_not_fit(
    recipe: Path, refused: Callable[..., str], tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    root = tmp_path / "wds_birds"
    (root / name).unlink(missing_ok=True)
    if content is not None:
        (root / name).write_text(content)
    assert message.replace("{root}", str(root)) in refused("prepare", recipe)
    assert not (tmp_path / "run" / "data").exists()


def test_samples_without_a_class_are_bad(recipe: Path, csalign: Any, tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("b.png", picture(2)), ("b.cls", "two"), ("c.png", picture(3)), ("c.cls", "0")]
    (tmp_path / "wds_birds" / "test" / "2.tar").write_bytes(tar(*members))
    called = csalign("prepare", recipe)
    assert called.exit_code == 3
    assert "a: has no .cls (members .png)" in called.stderr and "b.cls: is no class number: 'two'" in called.stderr
    images = PreparedData(tmp_path / "run" / "data").split("test", "").images
    assert images["label"].tolist()[-3:] == ["", "", "red fox"]


def test_files_and_data_exclude_each_other(recipe: Path, refused: Callable[..., str]) -> None:
    said = refused("zero-shot", recipe, "--set", "zero_shot.classes=classes.txt")
    assert "zero_shot: classes: a file is named, and from_data takes the data set's own; leave one out" in said
