"""Every published layout becomes the same two tables: Karpathy, COCO, folders, conversations, shards, embeddings."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.images import read_image
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.stores.embeddings import Store

Csalign = Callable[..., Any]
Refused = Callable[..., str]
Prepared = Callable[..., tuple[dict[str, Any], PreparedData]]
MakeRecipe = Callable[..., Path]


@pytest.fixture
def make_recipe(tmp_path: Path, write_yaml: Callable[..., Path], tiny_clip_config: dict[str, Any]) -> MakeRecipe:
    """``make_recipe(kind="karpathy", ...)``: a manifest with these keys over tmp_path / "data", and a recipe for it."""

    def make(name: str = "recipe", sections: dict[str, Any] | None = None, root: str = "data", **manifest: Any) -> Path:
        write_yaml(f"{name}_manifest.yaml", name="mine", root=root, **manifest)
        image = {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}
        if manifest["kind"] == "clip_retrieval":
            image = {"kind": "features"}
        content = {"train": None, "encoders": {"image": image}, **(sections or {})}
        data = {"manifest": f"{name}_manifest.yaml"}
        return write_yaml(f"{name}.yaml", name=name, run_dir=f"run_{name}", data=data, **content)

    return make


@pytest.fixture
def prepared(csalign: Csalign) -> Prepared:
    """``prepared(recipe, code=0)``: the summary of prepare and what it wrote."""

    def call(recipe: Path, *options: str, code: int = 0) -> tuple[dict[str, Any], PreparedData]:
        called = csalign("prepare", recipe, "--json", *options)
        assert called.exit_code == code, called.stderr
        return called.json, PreparedData(recipe.parent / f"run_{recipe.stem}" / "data")

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder that manifests of ``make_recipe`` mean."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(number: int, form: str = "PNG") -> bytes:
    """A small picture, another for every number, that no other one resembles."""
    rng = np.random.default_rng(number)
    with io.BytesIO() as file:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(file, form)
        return file.getvalue()


def put(path: Path, content: bytes | str | dict[str, Any] | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)


def rows(data: PreparedData) -> list[tuple[Any, ...]]:
    """(image_id, split, text) of every caption."""
    frame = data.captions[["image_id", "split", "text"]].astype(object)
    return list(frame.where(frame.notna(), None).itertuples(index=False, name=None))


def bad_items(recipe: Path) -> list[tuple[str, str, str]]:
    report = json.loads((recipe.parent / f"run_{recipe.stem}" / "data" / "report.json").read_text())
    return [(item["kind"], item["item"], item["reason"]) for item in report["bad_items"]]


# ---- Karpathy


def karpathy(data: Path, **restval: Any) -> dict[str, Any]:
    images = [
        {"filename": "a.png", "filepath": "val2014", "split": "train", "sentences": [{"raw": "one"}, {"raw": "two"}]},
        {"filename": "b.png", "filepath": "val2014", "split": "restval", "sentences": [{"raw": "three"}]},
        {"filename": "c.png", "split": "test", "sentences": [{"raw": "four", "tokens": ["four"]}], "cocoid": 7},
    ]
    put(data / "dataset_x.json", {"images": images, "dataset": "x"})
    for i, name in enumerate(("val2014/a.png", "val2014/b.png", "c.png")):
        put(data / "photos" / name, picture(i))
    return {"kind": "karpathy", "annotations": "dataset_x.json", "image_dir": "photos", **restval}


@pytest.mark.parametrize(("restval", "split"), [("train", "train"), ("restval", "restval"), ("drop", None)])
def test_karpathy(restval: str, split: str | None, data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    summary, found = prepared(make_recipe(**karpathy(data, restval=restval)))
    expected = [
        ("a.png", "train", "one"),
        ("a.png", "train", "two"),
        ("b.png", split, "three"),
        ("c.png", "test", "four"),
    ]
    assert rows(found) == [row for row in expected if row[1] is not None]
    assert summary["skipped"] == ({"images of the split restval": 1} if split is None else {})
    assert next(iter(found.images["locator"])) == "photos/val2014/a.png"


def test_photos_that_arrive_later_make_the_data_stale(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    recipe = make_recipe(**karpathy(data))
    (data / "photos" / "c.png").rename(data / "away")
    assert prepared(recipe, code=3)[0]["status"] == "done"
    assert prepared(recipe, code=3)[0]["status"] == "fresh"
    (data / "away").rename(data / "photos" / "c.png")
    assert prepared(recipe)[0]["status"] == "done"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"imges": []}', "dataset_x.json: expected an object with a list 'images'; did you mean imges?"),
        ("[1]", "dataset_x.json: expected an object with a list 'images'"),
        ('{"images": [{"filename": "a.png"', "dataset_x.json: cannot be read as JSON: "),
        ('{"images": [7]}', "images[0]: expected an object with keys, found a number"),
        ('{"images": [{"filename": "a.png"}]}', "images[0]: no key 'split'; expected one of: filename"),
        ('{"images": [{"split": " ", "filename": "a.png"}]}', "images[0].split: is empty"),
        ('{"images": [{"split": "x", "filename": 1}]}', "images[0].filename: expected text, found a number"),
        (
            '{"images": [{"split": "x", "filename": "a", "sentences": {}}]}',
            "images[0].sentences: expected a list, found an object",
        ),
        (
            '{"images": [{"split": "x", "filename": "a", "sentences": [{"rav": "x"}]}]}',
            "images[0].sentences: no key 'raw'; did you mean rav?",
        ),
    ],
)
def test_a_wrong_karpathy_file(
    content: str, message: str, data: Path, make_recipe: MakeRecipe, refused: Refused
) -> None:
    recipe = make_recipe(**karpathy(data))
    put(data / "dataset_x.json", content)
    assert message in refused("prepare", recipe)


def test_a_photo_that_is_listed_twice_is_kept_once(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    recipe = make_recipe(**karpathy(data))
    path = data / "dataset_x.json"
    content = json.loads(path.read_text())
    put(path, {"images": [*content["images"], content["images"][0]]})
    _, found = prepared(recipe)
    assert list(found.images["image_id"]) == ["a.png", "b.png", "c.png"]
    assert [text for owner, _, text in rows(found) if owner == "a.png"] == ["one", "two"] * 2


# ---- COCO


def coco(data: Path) -> dict[str, Any]:
    for i, split in enumerate(("train", "val")):
        images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 32}, {"id": 20 + i, "file_name": f"{i + 2}.png"}]
        annotations = [
            {"id": 1, "image_id": 20 + i, "caption": f"of {i + 2}"},
            {"id": 2, "image_id": 10 + i, "caption": f"of {i}"},
            {"id": 3, "image_id": 20 + i, "caption": f"also of {i + 2}\n"},
        ]
        put(data / f"captions_{split}.json", {"info": {}, "images": images, "annotations": annotations})
        for number in (i, i + 2):
            put(data / split / f"{number}.png", picture(number))
    splits = {split: {"captions": f"captions_{split}.json", "image_dir": split} for split in ("train", "val")}
    return {"kind": "coco", "splits": splits}


def test_coco(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    summary, found = prepared(make_recipe(**coco(data)))
    assert summary["splits"] == {name: {"images": 2, "captions": 3} for name in ("train", "val")}
    assert rows(found)[:3] == [
        ("2.png", "train", "of 2"),
        ("0.png", "train", "of 0"),
        ("2.png", "train", "also of 2\n"),
    ]
    assert list(found.images["locator"]) == ["train/0.png", "train/2.png", "val/1.png", "val/3.png"]


def test_coco_annotations_of_unlisted_images_are_bad(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    recipe = make_recipe(**coco(data))
    path = data / "captions_val.json"
    path.write_text(path.read_text().replace('"image_id": 11', '"image_id": 99'))
    prepared(recipe, code=3)
    assert bad_items(recipe) == [
        ("caption", f"{path}: annotations[1]", "names the image 99, which is not listed"),
        ("caption", f"{path}: images[0]", "no annotation names this image"),
    ]


def test_checksums_of_the_manifest_are_checked(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared, refused: Refused
) -> None:
    sums = {"captions_val.json": "0" * 32, "gone.zip": "0" * 64}
    message = refused("prepare", make_recipe(**coco(data), checksums=sums))
    assert "captions_val.json: has the md5 " in message and f"but the manifest expects {'0' * 32}" in message
    right = message.split("has the md5 ")[1].split(",")[0]
    prepared(make_recipe(**coco(data), checksums={**sums, "captions_val.json": right}))
    message = refused("prepare", make_recipe(**coco(data), checksums={"a": "XYZ"}))
    assert "checksums.a" in message and "expected an MD5 (32 digits) or SHA-256 (64 digits)" in message


# ---- folders


def test_a_folder_with_sidecars(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    put(data / "a.JPG", picture(1, "JPEG"))
    put(data / "a.txt", "\ufeffone line\r\n\r\nand another\n")
    put(data / "sub" / "b.png", picture(2))
    put(data / "sub" / "b.txt", "only one")
    put(data / "notes.md", "no image")
    _, found = prepared(make_recipe(kind="folder"))
    expected = [("a.JPG", "all", "one line"), ("a.JPG", "all", "and another"), ("sub/b.png", "all", "only one")]
    assert rows(found) == expected


def test_a_folder_whose_texts_lie_elsewhere_as_in_urban1k(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared
) -> None:
    for i in range(3):
        put(data / "image" / f"{i}.jpg", picture(i, "JPEG"))
        put(data / "caption" / f"{i}.txt", f"a city view {i}")
    _, found = prepared(make_recipe(kind="folder", image_dir="image", caption_dir="caption", split="test"))
    assert rows(found) == [(f"{i}.jpg", "test", f"a city view {i}") for i in range(3)]


def test_folders_as_splits(data: Path, make_recipe: MakeRecipe, prepared: Prepared, refused: Refused) -> None:
    for i, split in enumerate(("train", "test")):
        put(data / split / "deep" / "x.png", picture(i))
        put(data / split / "deep" / "x.txt", split)
    recipe = make_recipe(kind="folder", split_folders=True)
    assert set(rows(prepared(recipe)[1])) == {(f"{s}/deep/x.png", s, s) for s in ("train", "test")}
    put(data / "loose.png", picture(3))
    assert "loose.png: stands in no split's folder" in refused("prepare", recipe)


def test_sidecars_that_are_missing_or_no_text(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    for i, text in enumerate((b"fine", None, b"caf\xe9", b"x" * 2**21, b"")):
        put(data / f"{i}.png", picture(i))
        if text is not None:
            put(data / f"{i}.txt", text)
    (data / "linked").symlink_to(data, target_is_directory=True)
    recipe = make_recipe(kind="folder")
    summary, found = prepared(recipe, code=3)
    assert rows(found) == [("0.png", "all", "fine")]
    assert [(Path(item).name, reason) for _, item, reason in bad_items(recipe)] == [
        ("1.txt", "no such file"),
        ("2.txt", "is not UTF-8 text (it holds the byte 0xe9); name its own with the manifest's key encoding"),
        ("3.txt", "more than 1024 KiB of text"),
        ("4.txt", "an empty file"),
    ]
    assert summary["skipped"] == {f"linked folder {data / 'linked'}": 1}


def test_a_changed_sidecar_makes_the_data_stale(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    put(data / "a.png", picture(1))
    put(data / "a.txt", "one")
    recipe = make_recipe(kind="folder")
    assert [prepared(recipe)[0]["status"] for _ in range(2)] == ["done", "fresh"]
    put(data / "a.txt", "one\ntwo")
    assert len(prepared(recipe)[1].captions) == 2


# ---- conversations, DOCCI


def test_conversations_as_in_sharegpt4v(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    def turns(*answers: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>"}, *({"from": "gpt", "value": answer} for answer in answers)]

    items = [
        {"id": "1", "image": "coco/a.jpg", "conversations": turns("A long answer.", "not this one")},
        {"id": "2", "image": "sam/gone.jpg", "conversations": turns("of an absent image")},
        {"id": "3", "conversations": turns("of no image")},
        {"id": "6", "image": None, "conversations": turns("of no image, as a table's JSON says it")},
        {"id": "4", "image": "coco/a.jpg", "conversations": turns("A second conversation.")},
        {"id": "5", "image": "coco/b.jpg", "conversations": turns()},
    ]
    put(data / "share.json", items)
    put(data / "coco" / "a.jpg", picture(1, "JPEG"))
    recipe = make_recipe(kind="conversations", annotations="share.json", absent_files="skip")
    summary, found = prepared(recipe, code=3)
    assert rows(found) == [("coco/a.jpg", "train", "A long answer."), ("coco/a.jpg", "train", "A second conversation.")]
    assert summary["skipped"] == {
        "conversations about no image": 2,
        "images without a file": 1,
        "captions of dropped or skipped images": 1,
    }
    assert [reason for _, _, reason in bad_items(recipe)] == ["a conversation without an answer (from: gpt)"]


@pytest.mark.parametrize("name", ["share.json", "share.jsonl", "share.jsonlines", "share.jsonl.gz"])
def test_conversations_as_json_lines(data: Path, make_recipe: MakeRecipe, prepared: Prepared, name: str) -> None:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "An answer."}]
    lines = [{"image": "a.jpg", "conversations": turns}, {"image": "b.jpg", "conversations": []}]
    text = "\n\n".join(map(json.dumps, lines)).encode()
    put(data / name, gzip.compress(text) if name.endswith(".gz") else text)
    put(data / "a.jpg", picture(1, "JPEG"))
    put(data / "b.jpg", picture(2, "JPEG"))
    recipe = make_recipe(kind="conversations", annotations=name)
    _, found = prepared(recipe, code=3)
    assert rows(found) == [("a.jpg", "train", "An answer.")]
    assert [(i.rpartition(": ")[2], r) for _, i, r in bad_items(recipe) if "answer" in r] == [
        ("line 3", "a conversation without an answer (from: gpt)")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"image": "a.jpg", "conversations": []}\n{"image": "a.jpg"',
            "cannot be read as JSON lines: line 2 is not JSON",
        ),
        ('{"image": "a.jpg", "conversations": []}\n[]', "line 2 is no JSON object"),
        ('{"data": []}', "line 1: no key 'conversations'"),
        ('{\n"data": []}', "expected a list"),
        (b'{"image": "a.jpg", "conversations": []}\n{"image": "caf\xe9.jpg"}', "is not UTF-8 text"),
    ],
)
def test_conversations_that_are_none_are_refused_by_line(
    data: Path, make_recipe: MakeRecipe, refused: Refused, text: str | bytes, said: str
) -> None:
    put(data / "share.json", text)
    assert said in refused("prepare", make_recipe(kind="conversations", annotations="share.json"))


def test_the_shipped_manifest_of_docci_reads_its_layout(
    data: Path, prepared: Prepared, write_yaml: Callable[..., Path], tiny_clip_config: dict[str, Any]
) -> None:
    lines = [
        {"split": split, "image_file": f"{split}_0.jpg", "description": "word " * 90, "example_id": f"{split}_0"}
        for split in ("train", "test")
    ]
    put(data / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)))
    for i, line in enumerate(lines):
        put(data / "images" / line["image_file"], picture(i, "JPEG"))
    image = {"kind": "open_clip", "model": "ViT-B-32", "random_init": True}
    recipe = write_yaml(
        "d.yaml", name="d", run_dir="run_d", data={"manifest": "docci", "root": "data"}, encoders={"image": image}
    )
    summary, _ = prepared(recipe)
    assert summary["splits"]["train"] == {"images": 1, "captions": 1}
    lengths = {key: value for key, value in summary["caption_lengths"].items() if key != "status"}
    assert lengths == {"limit": 77, "truncated": 2, "median": 92, "p95": 92, "longest": 92}


@pytest.mark.parametrize("name", shelf.names("data_manifests"))
def test_shipped_manifests_say_where_the_data_are_from(name: str) -> None:
    text = shelf.find("data_manifests", name).read_text()
    assert "source:" in text and "licence:" in text
    assert "citation:" in text or "drawn by csalign" in text


# ---- WebDataset shards


def write_shard(path: Path, samples: Sequence[dict[str, Any]]) -> None:
    """A shard as img2dataset writes it."""
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def img2dataset_shards(data: Path) -> dict[str, Any]:
    for shard in range(3):
        keys = [f"{shard:05d}{i:04d}" for i in range(4)]
        samples = [
            {
                "__key__": key,
                "jpg": picture(int(key), "JPEG"),
                "txt": f"told {key}",
                "json": {"caption": "x", "url": key},
            }
            for key in keys
        ]
        write_shard(data / f"{shard:05d}.tar", samples)
        put(data / f"{shard:05d}_stats.json", {"successes": 4})
    return {"kind": "webdataset", "shards": {"train": "0000[01].tar", "test": "00002.tar"}}


def test_webdataset_shards_are_read_where_they_lie(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared, csalign: Csalign
) -> None:
    recipe = make_recipe(sections={"eval_retrieval": {"split": "test", "ks": [1]}}, **img2dataset_shards(data))
    summary, found = prepared(recipe)
    assert summary["splits"] == {"train": {"images": 8, "captions": 8}, "test": {"images": 4, "captions": 4}}
    assert rows(found)[4] == ("00001/000010000", "train", "told 000010000")
    for locator, number in zip(found.images["locator"], [0, 1, 2, 3, 10000, 10001], strict=False):
        assert read_image(found.root / locator)[1] == picture(number, "JPEG")
    assert not list(data.glob("*.jpg"))

    # The same pictures as loose files give the same embeddings.
    for _, path, number in [(0, data / f"loose/{i}.jpg", 20000 + i) for i in range(4)]:
        put(path, picture(number, "JPEG"))
        put(path.with_suffix(".txt"), f"told {number:09d}")
    loose = make_recipe(
        "loose", {"eval_retrieval": {"split": "test", "ks": [1]}}, kind="folder", image_dir="loose", split="test"
    )
    stores = []
    for each in (recipe, loose):
        called = csalign("embed", each) if each is recipe else (csalign("prepare", each), csalign("embed", each))[1]
        assert called.exit_code == 0, called.stderr
        stores.append(Store(each.parent / f"run_{each.stem}" / "embeddings" / "frozen" / "test"))
    for modality in ("image", "text"):
        np.testing.assert_array_equal(stores[0].array(modality).all(), stores[1].array(modality).all())


def test_captions_of_a_sample(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    samples = [
        {
            "__key__": "a",
            "png": picture(0),
            "txt": "not this",
            "json": {"captions": ["one", "two"], "image_id": "mine"},
        },
        {"__key__": "b", "jpeg": picture(1, "JPEG"), "txt": "two\nlines"},
        {"__key__": "c", "webp": picture(2, "WEBP"), "json": {"caption": "from the JSON"}},
        {"__key__": "sub/d", "jpg": picture(3, "JPEG")},
        {"__key__": "e", "txt": "of no image"},
        {"__key__": "f", "json": {"url": "x"}},
    ]
    write_shard(data / "x.tar", samples)
    summary, found = prepared(make_recipe(kind="webdataset"))
    assert rows(found) == [
        ("mine", "all", "one"),
        ("mine", "all", "two"),
        ("x/b", "all", "two"),
        ("x/b", "all", "lines"),
        ("x/c", "all", "from the JSON"),
        (None, "all", "of no image"),
    ]
    assert list(found.images["image_id"]) == ["mine", "x/b", "x/c", "x/sub/d"]
    assert summary["skipped"] == {"samples with neither an image nor a caption (members .json)": 1}


def test_members_of_a_sample_that_cannot_be_read(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    samples = [
        {"__key__": "a", "png": picture(0), "json": b"{not JSON", "txt": "fine"},
        {"__key__": "b", "png": picture(1), "json": b"[1]", "txt": b"caf\xe9"},
        {"__key__": "c", "png": picture(2), "json": b'{"caption": "\\ud800"}'},
        {"__key__": "d", "png": picture(3), "txt": b"x" * (4 * 2**20 + 1)},
    ]
    write_shard(data / "x.tar", samples)
    recipe = make_recipe(kind="webdataset")
    _, found = prepared(recipe, code=3)
    assert rows(found) == [("x/a", "all", "fine")]
    assert [(item.rpartition("::")[2], reason) for kind, item, reason in bad_items(recipe) if kind == "member"] == [
        ("a.json", "is no JSON object"),
        ("b.json", "is no JSON object"),
        ("b.txt", "is not UTF-8 text"),
        ("c.json", "is no JSON object"),
        ("d.txt", "more than 4 MiB of text"),
    ]


def test_one_truncated_shard_and_one_damaged_image_are_named_and_nothing_else(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared, csalign: Csalign, refused: Refused
) -> None:
    """The small version of test_flickr8k's real shards."""
    recipe = make_recipe(sections={"eval_retrieval": {"split": "train", "ks": [1]}}, **img2dataset_shards(data))
    found = prepared(recipe)[1]
    corrupted, cut = found.images["locator"].iloc[1], found.images["locator"].iloc[6]
    offset = int(corrupted.rpartition("@")[2].split("+")[0])
    content = bytearray((data / "00000.tar").read_bytes())
    content[offset : offset + 200] = bytes(200)
    (data / "00000.tar").write_bytes(content)
    # Embedding what was prepared before reports the image by shard and member.
    message = refused("embed", recipe)
    assert f"{data}/{corrupted}: not an image; it was whole when the data were prepared" in message

    start = int(cut.rpartition("@")[2].split("+")[0])
    (data / "00001.tar").write_bytes((data / "00001.tar").read_bytes()[: start + 100])
    summary, found = prepared(recipe, code=3)
    shard, image = bad_items(recipe)
    assert shard[:2] == ("shard", str(data / "00001.tar"))
    assert shard[2].startswith("truncated inside 000010002.jpg, after 100 of its ")
    assert image == ("image", f"{data}/{corrupted}", "not an image")
    assert summary["bad"] == {"images": 1, "captions": 0, "shards": 1, "first": summary["bad"]["first"]}
    assert summary["bad_fraction"] == pytest.approx(1 / 3)
    assert summary["splits"] == {"train": {"images": 5, "captions": 5}, "test": {"images": 4, "captions": 4}}
    assert csalign("prepare", recipe, "--set", "data.max_bad_fraction=0.5").exit_code == 0
    assert csalign("embed", recipe, "--set", "data.max_bad_fraction=0.5").exit_code == 0
    stored = Store(recipe.parent / "run_recipe" / "embeddings" / "frozen" / "train").keys("image")
    assert list(stored["image_id"]) == list(found.images["image_id"])[:5]


def cut_at_member(whole: bytes) -> bytes:
    """Without the last member and the end mark: no header says that something is missing."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        return whole[: archive.getmembers()[-1].offset]


def broken_header(whole: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        place = archive.getmembers()[3].offset
    return whole[: place + 100] + b"garbage" + whole[place + 107 :]


@pytest.mark.parametrize(
    ("damage", "reason", "images"),
    [
        (cut_at_member, "truncated: there is no end mark after 000000003.json", 4),
        (broken_header, "damaged at byte ", 1),
        (lambda whole: whole[:200], "is no tar file", 0),
        (lambda whole: b"", "is no tar file", 0),
        (lambda whole: b"<html>404</html>" * 100, "is no tar file", 0),
    ],
)
def test_shards_that_are_not_whole(
    damage: Callable[[bytes], bytes], reason: str, images: int, data: Path, make_recipe: MakeRecipe, prepared: Prepared
) -> None:
    recipe = make_recipe(**img2dataset_shards(data))
    path = data / "00000.tar"
    path.write_bytes(damage(path.read_bytes()))
    _, found = prepared(recipe, code=3)
    ((kind, item, stated),) = bad_items(recipe)
    assert (kind, item) == ("shard", str(path))
    assert stated.startswith(reason)
    assert list(found.images["locator"].str.startswith("00000.tar")).count(True) == images


def test_shards_that_are_missing_or_compressed(
    data: Path, make_recipe: MakeRecipe, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    recipe = make_recipe(kind="webdataset", shards={"train": "*.tar*"})
    assert f"shards.train: {data / '*.tar*'}: finds no files" in refused("prepare", recipe)
    write_shard(data / "a.tar", [{"__key__": "a", "png": picture(0), "txt": "x"}])
    put(data / "b.tar.gz", gzip.compress((data / "a.tar").read_bytes()))
    assert "b.tar.gz: is no .tar, but the pattern shards.train finds it" in refused("prepare", recipe)
    (data / "b.tar.gz").rename(data / "b.tar")
    assert "b.tar: is compressed; shards are read where they lie" in refused("prepare", recipe)
    (data / "b.tar").rename(data / "B.TAR")
    upper = make_recipe(kind="webdataset", shards={"train": "*.[Tt][Aa][Rr]"})
    assert "B.TAR: is compressed; shards are read where they lie" in refused("prepare", upper)
    absolute = make_recipe(kind="webdataset", shards={"train": "/etc/*.tar"})
    assert "'/etc/*.tar' is no pattern of files below the manifest's root" in refused("prepare", absolute)


# ---- packing into shards


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves shards open
def test_packing_gives_the_same_data_set_back(
    data: Path, tmp_path: Path, make_recipe: MakeRecipe, prepared: Prepared, csalign: Csalign
) -> None:
    for i in range(30):
        put(data / ("train" if i % 3 else "my test") / f"{i:02d}.png", picture(i) + bytes(100_000))
        put(data / ("train" if i % 3 else "my test") / f"{i:02d}.txt", f"first of {i}\nsecond of {i}")
    recipe = make_recipe(kind="folder", split_folders=True)
    pack = ("--set", "prepare.repack.shard_mb=1")
    summary, before = prepared(recipe, *pack)
    shards = recipe.parent / "run_recipe" / "shards"
    assert summary["shards"] == {"status": "done", "folder": str(shards), "splits": {"my test": 1, "train": 2}}
    assert prepared(recipe, *pack)[0]["shards"]["status"] == "fresh"
    assert sorted(path.name for path in shards.glob("*.tar")) == [
        "my test-00000.tar",
        "train-00000.tar",
        "train-00001.tar",
    ]
    assert (shards / "train-00000.tar").stat().st_size < 1.2e6

    patterns = {"train": "train-*.tar", "my test": "my test-*.tar"}
    again = make_recipe("again", kind="webdataset", shards=patterns, root=str(shards))
    after = prepared(again)[1]
    assert sorted(rows(after)) == sorted(rows(before))
    by_id = dict(zip(after.images["image_id"], after.images["locator"], strict=True))
    for image_id, locator in zip(before.images["image_id"], before.images["locator"], strict=True):
        assert (after.root / by_id[image_id].split("::")[0]).is_file()
        assert read_image(after.root / by_id[image_id])[1] == (before.root / locator).read_bytes()

    samples = list(webdataset.WebDataset(str(shards / "train-00000.tar"), shardshuffle=False).decode("pil"))
    assert samples[0]["txt"] == "first of 1"
    assert samples[0]["json"] == {
        "image_id": "train/01.png",
        "split": "train",
        "captions": ["first of 1", "second of 1"],
    }
    assert samples[0]["png"].size == (32, 24)

    written = {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    prepared(recipe, *pack, "--force")
    assert {path.name: path.read_bytes() for path in shards.glob("*.tar")} == written


def test_packing_keeps_labels_and_unpaired_captions_and_images(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared
) -> None:
    put(data / "a.png", picture(1))
    put(data / "b.png", picture(2))
    lines = [{"image": "a.png", "caption": "of a"}, {"image": "b.png", "caption": []}, {"caption": "of no image"}]
    lines[0]["class"] = "cat"
    put(data / "t.jsonl", "\n".join(map(json.dumps, lines)))
    recipe = make_recipe(kind="table", table="t.jsonl", split_column=None, label_column="class")
    allowed = ("--set", "data.max_bad_fraction=0.5")  # a list without captions counts as an empty one
    before = prepared(recipe, "--set", "prepare.repack.shard_mb=1", *allowed)[1]
    again = make_recipe("again", kind="webdataset", root=str(recipe.parent / "run_recipe" / "shards"))
    after = prepared(again)[1]
    assert rows(after) == rows(before) == [("a.png", "all", "of a"), (None, "all", "of no image")]
    assert list(after.images["image_id"]) == ["a.png", "b.png"]
    assert list(after.images["label"]) == list(before.images["label"]) == ["cat", ""]


@pytest.mark.parametrize("key", ["data.dir", "prepare.repack.dir"])
def test_a_folder_with_other_files_is_not_replaced(
    key: str, data: Path, make_recipe: MakeRecipe, csalign: Csalign, refused: Refused
) -> None:
    put(data / "a.png", picture(1))
    put(data / "a.txt", "of a")
    recipe = make_recipe(kind="folder")
    put(recipe.parent / "mine" / "thesis.tex", "years of work")
    message = refused("prepare", recipe, "-q", "--set", f"{key}={recipe.parent / 'mine'}")
    assert f"{key}: {recipe.parent / 'mine'} holds other files" in message
    assert (recipe.parent / "mine" / "thesis.tex").read_text() == "years of work"
    (recipe.parent / "empty").mkdir()
    settings = ("--set", f"{key}={recipe.parent / 'empty'}", "--force")
    assert [csalign("prepare", recipe, *settings).exit_code for _ in range(2)] == [0, 0]


# ---- clip-retrieval


def clip_retrieval(data: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for folder in ("img_emb", "text_emb", "metadata"):
        (data / folder).mkdir(parents=True)
    for part, count in enumerate((5, 3, 4)):
        for modality, folder in (("img", "img_emb"), ("text", "text_emb")):
            np.save(data / folder / f"{modality}_emb_{part}.npy", rng.standard_normal((count, 8)).astype(np.float16))
        frame = pd.DataFrame({"image_path": [f"{part}{i:04d}" for i in range(count)], "caption": f"told in {part}"})
        frame.to_parquet(data / "metadata" / f"metadata_{part}.parquet", index=False)
    return {"kind": "clip_retrieval"}


def test_clip_retrieval_parts_are_one_array(
    data: Path, make_recipe: MakeRecipe, prepared: Prepared, csalign: Csalign
) -> None:
    recipe = make_recipe(sections={"eval_retrieval": {"split": "all", "ks": [1]}}, **clip_retrieval(data))
    summary, found = prepared(recipe)
    assert summary["splits"] == {"all": {"images": 12, "captions": 12}}
    assert rows(found)[5] == ("10000", "all", "told in 1")
    checks = {check["name"]: check["found"] for check in csalign("doctor", recipe, "--json").json["checks"]}
    assert checks["encoders.image"] == checks["encoders.text"] == f"features in {data}"
    called = csalign("embed", recipe)
    assert called.exit_code == 0, called.stderr
    store = Store(recipe.parent / "run_recipe" / "embeddings" / "frozen" / "all")
    for modality, folder in (("image", "img_emb"), ("text", "text_emb")):
        whole = np.concatenate([np.load(path) for path in sorted((data / folder).iterdir())])
        np.testing.assert_array_equal(store.array(modality).all(), whole.astype(np.float32))


def test_wrong_clip_retrieval_folders(data: Path, make_recipe: MakeRecipe, refused: Refused) -> None:
    recipe = make_recipe(**clip_retrieval(data))
    last = data / "text_emb" / "text_emb_2.npy"
    np.save(last, np.ones((9, 8), np.float16))
    assert f"{last}: holds 9 rows, but {data / 'metadata' / 'metadata_2.parquet'} has 4" in refused("prepare", recipe)
    np.save(last, np.ones((4, 9), np.float16))
    assert f"{last}: has 9 dimensions, but " in refused("prepare", recipe)
    last.unlink()
    assert "img_emb/*.npy has part 2, which text_emb/*.npy lacks (3 of img_emb/*.npy, 2 of" in refused(
        "prepare", recipe
    )


# ---- near duplicates, sizes


def near_folder(data: Path) -> list[bytes]:
    """Photos-like pictures: smooth, so that scaling leaves their dhash nearly alone."""
    pictures = []
    for number in range(6):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        with io.BytesIO() as file:
            small.save(file, "PNG")
            pictures.append(file.getvalue())
    for i, split in enumerate(("train", "train", "train", "test", "test")):
        put(data / split / f"{i}.png", pictures[i])
        put(data / split / f"{i}.txt", f"Picture {i}!" if split == "train" else f"picture   {i - 3}.")
    with Image.open(io.BytesIO(pictures[1])) as image:
        image.resize((70, 64)).convert("RGB").save(data / "test" / "near.jpg", quality=40)
    put(data / "test" / "near.txt", "something else")
    put(data / "test" / "copy.png", pictures[2])
    put(data / "test" / "copy.txt", "again something else")
    return pictures


def test_near_duplicates_across_splits_are_reported(data: Path, make_recipe: MakeRecipe, csalign: Csalign) -> None:
    near_folder(data)
    recipe = make_recipe(kind="folder", split_folders=True)
    called = csalign("prepare", recipe, "--json", "--set", "prepare.near_distance=6")
    near = called.json["near_duplicates"]
    assert near["images"] == {"distance": 6, "images": {"test": 2, "train": 2}}
    assert near["captions"] == {"test": 2, "train": 2}
    pairs = json.loads((recipe.parent / "run_recipe" / "data" / "report.json").read_text())["near_pairs"]
    assert [pair["bits"] for pair in pairs] == sorted(pair["bits"] for pair in pairs)
    assert pairs[1] == {"images": ["test/copy.png", "train/2.png"], "splits": ["test", "train"], "bits": 0}
    assert {tuple(sorted(pair["images"])) for pair in pairs} == {
        ("test/copy.png", "train/2.png"),
        ("test/near.jpg", "train/1.png"),
    }
    shown = csalign("prepare", recipe, "--set", "prepare.near_distance=6").stdout
    assert "images of test looking like one of another split (dhash, at most 6 of 64 bits)" in shown
    quiet = csalign("prepare", recipe, "--json", "--set", "prepare.near_distance=null").json
    assert "images" not in quiet["near_duplicates"]


def test_small_images_are_bad(data: Path, make_recipe: MakeRecipe, prepared: Prepared) -> None:
    near_folder(data)
    recipe = make_recipe(kind="folder", split_folders=True)
    prepared(recipe, "--set", "prepare.min_side=65", code=3)
    ((_, item, reason),) = bad_items(recipe)
    assert (Path(item).name, reason) == ("near.jpg", "70 x 64 pixels, less than prepare.min_side (65)")


@pytest.mark.parametrize("distance", [0, 1, 3, 5, 8])
def test_near_images_agree_with_comparing_all_pairs(distance: int) -> None:
    from cs_aligner_cli.data.duplicates import near_images

    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**63, 40).astype(np.uint64)
    codes = rng.choice(base, 300)
    for _ in range(distance + 1):  # flip up to distance + 1 bits of most
        codes ^= np.where(rng.random(300) < 0.7, np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64), 0).astype(
            np.uint64
        )
    splits = rng.choice(["a", "b", "c"], 300)
    images = pd.DataFrame({"image_id": [f"i{i}" for i in range(300)], "split": splits, "dhash": codes})
    found = near_images(images, distance, Console(quiet=True))
    bits = np.bitwise_count(codes[:, None] ^ codes[None])
    near = ((bits <= distance) & (splits[:, None] != splits[None])).any(axis=1)
    assert found["images"] == {
        s: int(near[splits == s].sum()) for s in dict.fromkeys(splits) if near[splits == s].any()
    }
    for pair in found["pairs"]:
        one, other = (int(name[1:]) for name in pair["images"])
        assert bits[one, other] == pair["bits"] <= distance
        assert splits[one] != splits[other]


def test_captions_are_compared_without_case_and_punctuation() -> None:
    from cs_aligner_cli.data.duplicates import normalised

    assert normalised("  A Dog, runs!\n") == normalised("a dog — runs") == "a dog runs"
    assert normalised("Straße") == "strasse"
    assert normalised("ﬁre") == "fire"
    assert normalised("it\u00b4s") == normalised("it's") == "it s"
    assert len({normalised(text) for text in ("काम", "कम", "कुम", "ไม่", "ไม", "Cafe\u0301!", "cafe")}) == 7
    assert os.linesep not in normalised("a\r\nb")
