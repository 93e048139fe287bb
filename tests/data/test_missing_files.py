"""Files that are not there are named before any work: by recipe validate, which warns, and by doctor, which fails."""

from __future__ import annotations

from typing import Any

import pytest
from trials import Trial, picture, tar


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


@pytest.mark.parametrize(("there", "absent"), [((0, 2), (1, 3)), ((1, 4), (2, 3))], ids=["from zero", "from one"])
def test_shards_that_are_missing_are_told(trial: Trial, there: tuple[int, int], absent: tuple[int, int]) -> None:
    """Of those whose names say how many they are, all; of others, those before the last."""
    trial.pictures("a.png")

    def put(*numbers: int) -> None:
        for number in numbers:
            trial.put(f"train-{number:05d}-of-00004.csv", f"image,caption\na.png,{number}\n")

    put(*there)
    one, two = (f"train-{number:05d}-of-00004.csv" for number in absent)
    for key, named in (
        ("table", {"table": "train-*.csv", "split_column": None}),
        ("tables.x", {"tables": {"x": "t*"}}),
    ):
        found = trial(kind="table", **named)
        assert (found.code, len(found.captions)) == (0, 2)
        assert f"{key}: 2 of 4 numbered files are not there: {one}, {two}" in found.said
    put(*absent)
    assert "not there" not in trial(kind="table", tables={"x": "train-*.csv"}).said

    for number in (0, 1, 3):
        trial.put(f"{number:05d}.tar", tar((f"{number}.png", picture(number)), (f"{number}.txt", f"of {number}")))
    found = trial(kind="webdataset")
    assert (found.code, found.summary["notes"]) == (0, ["shards.all: 1 of 4 numbered files is not there: 00002.tar"])


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
