"""What prepare found of the data is repeated by `csalign run`: on stderr, in its JSON, on the report's first page."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Csalign

WriteYaml = Callable[..., Path]


@pytest.fixture
def paired(tmp_path: Path, write_yaml: WriteYaml) -> Callable[..., Path]:
    """``paired(images, captions)``: a recipe over features of (id, split) and (id, caption, split) rows."""

    def make(images: list[tuple[str, str]], captions: list[tuple[str, str, str]]) -> Path:
        rng = np.random.default_rng(0)
        for name, header, rows in (("i", "image,split", images), ("c", "image,caption,split", captions)):
            lines = [header, *(",".join(row) for row in rows)]
            (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
            np.save(tmp_path / f"{name}.npy", rng.standard_normal((len(rows), 8)).astype(np.float32))
        write_yaml(
            "m.yaml",
            name="m",
            kind="embeddings",
            root=".",
            images={"table": "i.csv", "id_column": "image", "features": "i.npy"},
            captions={"table": "c.csv", "image_column": "image", "caption_column": "caption", "features": "c.npy"},
        )
        return write_yaml(
            "r.yaml",
            name="x",
            run_dir=str(tmp_path / "run"),
            data={"manifest": "m.yaml"},
            encoders={"image": {"kind": "features"}, "text": {"kind": "features"}},
            train=None,
            eval_retrieval={"bootstrap": 0},
            gap_report={"examples": 0, "baselines": {"frozen": []}},
        )

    return make


def test_ids_that_differ_in_zeros_are_bad_captions_and_are_said_by_run(
    csalign: Csalign, paired: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = paired([(str(i), "test") for i in range(40)], [(f"{i:02d}", f"cap {i}", "test") for i in range(40)])
    called = csalign("run", recipe)
    assert called.exit_code == 3
    assert "10 captions are bad" in called.stderr
    assert "names the image '00', which is not listed, but '0' is" in called.stderr

    called = csalign("run", recipe, "--json", "--set", "data.max_bad_fraction=0.5")
    assert called.exit_code == 0
    found = called.json["findings"]
    assert found[0] == "split test: 10 of 40 images have no captions"
    assert found[1].startswith("10 bad captions left out, as caption 0 (counted from 0) of image 00")
    assert all(finding in called.stderr for finding in found)
    for file in ("report.md", "report.html"):
        page = html.unescape((tmp_path / "run" / "gap_report" / file).read_text(encoding="utf-8"))
        assert all(f"Of the data: {finding}." in page for finding in found), file
    # On the page they stand before every table, in a frame of their own.
    assert 0 < page.index("Of the data: ") < page.index("<table")
    again = csalign("run", recipe, "--json", "--set", "data.max_bad_fraction=0.5")
    assert (again.json["findings"], set(again.json["status"].values())) == (found, {"fresh"})
    assert found[1] in again.stderr


def test_classes_as_captions_are_said_to_be_few_texts(csalign: Csalign, paired: Callable[..., Path]) -> None:
    splits = [("train" if i < 30 else "test") for i in range(50)]
    images = [(f"i{i}", split) for i, split in enumerate(splits)]
    recipe = paired(images, [(f"i{i}", f"a photo of class {i % 4}", split) for i, split in enumerate(splits)])
    called = csalign("run", recipe, "--json", "--quiet")
    assert "warning: split test: 20 captions, 4 different texts" in called.stderr  # also with --quiet
    assert any("split train: 30 captions, 4 different texts" in finding for finding in called.json["findings"])
    assert "20 captions of split test say what one of another split says" in called.json["findings"]
    assert any("4 different texts" in note for note in called.json["notes"])


def test_flawless_data_give_no_findings(csalign: Csalign, paired: Callable[..., Path]) -> None:
    recipe = paired([(f"i{i}", "test") for i in range(20)], [(f"i{i}", f"cap {i}", "test") for i in range(20)])
    called = csalign("run", recipe, "--json", "--set", "eval_retrieval.ks=[1]")
    assert called.json["findings"] == []
    assert "warning" not in called.stderr


def test_captions_without_a_split_column_are_in_their_images_split(
    csalign: Csalign, refused: Callable[..., str], paired: Callable[..., Path], tmp_path: Path
) -> None:
    splits = ["train"] * 12 + ["test"] * 8
    recipe = paired(
        [(f"i{i}", split) for i, split in enumerate(splits)],
        [(f"i{i}", f"cap {i}", split) for i, split in enumerate(splits)],
    )
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f"i{i},cap {i}\n" for i in range(20)), encoding="utf-8")
    assert "Without such a column: split_column: null" in refused("prepare", recipe)
    manifest = tmp_path / "m.yaml"
    stated = manifest.read_text(encoding="utf-8").replace("  caption_column", "  split_column: null\n  caption_column")
    manifest.write_text(stated, encoding="utf-8")
    counts = csalign("prepare", recipe, "--json").json["splits"]
    assert counts == {"train": {"images": 12, "captions": 12}, "test": {"images": 8, "captions": 8}}
