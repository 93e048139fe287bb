"""From every kind of source to the two tables: what is kept, what is dropped and why, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from cs_aligner_cli.data.features import FeatureFile
from cs_aligner_cli.data.manifest import MANIFESTS
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.stores.embeddings import StoredArray

Csalign = Callable[..., Any]
WriteYaml = Callable[..., Path]
Refused = Callable[..., str]


@pytest.fixture
def data_recipe(tmp_path: Path, write_yaml: WriteYaml) -> Callable[..., Path]:
    """``data_recipe(root, kind="table", table="x.csv")``: a manifest with these keys and a recipe for it."""

    def write(root: Path | None = None, **manifest: Any) -> Path:
        write_yaml("manifest.yaml", name="mine", **({"root": str(root)} if root else {}), **manifest)
        stored = {"encoders": {"image": {"kind": "features"}}} if manifest["kind"] == "embeddings" else {}
        return write_yaml("recipe.yaml", name="r", run_dir="run", data={"manifest": "manifest.yaml"}, **stored)

    return write


@pytest.fixture
def embeddings_recipe(features_root: Path, data_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """``embeddings_recipe(images={...}, captions={...})``: features_root with these keys of the manifest changed."""

    def write(images: dict[str, Any] | None = None, captions: dict[str, Any] | None = None) -> Path:
        return data_recipe(
            features_root,
            kind="embeddings",
            images={"table": "images.csv", "features": "image_mobilenet_v2.npy", **(images or {})},
            captions={"table": "captions.csv", "features": "text_minilm.npy", **(captions or {})},
        )

    return write


def prepared(csalign: Csalign, recipe: Path, *options: str, code: int = 0) -> tuple[dict[str, Any], PreparedData]:
    called = csalign("prepare", recipe, "--json", *options)
    assert called.exit_code == code, called.stderr
    return called.json if code == 0 else {}, PreparedData(recipe.parent / "run" / "data")


def report(recipe: Path) -> Any:
    return json.loads((recipe.parent / "run" / "data" / "report.json").read_text())


# ---- what each kind of source gives


def test_scenes_are_drawn_and_reported(csalign: Csalign, data_recipe: Callable[..., Path]) -> None:
    recipe = data_recipe(kind="scenes", images={"train": 6, "val": 2, "test": 3}, captions_per_image=4, size=48)
    summary, data = prepared(csalign, recipe)
    assert summary["splits"] == {
        "train": {"images": 6, "captions": 24},
        "val": {"images": 2, "captions": 8},
        "test": {"images": 3, "captions": 12},
    }
    assert summary["bad"] == {"images": 0, "captions": 0, "first": []}
    assert all(found["repeats"] == 0 for found in summary["duplicates"].values())
    for row in data.images.itertuples():
        with Image.open(data.root / str(row.locator)) as image:
            assert image.size == (row.width, row.height) == (48, 48)
    assert list(data.captions["caption_id"]) == [f"{i:08d}" for i in range(44)]


TABLE = [
    # Captions as written, whatever they read; file names that look like numbers stay names.
    ("001.png", "nothing", "train"),
    ("001.png", "NA", "train"),
    ("001.png", "12", "train"),
    ("002.png", '  a "quoted" one, with\na second line ', "dev"),
    ("002.png", "naïve 图片", "dev"),
]


@pytest.fixture
def table_root(tmp_path: Path) -> Path:
    root = tmp_path / "table"
    (root / "pictures").mkdir(parents=True)
    for i, name in enumerate(("001.png", "002.png")):
        Image.new("RGB", (10 + i, 20), (i, 2, 3)).save(root / "pictures" / name)
    return root


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_format_keep_each_cell_as_written(
    suffix: str, table_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    frame = pd.DataFrame(TABLE, columns=["file", "told", "part"])
    path = table_root / f"t.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    names = {
        "image_column": "file",
        "caption_column": "told",
        "split_column": "part",
        "image_dir": "pictures",
    }
    quoting = {"quoting": "csv"} if suffix == "tsv" else {}
    summary, data = prepared(csalign, data_recipe(table_root, kind="table", table=path.name, **names, **quoting))
    assert summary["splits"] == {"train": {"images": 1, "captions": 3}, "dev": {"images": 1, "captions": 2}}
    assert list(data.captions[["image_id", "text", "split"]].itertuples(index=False, name=None)) == TABLE
    assert list(data.images["locator"]) == ["pictures/001.png", "pictures/002.png"]
    assert list(data.images["width"]) == [10, 11]
    split = data.split("train", "x")
    assert list(split.image_of_caption) == [0, 0, 0]
    assert list(data.split("dev", "x").captions["text"]) == [text for _, text, part in TABLE if part == "dev"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_list_of_captions_is_one_row_each(
    suffix: str, table_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    rows = [
        {"image": "pictures/001.png", "caption": ["one", "two", ""], "split": "a"},
        {"image": "pictures/002.png", "caption": [], "split": "a"},
        {"image": None, "caption": ["of no picture"], "split": "b"},
    ]
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(table_root / "t.parquet", index=False)
    else:
        (table_root / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    recipe = data_recipe(table_root, kind="table", table=f"t.{suffix}")
    summary, data = prepared(csalign, recipe, "--set", "data.max_bad_fraction=0.5")
    assert list(data.captions["text"]) == ["one", "two", "of no picture"]
    assert list(data.captions["image_id"].isna()) == [False, False, True]
    assert summary["bad"]["captions"] == 2
    assert summary["splits"] == {"a": {"images": 2, "captions": 2}, "b": {"images": 0, "captions": 1}}


def test_numbers_as_names_and_no_split_column(
    table_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    (table_root / "pictures" / "002.png").rename(table_root / "7")
    (table_root / "t.jsonl").write_text('{"image": 7, "caption": 3.5}\n{"caption": "unpaired"}')
    recipe = data_recipe(table_root, kind="table", table="t.jsonl", split_column=None)
    _, data = prepared(csalign, recipe)
    assert list(data.captions["text"]) == ["3.5", "unpaired"]
    assert list(data.images["image_id"]) == ["7"]
    assert set(data.images["split"]) | set(data.captions["split"]) == {"all"}


def test_a_byte_order_mark_is_no_part_of_the_first_name(
    table_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    (table_root / "t.csv").write_bytes("\ufeffimage,caption,split\r\npictures/001.png,x,a\r\n".encode())
    assert prepared(csalign, data_recipe(table_root, kind="table", table="t.csv"))[0]["splits"]["a"]["images"] == 1


def test_embeddings_keep_the_rows_of_their_features(
    features_root: Path, csalign: Csalign, embeddings_recipe: Callable[..., Path]
) -> None:
    summary, data = prepared(csalign, embeddings_recipe())
    assert summary["splits"]["train"] == {"images": 120, "captions": 600}
    assert list(data.images["feature_row"]) == list(range(200))
    assert list(data.split("dev", "x").captions["feature_row"]) == list(range(600, 800))
    assert summary["unlike_manifest"] == []


def features(kind: str, array: npt.NDArray[np.float32], folder: Path) -> dict[str, Any]:
    """Write features in one of the forms that a manifest may name; return the manifest's keys."""
    if kind.startswith("npy"):
        np.save(folder / "f.npy", array.astype(kind[4:]))
        return {"features": "f.npy"}
    if kind == "bf16":
        save_torch_file({"f": torch.from_numpy(array).bfloat16()}, folder / "f.safetensors")
    elif kind == "several":
        other = np.ones((3, 3), np.int64)
        save_file({"other": other, "mine": array, "zoo": array[::-1].copy()}, folder / "f.safetensors")
        return {"features": "f.safetensors", "tensor": "mine"}
    else:
        save_file({"f": array.astype(kind)}, folder / "f.safetensors")
    return {"features": "f.safetensors"}


KINDS = [
    "npy float16",
    "npy float32",
    "npy float64",
    "npy >f4",
    "float16",
    "float32",
    "float64",
    "bf16",
    "several",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_features_is_read(
    kind: str, features_root: Path, csalign: Csalign, embeddings_recipe: Callable[..., Path]
) -> None:
    array = np.load(features_root / "image_mobilenet_v2.npy").astype(np.float32)
    recipe = embeddings_recipe(images=features(kind, array, features_root))
    prepared(csalign, recipe)
    called = csalign("embed", recipe, "--set", "train=null", "--set", "eval_retrieval.split=dev", "--json")
    assert called.exit_code == 0, called.stderr
    stored = StoredArray(recipe.parent / "run" / "embeddings" / "frozen" / "dev" / "image").all()
    np.testing.assert_allclose(stored, array[120:160], rtol=2**-8 if kind == "bf16" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_feature_rows_come_in_the_order_wanted(kind: str, tmp_path: Path) -> None:
    array = np.arange(2000, dtype=np.float32).reshape(500, 4)
    keys = features(kind, array, tmp_path)
    file = FeatureFile(tmp_path / keys["features"], keys.get("tensor"))
    rows = np.array([499, 3, 3, 0, 250, 3])
    expected = torch.from_numpy(array).bfloat16().float().numpy() if kind == "bf16" else array
    expected = expected.astype(np.float16).astype(np.float32) if "float16" in kind else expected
    found = file.read(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[rows])
    assert file.read(np.array([], np.int64)).shape == (0, 4)


def test_features_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_aligner_cli.data.features._BLOCK_ROWS", 8)
    array = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    np.save(tmp_path / "f.npy", array)
    blocks = list(FeatureFile(tmp_path / "f.npy").blocks())
    assert [len(block) for block in blocks] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(blocks), array)


# ---- what is counted, dropped and reported


def test_duplicates_are_counted_and_leaks_across_splits_reported(
    photos_root: Path, csalign: Csalign, photos_recipe: Path
) -> None:
    images = photos_root / "images"
    (images / "09.png").write_bytes((images / "01.png").read_bytes())  # train and dev
    (images / "05.png").write_bytes((images / "03.png").read_bytes())  # within train
    table = photos_root / "captions.csv"
    table.write_text(table.read_text() + '02.jpg,"noise number 2, told the 0. time",train\n')
    summary, _ = prepared(csalign, photos_recipe)
    assert summary["duplicates"] == {
        "images with the same content": {"repeats": 2, "contents_in_several_splits": 1},
        "captions of one image with the same text": {"repeats": 1, "contents_in_several_splits": 0},
    }


def test_equal_feature_rows_count_as_the_same_image(
    features_root: Path, csalign: Csalign, embeddings_recipe: Callable[..., Path]
) -> None:
    array = np.load(features_root / "image_mobilenet_v2.npy")
    array[199] = array[0]
    np.save(features_root / "image_mobilenet_v2.npy", array)
    summary, _ = prepared(csalign, embeddings_recipe())
    found = summary["duplicates"]["images with the same content"]
    assert found == {"repeats": 1, "contents_in_several_splits": 1}


def huge_png() -> bytes:
    """A PNG of 30,000 x 30,000 black pixels in a few kilobytes: a decompression bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    side = (30_000).to_bytes(4, "big")
    rows = zlib.compress(bytes(3751 * 2000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side * 2 + b"\1\0\0\0\0") + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def merely_large_png() -> bytes:
    """So many pixels that PIL would warn, and not yet refuse."""
    with io.BytesIO() as file:
        Image.new("1", (10_000, 9_000)).save(file, "PNG")
        return file.getvalue()


@pytest.fixture
def spoilt_photos(photos_root: Path) -> dict[str, str]:
    """Spoil some of the photos in every way; returns what their reasons must hold."""
    images = photos_root / "images"
    (images / "00.jpg").unlink()
    (images / "01.png").write_bytes((images / "01.png").read_bytes()[:-200])
    (images / "02.jpg").write_text("<html>404 not found</html>")
    (images / "03.png").write_bytes(huge_png())
    (images / "04.jpg").write_bytes(b"")
    (images / "05.png").unlink()
    (images / "05.png").mkdir()
    (images / "06.jpg").write_bytes((images / "06.jpg").read_bytes()[:700])
    (images / "08.jpg").write_bytes(merely_large_png())
    (images / "10.jpg").unlink()
    os.mkfifo(images / "10.jpg")
    return {
        "00.jpg": "no such file",
        "01.png": "damaged: ",
        "02.jpg": "not an image",
        "03.png": "more than 89478485 pixels",
        "04.jpg": "an empty file",
        "05.png": "a folder",
        "06.jpg": "damaged: ",
        "08.jpg": "more than 89478485 pixels",
        "10.jpg": "no regular file",
    }


@pytest.mark.filterwarnings("default")  # as users run it: what PIL only warns of must be refused, too
def test_bad_images_are_counted_and_listed_and_exit_with_3(
    spoilt_photos: dict[str, str],
    csalign: Csalign,
    photos_recipe: Path,
    write_yaml: WriteYaml,
    tmp_path: Path,
) -> None:
    write_yaml("m.yaml", name="m", kind="table", table="captions.csv", image_dir="images", root="photos")
    photos_recipe.write_text(photos_recipe.read_text().replace("flickr8k_images", "m.yaml"))
    called = csalign("prepare", photos_recipe, "--json")
    assert called.exit_code == 3
    assert called.json["bad_fraction"] > 0  # the result is printed all the same
    assert "9 images are bad: 56.2% of a kind" in called.stderr
    assert "more than data.max_bad_fraction (0.0%)" in called.stderr
    assert "00.jpg: no such file" in called.stderr
    listed = {Path(item["item"]).name: item["reason"] for item in report(photos_recipe)["bad_items"]}
    assert set(listed) == set(spoilt_photos)
    assert all(spoilt_photos[name] in reason for name, reason in listed.items())

    data = PreparedData(tmp_path / "run" / "data")
    assert len(data.images) == 7
    assert len(data.captions) == 14
    assert report(photos_recipe)["skipped"]["captions of dropped or skipped images"] == 18

    stamp = (tmp_path / "run" / "data" / "images.parquet").stat().st_mtime_ns
    assert csalign("prepare", photos_recipe).exit_code == 3
    allowed = csalign("prepare", photos_recipe, "--json", "--set", "data.max_bad_fraction=0.6")
    assert (allowed.exit_code, allowed.json["status"], allowed.json["bad"]["images"]) == (0, "fresh", 9)
    assert (tmp_path / "run" / "data" / "images.parquet").stat().st_mtime_ns == stamp


def test_absent_photos_are_skipped_where_the_manifest_says_so(
    photos_root: Path, csalign: Csalign, photos_recipe: Path
) -> None:
    for name in ("00.jpg", "01.png", "09.png"):
        (photos_root / "images" / name).unlink()
    summary, data = prepared(csalign, photos_recipe)  # flickr8k_images says absent_files: skip
    assert summary["bad"]["images"] == 0
    assert summary["skipped"] == {"images without a file": 3, "captions of dropped or skipped images": 6}
    assert summary["splits"]["train"] == {"images": 6, "captions": 12}
    assert len(data.images) == 13


def test_absent_photos_are_bad_by_default(
    photos_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    (photos_root / "images" / "00.jpg").unlink()
    recipe = data_recipe(photos_root, kind="table", table="captions.csv", image_dir="images")
    prepared(csalign, recipe, code=3)
    assert [item["reason"] for item in report(recipe)["bad_items"]] == ["no such file"]


def test_captions_that_are_empty_or_in_another_split_are_bad(
    photos_root: Path, csalign: Csalign, photos_recipe: Path
) -> None:
    table = photos_root / "captions.csv"
    table.write_text(table.read_text() + '00.jpg,"",train\n00.jpg,"  ",train\n00.jpg,told elsewhere,test\n,alone,dev\n')
    prepared(csalign, photos_recipe, code=3)
    found = [(item["kind"], item["item"], item["reason"]) for item in report(photos_recipe)["bad_items"]]
    assert found == [
        ("caption", "caption 32 (counted from 0) of image 00.jpg", "empty caption"),
        ("caption", "caption 33 (counted from 0) of image 00.jpg", "empty caption"),
        (
            "caption",
            "caption 34 (counted from 0) of image 00.jpg",
            "caption and image are in different splits",
        ),
    ]
    summary, data = prepared(csalign, photos_recipe, "--set", "data.max_bad_fraction=0.1")
    assert summary["bad_fraction"] == pytest.approx(3 / 36)
    assert data.captions["text"].iloc[-1] == "alone"
    assert list(data.split("dev", "x").image_of_caption) == [0, 0, 1, 1, 2, 2, 3, 3, -1]


def test_captions_of_unlisted_images_are_bad(
    features_root: Path, csalign: Csalign, embeddings_recipe: Callable[..., Path]
) -> None:
    captions = pd.read_csv(features_root / "captions.csv")
    captions.loc[captions["image"] == "0003.jpg", "image"] = "9999.jpg"
    captions.loc[captions["image"] == "0004.jpg", "image"] = ""
    captions.to_csv(features_root / "captions.csv", index=False)
    assert csalign("prepare", embeddings_recipe()).exit_code == 3
    summary, data = prepared(csalign, embeddings_recipe(), "--set", "data.max_bad_fraction=0.01")
    assert (summary["skipped"], summary["bad"]["captions"]) == ({}, 5)
    assert summary["bad"]["first"][0]["reason"] == "names the image '9999.jpg', which is not listed"
    assert summary["splits"]["train"] == {"images": 120, "captions": 595}
    assert int(data.captions["image_id"].isna().sum()) == 5
    assert list(data.captions["feature_row"]) == [i for i in range(1000) if not 15 <= i < 20]


def test_counts_unlike_the_manifests_are_reported(csalign: Csalign, features_recipe: Path) -> None:
    summary = csalign("prepare", features_recipe, "--json").json
    assert summary["unlike_manifest"] == [
        "train: the manifest expects 6000 images and 30000 captions, found 120 and 600",
        "dev: the manifest expects 1000 images and 5000 captions, found 40 and 200",
    ]


# ---- freshness


def status(csalign: Csalign, recipe: Path, *options: str) -> str:
    called = csalign("prepare", recipe, "--json", *options)
    assert called.exit_code == 0, called.stderr
    return str(called.json["status"])


def test_only_what_has_changed_is_prepared_again(
    photos_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    recipe = data_recipe(photos_root, kind="table", table="captions.csv", image_dir="images", absent_files="skip")
    assert [status(csalign, recipe) for _ in range(2)] == ["done", "fresh"]
    assert status(csalign, recipe, "--force") == "done"
    for name in ("captions.csv", "images/00.jpg"):
        os.utime(photos_root / name, ns=(0, 0))
        assert [status(csalign, recipe) for _ in range(2)] == ["done", "fresh"]
    (photos_root / "images" / "00.jpg").rename(photos_root / "away")
    assert [status(csalign, recipe) for _ in range(2)] == ["done", "fresh"]
    (photos_root / "away").rename(photos_root / "images" / "00.jpg")
    assert [status(csalign, recipe) for _ in range(2)] == ["done", "fresh"]
    (photos_root / "images" / "of nobody.txt").write_text("")
    assert status(csalign, recipe) == "fresh"
    data_recipe(photos_root, kind="table", table="captions.csv", image_dir="images")
    assert [status(csalign, recipe) for _ in range(2)] == ["done", "fresh"]


def test_a_run_inside_the_data_folder_does_not_make_itself_stale(
    photos_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    for photo in (photos_root / "images").iterdir():
        photo.rename(photos_root / photo.name)
    recipe = data_recipe(photos_root, kind="table", table="captions.csv")
    inside = ("--set", f"run_dir={photos_root / 'runs' / 'mine'}")
    assert [status(csalign, recipe, *inside) for _ in range(2)] == ["done", "fresh"]


def test_changed_features_are_prepared_again(features_root: Path, csalign: Csalign, features_recipe: Path) -> None:
    assert [status(csalign, features_recipe) for _ in range(2)] == ["done", "fresh"]
    for name in ("images.csv", "captions.csv", "image_mobilenet_v2.npy", "text_minilm.npy"):
        os.utime(features_root / name, ns=(0, 0))
        assert [status(csalign, features_recipe) for _ in range(2)] == ["done", "fresh"]


def test_a_refused_source_leaves_the_former_output(
    features_root: Path, csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path
) -> None:
    assert status(csalign, features_recipe) == "done"
    np.save(features_root / "text_minilm.npy", np.full((1000, 16), np.nan, np.float16))
    assert "row 0" in refused("prepare", features_recipe)
    assert len(PreparedData(tmp_path / "run" / "data").captions) == 1000


# ---- what is refused with one message


def test_the_manifest_itself(refused: Refused, write_yaml: WriteYaml, tmp_path: Path) -> None:
    def message(manifest: str, **content: Any) -> str:
        if content:
            write_yaml("m.yaml", **content)
        return refused("prepare", write_yaml("r.yaml", name="r", run_dir="run", data={"manifest": manifest}))

    assert f"{tmp_path / 'gone.yaml'}: no such file" in message("gone.yaml")
    assert "did you mean flickr8k?" in message("flickr8")
    assert "did you mean captions_per_image?" in message("m.yaml", name="m", kind="scenes", captions_per_imge=3)
    assert 'm.yaml:2: kind: got "tabel"; did you mean table?' in message("m.yaml", name="m", kind="tabel")
    assert "kind: this key is required" in message("m.yaml", name="m")
    assert "kind: got " in message("m.yaml", name="m", kind=["table"])
    assert "give either table, a file, or tables, files by split" in message("m.yaml", name="m", kind="table")


def test_the_folder_of_the_data(refused: Refused, write_yaml: WriteYaml, tmp_path: Path) -> None:
    recipe = write_yaml("r.yaml", name="r", run_dir="run", data={"manifest": "flickr8k_images"})
    assert "--set data.root=FOLDER" in refused("prepare", recipe)
    nowhere = tmp_path / "nowhere"
    assert f"data.root: {nowhere} is not a folder" in refused("prepare", recipe, "--set", f"data.root={nowhere}")
    (tmp_path / "empty").mkdir()
    message = refused("prepare", recipe, "--set", f"data.root={tmp_path / 'empty'}")
    assert message == f"{tmp_path / 'empty' / 'captions.csv'}: no such file"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", b"image,captoin,split\na,b,c\n", "no column 'caption'; did you mean captoin?"),
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b"image,caption,split\n", "holds no rows"),
        (
            "t.csv",
            "image,caption,split\na,é,c\n".encode("latin-1"),
            "is not UTF-8 text (it holds the byte 0xe9)",
        ),
        ("t.csv", b"image,caption,split\na,b\n", "line 2 has 2 cells, the header 3"),
        ("t.csv", b'image,caption,split\na,"b,c\na,b,c\n', "is a quote missing or misplaced?"),
        ("t.csv", b"image,caption,split\na,b,\n", "row 0 (counted from 0) has nothing in the column 'split'"),
        ("t.jsonl", b'{"image": "a", "caption": "b", "split": "c"}\n{"image"', "line 2 is not JSON"),
        ("t.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("t.jsonl", b'{"image": "\\ud800"}\n', "line 1 holds half a surrogate pair"),
        (
            "t.jsonl",
            b'{"image": ["a"], "caption": "b", "split": "c"}',
            "has a list in the column 'image', not text",
        ),
        ("t.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("t.xlsx", b"PK", "unknown table format '.xlsx'; expected one of: .csv, .tsv, .txt, .json, .jsonl, "),
    ],
)
def test_tables(
    name: str, text: bytes, message: str, refused: Refused, tmp_path: Path, data_recipe: Callable[..., Path]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / name).write_bytes(text)
    found = refused("prepare", data_recipe(root, kind="table", table=name))
    assert found.startswith(f"{root / name}: ")
    assert message in found


def nan_at(row: int, value: float) -> npt.NDArray[np.float32]:
    array = np.ones((200, 4), np.float32)
    array[row, 2] = value
    return array


def npy(array: npt.NDArray[Any]) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=True)
        return file.getvalue()


class Planted:
    """An object whose unpickling leaves a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


def npz() -> bytes:
    with io.BytesIO() as file:
        np.savez(file, np.ones((200, 4)))
        return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.ones((199, 4))), "holds 199 rows, but "),
        (npy(nan_at(17, np.nan)), "row 17 (counted from 0) holds NaN or infinity"),
        (npy(nan_at(199, -np.inf)), "row 199 (counted from 0) holds NaN or infinity"),
        (npy(nan_at(3, 1).astype(np.float64) * 1e300), "row 0 (counted from 0) holds NaN or infinity"),
        (npy(np.ones(200)), "expected features of shape (rows, dimensions), found (200,)"),
        (npy(np.ones((200, 2, 2))), "expected features of shape (rows, dimensions), found (200, 2, 2)"),
        (npy(np.ones((200, 0))), "expected features of shape (rows, dimensions), found (200, 0)"),
        (npy(np.ones((200, 4), np.int64)), "expected floating-point features, found int64"),
        (npy(np.ones((200, 4), np.complex64)), "expected floating-point features, found complex64"),
        (npy(np.array([[Planted()] * 4] * 200)), "Python objects in dtype"),
        (pickle.dumps(Planted()), "cannot be read as an npy array"),
        (npz(), "cannot be read as an npy array"),
        (npy(np.ones((200, 4)))[:-1], "cannot be read as an npy array"),
        (npy(np.ones((200, 4)))[:40], "cannot be read as an npy array"),
        (b"", "cannot be read as an npy array"),
    ],
)
def test_npy_features(
    content: bytes, message: str, features_root: Path, refused: Refused, features_recipe: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (features_root / "image_mobilenet_v2.npy").write_bytes(content)
    found = refused("prepare", features_recipe)
    assert found.startswith(f"{features_root / 'image_mobilenet_v2.npy'}: ")
    assert message in found
    assert not (tmp_path / "planted").exists()


def test_npy_headers_of_any_damage_are_refused_in_our_words(
    features_root: Path, csalign: Csalign, features_recipe: Path
) -> None:
    whole = (features_root / "image_mobilenet_v2.npy").read_bytes()
    rng = np.random.default_rng(0)
    codes = set()
    for _ in range(20):
        damaged = bytearray(whole)
        for place in rng.integers(0, 128, 2):
            damaged[place] = rng.integers(0, 256)
        (features_root / "image_mobilenet_v2.npy").write_bytes(damaged)
        codes.add(csalign("prepare", features_recipe, "-q").exit_code)
    assert codes in ({2}, {0, 2})


@pytest.mark.parametrize(
    ("tensors", "tensor", "message"),
    [
        ({"a": np.ones((200, 4)), "b": np.ones((200, 4))}, None, "the manifest's key tensor: a, b"),
        (
            {"image": np.ones((200, 4)), "b": np.ones((200, 4))},
            "imge",
            "no tensor 'imge'; did you mean image?",
        ),
        ({}, None, "the manifest's key tensor: none"),
        ({"a": np.ones((200, 4), np.int32)}, None, "expected floating-point features, found I32"),
        ({"a": np.ones(4)}, None, "found (4,)"),
        ({"a": np.ones((0, 4))}, None, "found (0, 4)"),
        ({"a": np.ones((7, 4))}, None, "holds 7 rows, but "),
        ({"a": nan_at(8, np.nan)}, None, "row 8 (counted from 0)"),
    ],
)
def test_safetensors_features(
    tensors: dict[str, Any], tensor: str | None, message: str, features_root: Path, refused: Refused,
    embeddings_recipe: Callable[..., Path],
) -> None:  # fmt: skip
    save_file(tensors, features_root / "f.safetensors")
    found = refused("prepare", embeddings_recipe(images={"features": "f.safetensors", "tensor": tensor}))
    assert found.startswith(f"{features_root / 'f.safetensors'}: ")
    assert message in found


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_damaged_safetensors(
    kept: int, features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    path = features_root / "f.safetensors"
    save_file({"a": np.ones((200, 4), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refused("prepare", embeddings_recipe(images={"features": path.name}))
    assert message.startswith(f"{path}: cannot be read as safetensors")


def test_features_that_are_missing_or_of_another_format(
    features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    (features_root / "f.mat").write_bytes(b"")
    assert refused("prepare", embeddings_recipe(captions={"features": "gone.npy"})).endswith("gone.npy: no such file")
    message = refused("prepare", embeddings_recipe(captions={"features": "f.mat"}))
    assert "unknown feature format '.mat'; expected one of: .npy, .safetensors, .npz, .pt," in message


def test_an_image_that_is_listed_twice(
    features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    table = features_root / "images.csv"
    table.write_text(table.read_text().replace("0007.jpg", "0006.jpg"))
    assert "images.csv: the id '0006.jpg' is there twice, with unlike features" in refused(
        "prepare", embeddings_recipe()
    )


def test_a_list_of_captions_cannot_align_with_feature_rows(
    features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    rows = [{"image": "0000.jpg", "caption": ["a", "b"], "split": "train"}] * 1000
    (features_root / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "has a list in the column 'caption'" in refused("prepare", embeddings_recipe(captions={"table": "c.jsonl"}))


def test_nothing_usable_is_left(refused: Refused, photos_root: Path, data_recipe: Callable[..., Path]) -> None:
    for photo in (photos_root / "images").iterdir():
        photo.write_text("no photo")
    recipe = data_recipe(photos_root, kind="table", table="captions.csv", image_dir="images")
    message = refused("prepare", recipe, "--set", "data.max_bad_fraction=1")
    assert "no usable images and captions are left" in message
    assert "00.jpg: not an image" in message


def test_names_that_do_not_match_leave_nothing_and_say_why(
    features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    table = features_root / "images.csv"
    table.write_text(table.read_text().replace(".jpg", ""))
    message = refused("prepare", embeddings_recipe())
    assert "no usable captions are left" in message
    assert "names the image '0000.jpg', which is not listed, but '0000' is: write both in the same way" in message


def test_ids_that_no_image_has_are_shown_beside_those_that_there_are(
    features_root: Path, refused: Refused, embeddings_recipe: Callable[..., Path]
) -> None:
    table = features_root / "captions.csv"
    captions = pd.read_csv(table)
    captions.assign(image="img_" + captions["image"]).to_csv(table, index=False)
    message = refused("prepare", embeddings_recipe())
    assert "names the image 'img_0000.jpg', which is not listed" in message
    assert "Images that are listed: 0000.jpg, 0001.jpg, " in message
    assert "swapped" not in message
    captions.rename(columns={"image": "caption", "caption": "image"}).to_csv(table, index=False)
    assert "are image and caption column swapped?" in refused("prepare", embeddings_recipe())


def test_names_too_long_for_a_file_are_bad_images(
    table_root: Path, csalign: Csalign, data_recipe: Callable[..., Path]
) -> None:
    rows = [("pictures/001.png", "fine", "a"), ("a caption in the wrong column " * 12, "x.png", "a")]
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_csv(table_root / "t.csv", index=False)
    recipe = data_recipe(table_root, kind="table", table="t.csv", absent_files="skip")
    prepared(csalign, recipe, code=3)
    assert [item["reason"] for item in report(recipe)["bad_items"]] == ["cannot be read: File name too long"]


def test_yaml_of_the_shelf_is_what_the_readers_take() -> None:
    folder = Path(__file__).parents[2] / "data_manifests"
    assert {yaml.safe_load(path.read_text())["kind"] for path in folder.glob("*.yaml")} == set(MANIFESTS)


def test_columns_of_prepared_tables_lie_in_one_piece(tmp_path: Path) -> None:
    """Rows are taken of them batch by batch, which joins the pieces of a column every time."""
    for name in ("images", "captions"):
        frame = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(40)], "text": [f"{i} dogs" for i in range(40)]})
        frame.to_parquet(tmp_path / f"{name}.parquet", row_group_size=3)
    (tmp_path / "source.json").write_text("{}")
    data = PreparedData(tmp_path)
    for table, name in ((data.images, "images"), (data.captions, "captions")):
        assert table.equals(pd.read_parquet(tmp_path / f"{name}.parquet"))
        assert all(getattr(pa.array(table[column]), "num_chunks", 1) == 1 for column in table)
