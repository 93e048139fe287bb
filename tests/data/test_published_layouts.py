"""Each shipped manifest of a published data set reads a made file of that shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trials import PICTURES, Trial, picture, tar


@pytest.fixture
def shipped(trial: Trial, write_yaml: Callable[..., Path]) -> Callable[..., Any]:
    """``shipped("roco")``: prepare over the shipped manifest, with the trial's folder as root."""

    def call(name: str, *options: str) -> Any:
        data = {"manifest": name, "root": "data"}
        recipe = write_yaml("r.yaml", name="x", run_dir="run", data=data, train=None, encoders=PICTURES)
        return trial.run("prepare", recipe, "--json", *options)

    return call


def test_flickr8k_of_kaggle(trial: Trial, shipped: Callable[..., Any]) -> None:
    trial.pictures(*(f"Images/{i}.jpg" for i in range(16)))
    rows = [(f"{i}.jpg", f'A dog, "{k}" of {i} .') for i in range(16) for k in range(2)]
    pd.DataFrame(rows, columns=["image", "caption"]).to_csv(trial.root / "captions.txt", index=False)
    found = shipped("flickr8k_kaggle")
    assert (found.code, found.captions) == (0, rows)
    assert found.splits == {"train": (12, 24), "val": (2, 4), "test": (2, 4)}


def test_flickr30k_of_kaggle(trial: Trial, shipped: Callable[..., Any]) -> None:
    trial.pictures(*(f"flickr30k_images/{i}.jpg" for i in range(4)))
    rows = [(f"{i}.jpg", f'Two "men" , {k} of {i} .') for i in range(4) for k in range(5)]
    lines = [f"{image}| {k % 5}| {text}" for k, (image, text) in enumerate(rows)]
    trial.put("results.csv", "\n".join(["image_name| comment_number| comment", *lines, "3.jpg| 4   A dog runs ."]))
    found = shipped("flickr30k_kaggle", "--set", "data.max_bad_fraction=0.1")
    assert (found.code, found.captions) == (0, rows)
    assert found.bad == [("results.csv", "line 22 has 2 cells, the header 3")]


def test_flickr30k_of_nlphuji(trial: Trial, shipped: Callable[..., Any]) -> None:
    trial.pictures("flickr30k-images/0.jpg", "flickr30k-images/1.jpg")
    texts = [[f"Two men, {k} of {i}" for k in range(5)] for i in range(2)]
    columns = {"sentids": "[0]", "split": ["train", "test"], "img_id": [0, 1]}
    frame = pd.DataFrame({**columns, "raw": list(map(json.dumps, texts)), "filename": ["0.jpg", "1.jpg"]})
    frame.to_csv(trial.root / "flickr_annotations_30k.csv", index=False)
    found = shipped("flickr30k_nlphuji")
    assert found.captions == [(f"{i}.jpg", text) for i in range(2) for text in texts[i]]
    assert found.splits == {"train": (1, 5), "test": (1, 5)}


def test_coco_of_lmms_lab(trial: Trial, shipped: Callable[..., Any]) -> None:
    rows = [
        {
            "question_id": f"COCO_val2014_{i:012d}.jpg",
            "image": {"bytes": picture(i), "path": f"COCO_val2014_{i:012d}.jpg"},
            "answer": [f"{k} of {i}" for k in range(5)],
        }
        for i in range(3)
    ]
    (trial.root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), trial.root / "data" / "val-00000-of-00001.parquet", row_group_size=2)
    found = shipped("coco_lmms_lab")
    assert found.captions == [(row["question_id"], text) for row in rows for text in row["answer"]]
    assert found.splits == {"val": (3, 15)}


def test_roco(trial: Trial, shipped: Callable[..., Any]) -> None:
    for i, split in enumerate(("train", "validation", "test")):
        trial.put(f"{split}/radiology/images/ROCO_{i}.jpg", picture(i))
        trial.put(f"{split}/radiology/captions.txt", f'ROCO_{i}\t Chest "X-ray, {i}\nROCO_9{i}\tof a dead link\n')
    found = shipped("roco")
    assert (found.code, found.splits) == (0, {"train": (1, 1), "validation": (1, 1), "test": (1, 1)})
    assert [text.strip() for _, text in found.captions] == [f'Chest "X-ray, {i}' for i in range(3)]
    assert found.summary["skipped"]["images without a file"] == 3


def test_coco_of_blip(trial: Trial, shipped: Callable[..., Any]) -> None:
    trial.pictures("train2014/0.jpg", "val2014/1.jpg", "val2014/2.jpg")
    trial.put("coco_karpathy_train.json", [{"image": "train2014/0.jpg", "caption": t, "image_id": "x"} for t in "ab"])
    for split, i in (("val", 1), ("test", 2)):
        trial.put(f"coco_karpathy_{split}.json", [{"image": f"val2014/{i}.jpg", "caption": ["c", "d"]}])
    found = shipped("coco_blip")
    assert (found.code, found.splits) == (0, {"train": (1, 2), "val": (1, 2), "test": (1, 2)})


def test_sets_of_clip_benchmark(trial: Trial, shipped: Callable[..., Any]) -> None:
    members = [(f"s{i:07d}.{x}", y) for i in range(2) for x, y in (("jpg", picture(i)), ("txt", f"one {i}\ntwo {i}"))]
    trial.put("test/0.tar", tar(*members))
    found = shipped("clip_benchmark")
    assert (found.code, found.splits) == (0, {"test": (2, 4)})
