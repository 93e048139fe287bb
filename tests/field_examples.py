"""Small examples of faults of data found in the field (public bug reports): what is written, and how prepare ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from trials import Trial, picture, tar

TABLE = {"kind": "table", "split_column": None, "table": "t.csv"}
SHARDS = {"kind": "webdataset", "shards": {"train": "*.tar"}}
COCO = {"kind": "coco", "splits": {"train": {"captions": "c.json", "image_dir": "."}}}


@dataclass(frozen=True)
class Fault:
    """prepare must end with ``code``, keep so many images and captions (None: it is refused), and say ``said``."""

    kind: str
    example: str
    manifest: dict[str, Any]
    files: dict[str, Any]
    code: int
    kept: tuple[int, int] | None
    said: str = ""
    make: Callable[[Trial], None] | None = None


def coco(images: list[tuple[Any, str]], annotations: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name} for i, name in images],
        "annotations": [{"image_id": i, "caption": text} for i, text in annotations],
    }


def shard(*names: str, **content: str) -> bytes:
    """A tar in which the picture of a member is that of the first digit of its name."""

    def of(name: str) -> bytes | str:
        if name.endswith(("png", "img")):
            return picture(int(next(c for c in name if c.isdigit())))
        return content.get(name.replace(".", "_"), f"caption {name}")

    return tar(*((name, of(name)) for name in names))


def images_inside(trial: Trial) -> None:
    rows = [{"image": {"bytes": picture(i), "path": f"{i}.png"}, "caption": [f"a{i}", f"b{i}"]} for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), trial.root / "t.parquet")


TWO = {"0.png": picture(0), "1.png": picture(1)}
FOLDER = {"0.png": picture(0), "0.txt": "a dog"}
PAIR = ("0.png", "0.txt")


def csv(text: str, **more: Any) -> dict[str, Any]:
    return {**TWO, "t.csv": text, **more}


IDENTITY_AND_PAIRS = [
    Fault(
        "identity",
        "COCO: one id for two images",
        COCO,
        {**TWO, "c.json": coco([(1, "0.png"), (1, "1.png")], [(1, "x")])},
        2,
        None,
        "images[1]: id 1 was already used by 0.png",
    ),
    Fault(
        "identity",
        "shards: train/0.tar and test/0.tar with the same keys",
        {"kind": "webdataset", "shards": {"train": "train/*.tar", "test": "test/*.tar"}},
        {"train/0.tar": shard("0.png", "0.txt"), "test/0.tar": tar(("0.png", picture(5)), ("0.txt", "x"))},
        0,
        (2, 2),
    ),
    Fault(
        "identity",
        "shards: one sample for each caption of an image",
        SHARDS,
        {
            "a.tar": tar(
                *(
                    (f"{i}.{s}", c)
                    for i in range(2)
                    for s, c in (("png", picture(0)), ("txt", f"t{i}"), ("json", '{"image_id": "im"}'))
                )
            )
        },
        0,
        (1, 2),
    ),
    Fault(
        "identity",
        "one name for two images in the JSON of shards",
        SHARDS,
        {
            "a.tar": tar(
                *(
                    (f"{i}.{s}", c)
                    for i in range(2)
                    for s, c in (("png", picture(i)), ("txt", f"t{i}"), ("json", '{"image_id": "im"}'))
                )
            )
        },
        3,
        (1, 1),
        "its name was used before by another image",
    ),
    Fault(
        "identity",
        "a basename in two folders of Karpathy's JSON",
        {"kind": "karpathy", "annotations": "k.json"},
        {
            "a/x.png": picture(0),
            "b/x.png": picture(1),
            "k.json": {
                "images": [{"filename": "x.png", "filepath": f, "split": "s", "sentences": [{"raw": f}]} for f in "ab"]
            },
        },
        0,
        (2, 2),
    ),
    Fault(
        "pairs",
        "shards: members of a sample that are not neighbours",
        SHARDS,
        {"a.tar": shard("0.png", "1.png", "0.txt", "1.txt")},
        0,
        (2, 2),
    ),
    Fault(
        "pairs",
        "shards: keys with dots",
        SHARDS,
        {"a.tar": shard("x.0.png", "x.0.txt", "x.1.png", "x.1.txt")},
        0,
        (2, 2),
    ),
    Fault(
        "pairs",
        "shards: .input.png and .outputs.txt",
        SHARDS,
        {"a.tar": shard("0.input.png", "0.outputs.txt", "1.input.png", "1.outputs.txt")},
        0,
        (2, 2),
    ),
    Fault("pairs", "shards: .img and .cap", SHARDS, {"a.tar": shard("0.img", "0.cap")}, 0, (1, 1)),
    Fault(
        "pairs",
        "shards: a JSON with TEXT",
        SHARDS,
        {"a.tar": shard("0.png", "0.json", "1.png", "1.txt", **{"0_json": '{"TEXT": "a dog"}'})},
        0,
        (2, 2),
    ),
    Fault(
        "pairs",
        "shards: a JSON without any known key",
        SHARDS,
        {"a.tar": shard("0.png", "0.json", "1.png", "1.txt", **{"0_json": '{"alt": "a dog"}'})},
        3,
        (2, 1),
        "no caption in its text or JSON (its JSON has the keys alt)",
    ),
    Fault(
        "pairs",
        "files that macOS and Windows leave behind",
        {"kind": "folder"},
        {**FOLDER, "._0.png": b"\0\5", "Thumbs.db": b"\0"},
        0,
        (1, 1),
    ),
    Fault(
        "pairs",
        "suffixes in other spellings",
        {"kind": "folder"},
        {"0.JFIF": picture(0, "JPEG"), "0.TXT": "x", "1.jp2": picture(1, "JPEG2000"), "1.txt": "y"},
        0,
        (2, 2),
    ),
    Fault(
        "pairs",
        "splits Train and train",
        {"kind": "table", "table": "t.csv"},
        csv("image,caption,split\n0.png,a,Train\n1.png,b,train\n"),
        0,
        (2, 2),
        "are one: 'train' as 'Train'",
    ),
    Fault(
        "pairs",
        "a folder with images and no text for one",
        {"kind": "folder"},
        {**FOLDER, "1.png": picture(1)},
        3,
        (2, 1),
        "1 of 2 images has no captions",
    ),
]
