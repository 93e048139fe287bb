"""Files that are not there are named before any work: by recipe validate, which warns, and by doctor, which fails."""

from __future__ import annotations

from typing import Any

import pytest
from trials import Trial


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"kind": "webdataset", "shards": {"train": "train/*.tar"}}, "shards.train: "),
        ({"kind": "table", "table": "captoins.csv"}, "captoins.csv: no such file"),
        ({"kind": "table", "tables": {"train": "x-*.csv"}}, "tables.train: "),
        ({"kind": "karpathy", "annotations": "k.json"}, "annotations: "),
        ({"kind": "coco", "splits": {"val": {"captions": "c.json", "image_dir": "."}}}, "splits.val.captions: "),
        ({"kind": "embeddings", "images": {"table": "i.csv", "features": "f.npy"}}, "images.table: "),
    ],
)
def test_missing_files_are_named_before_any_work(trial: Trial, manifest: dict[str, Any], said: str) -> None:
    recipe = trial.recipe(**manifest)
    found = trial.run("recipe", "validate", recipe)
    assert found.code == 0 and "not here: " in found.said and said in found.said


@pytest.mark.parametrize(("there", "said"), [(False, "images.tokens.features: "), (True, "images.tokens.mask: ")])
def test_missing_token_features_and_masks_are_named(trial: Trial, there: bool, said: str) -> None:
    for name in ("i.csv", "f.npy", *(["t.npy"] if there else [])):
        trial.put(name, "")
    images = {"table": "i.csv", "features": "f.npy", "tokens": {"features": "t.npy", "mask": "m.npy"}}
    assert said in trial.run("recipe", "validate", trial.recipe(kind="embeddings", images=images)).said


def test_doctor_fails_on_missing_files(trial: Trial) -> None:
    found = trial.run("doctor", trial.recipe(kind="webdataset", shards={"train": "train/*.tar"}), "--json")
    assert found.code != 0
    assert "shards.train" in str(found.summary)
