"""What the gap report refuses, with one message and exit code 2: too few pairs, unusable rows, absent parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import features_recipe_content, make_features

Csalign = Callable[..., Any]


class Untrained:
    """Two frozen towers of one dimension over features that a test may spoil; the stages before the report are run."""

    def __init__(self, root: Path, csalign: Csalign, recipe: Path) -> None:
        self.root, self.csalign, self.recipe = root, csalign, recipe

    def features(self, modality: str) -> Path:
        return self.root / {"image": "image_mobilenet_v2.npy", "text": "text_minilm.npy"}[modality]

    def rows_of(self, modality: str, split: str) -> np.ndarray:
        table = {"image": "images.csv", "text": "captions.csv"}[modality]
        return np.flatnonzero(pd.read_csv(self.root / table)["split"] == split)

    def change(self, modality: str, rows: Any, value: float) -> None:
        features = np.load(self.features(modality))
        features[rows] = value
        np.save(self.features(modality), features)

    def embedded(self) -> Untrained:
        for stage in ("prepare", "embed"):
            called = self.csalign(stage, self.recipe, "-q")
            assert called.exit_code == 0, called.stderr
        return self


@pytest.fixture
def untrained(tmp_path: Path, csalign: Csalign, write_yaml: Callable[..., Path]) -> Callable[..., Untrained]:
    def make(splits: dict[str, int]) -> Untrained:
        root = make_features(tmp_path / "features", splits)
        image = np.load(root / "image_mobilenet_v2.npy")
        np.save(root / "image_mobilenet_v2.npy", image[:, :16])
        content = features_recipe_content(root, tmp_path / "run")
        content |= {"train": None, "gap_report": {"baselines": {"frozen": []}}}
        content["encoders"] = {"image": {"kind": "features"}, "text": {"kind": "features"}}
        return Untrained(root, csalign, write_yaml("untrained.yaml", **content))

    return make


def test_one_pair_only(untrained: Callable[..., Untrained], refused: Callable[..., str]) -> None:
    made = untrained({"train": 20, "dev": 1}).embedded()
    assert "frozen store of split dev: the gap needs at least 4 pairs, got 1" in refused("gap-report", made.recipe)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_constant_features(untrained: Callable[..., Untrained], refused: Callable[..., str], modality: str) -> None:
    made = untrained({"train": 20, "dev": 12})
    made.change(modality, slice(None), 0.5)
    message = refused("gap-report", made.embedded().recipe)
    assert f"frozen store of split dev: {modality}: all 12 rows are equal" in message
    assert "a tower may have collapsed" in message
    assert not (made.recipe.parent / "run" / "gap_report").exists()


def test_zero_rows(untrained: Callable[..., Untrained], refused: Callable[..., str]) -> None:
    made = untrained({"train": 20, "dev": 12})
    rows = made.rows_of("image", "dev")[[3, 7]]
    made.change("image", rows, 0.0)
    message = refused("prepare", made.recipe)
    assert f"image_mobilenet_v2.npy: row {rows[0]} (counted from 0) is all zeros" in message


def test_nan_rows_in_the_data_and_in_a_store(untrained: Callable[..., Untrained], refused: Callable[..., str]) -> None:
    made = untrained({"train": 20, "dev": 12}).embedded()
    shard = made.recipe.parent / "run" / "embeddings" / "frozen" / "dev" / "image" / "shard-00000.npy"
    stored = np.lib.format.open_memmap(shard, mode="r+")
    stored[5, 2] = np.nan
    stored.flush()
    assert f"{shard}: is damaged: its content does not have the checksum" in refused("gap-report", made.recipe)

    row = int(made.rows_of("text", "dev")[8])
    made.change("text", row, np.nan)
    assert f"text_minilm.npy: row {row} (counted from 0) holds NaN or infinity" in refused("prepare", made.recipe)


def test_a_missing_modality(untrained: Callable[..., Untrained], refused: Callable[..., str]) -> None:
    made = untrained({"train": 20, "dev": 12}).embedded()
    shard = made.recipe.parent / "run" / "embeddings" / "frozen" / "dev" / "text" / "shard-00000.npy"
    shard.unlink()
    message = refused("gap-report", made.recipe)
    assert f"{shard}: is missing or cut short" in message
    assert "Make the frozen store of split dev again: csalign embed" in message

    captions = pd.read_csv(made.root / "captions.csv")
    kept = captions["split"] != "dev"
    captions[kept].to_csv(made.root / "captions.csv", index=False)
    np.save(made.features("text"), np.load(made.features("text"))[kept])
    assert made.csalign("prepare", made.recipe, "-q").exit_code == 0
    assert "split 'dev' has no captions (splits: dev, train)" in refused("embed", made.recipe)


def test_stores_with_other_keys(
    untrained: Callable[..., Untrained], refused: Callable[..., str], tmp_path: Path
) -> None:
    made = untrained({"train": 20, "dev": 12}).embedded()
    (tmp_path / "run").rename(tmp_path / "other")
    images = pd.read_csv(made.root / "images.csv").replace("0023.jpg", "9999.jpg")
    images.to_csv(made.root / "images.csv", index=False)
    captions = pd.read_csv(made.root / "captions.csv").replace("0023.jpg", "9999.jpg")
    captions.to_csv(made.root / "captions.csv", index=False)
    message = refused("gap-report", made.embedded().recipe, f"--set=gap_report.beside=[{tmp_path / 'other'}]")
    expected = (
        "other:frozen holds other items than split 'dev' of this run: image_id of row 3 is 0023.jpg, expected 9999.jpg"
    )
    assert expected in message


def report_of_labels(
    made: Untrained, csalign: Csalign, folder: Path, label: Callable[[pd.DataFrame], list[str]]
) -> Any:
    """What gap-report says of the data with a column of labels."""
    images = pd.read_csv(made.root / "images.csv")
    images.assign(scene=label(images)).to_csv(made.root / "images.csv", index=False)
    (folder / "labelled.yaml").write_text(
        json.dumps(
            {
                "name": "labelled",
                "kind": "embeddings",
                "images": {"table": "images.csv", "features": "image_mobilenet_v2.npy", "label_column": "scene"},
                "captions": {"table": "captions.csv", "features": "text_minilm.npy"},
            }
        )
    )
    manifest = f"--set=data.manifest={folder / 'labelled.yaml'}"
    for stage in ("prepare", "embed"):
        assert csalign(stage, made.recipe, "-q", manifest).exit_code == 0
    called = csalign("gap-report", made.recipe, "-q", "--json", manifest)
    assert called.exit_code == 0, called.stderr
    return called.json


def test_labels_of_a_table_reach_the_report(
    untrained: Callable[..., Untrained], csalign: Csalign, tmp_path: Path
) -> None:
    made = untrained({"train": 20, "dev": 40})
    signal = np.load(made.features("image"))[:, 0] > 0
    said = report_of_labels(made, csalign, tmp_path, lambda _: list(np.where(signal, "inside", "outside")))
    assert {"label_ari", "label_v_measure"} <= set(said["gap_report"]["frozen"])
    assert "Clusters are not held" not in " ".join(said["notes"])
    report = json.loads((tmp_path / "run" / "gap_report" / "report.json").read_text())
    assert report["samples"]["frozen"]["label_ari"] == 40
    assert "Clusters against labels (ARI)" in (tmp_path / "run" / "gap_report" / "report.html").read_text()


def test_labels_of_few_pairs_each_are_told(
    untrained: Callable[..., Untrained], csalign: Csalign, tmp_path: Path
) -> None:
    made = untrained({"train": 20, "dev": 40})
    said = report_of_labels(made, csalign, tmp_path, lambda images: [f"scene {i // 3}" for i in range(len(images))])
    assert "label_ari" not in said["gap_report"]["frozen"]
    assert any("two labels at least, each of 10 pairs" in note for note in said["notes"])


def test_one_image_with_two_labels(
    photos_root: Path, write_yaml: Callable[..., Path], refused: Callable[..., str]
) -> None:
    rows = pd.read_csv(photos_root / "captions.csv")
    rows.assign(kind=[f"kind {i}" for i in range(len(rows))]).to_csv(photos_root / "captions.csv", index=False)
    manifest = write_yaml(
        "m.yaml", name="m", kind="table", table="captions.csv", image_dir="images", label_column="kind"
    )
    recipe = write_yaml("r.yaml", name="r", data={"manifest": str(manifest), "root": str(photos_root)})
    message = refused("prepare", recipe)
    assert "captions.csv: image '00.jpg' has two labels: 'kind 0' and 'kind 1'" in message


def test_a_projection_that_is_not_installed(
    untrained: Callable[..., Untrained], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = untrained({"train": 20, "dev": 12}).embedded()
    monkeypatch.setitem(sys.modules, "umap", None)
    message = refused("gap-report", made.recipe, "--set=gap_report.projection=umap")
    assert "gap_report.projection needs umap, which is not installed" in message
    assert "pip install" in message
    assert not (tmp_path / "run" / "gap_report.partial").exists()
