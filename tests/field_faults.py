"""Faults of data found in the field (public bug reports): a small example of each kind, and how prepare must end.

python tests/bad_inputs.py writes the table of docs/bad-inputs.md from these.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from trials import Outcome, Trial, picture, tar

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


FAULTS = [
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
        "1 of 2 images have no captions",
    ),
    Fault(
        "text",
        "CSV: a cell that holds a JSON list",
        TABLE,
        csv('image,caption\n0.png,"[""a"", ""b""]"\n1.png,c\n'),
        0,
        (2, 3),
    ),
    Fault(
        "text",
        "CSV: a cell that holds numpy's list",
        TABLE,
        csv("image,caption\n0.png,['a' 'b']\n1.png,c\n"),
        0,
        (2, 3),
    ),
    Fault(
        "text",
        "TSV: a quote that does not end",
        {**TABLE, "table": "t.tsv"},
        {**TWO, "t.tsv": 'image\tcaption\n0.png\t"Go slowly\n1.png\tnamed Tom"\n'},
        0,
        (2, 2),
    ),
    Fault(
        "text",
        "CSV: a quote that swallows the next row",
        TABLE,
        csv('image,caption\n0.png,"Go slowly\n1.png,named Tom"\n'),
        2,
        None,
        "has a cell that holds further rows",
    ),
    Fault(
        "text",
        "U+2028, U+0085, form feed in a text file",
        {"kind": "folder"},
        {**FOLDER, "0.txt": "a\u2028b\x85c\x0cd"},
        0,
        (1, 1),
    ),
    Fault(
        "text",
        "shards: five captions in the lines of a text",
        SHARDS,
        {"a.tar": shard("0.png", "0.txt", **{"0_txt": "a\nb\nc\nd\ne"})},
        0,
        (1, 5),
    ),
    Fault(
        "text",
        "a description of several paragraphs, captions: whole",
        {"kind": "folder", "captions": "whole"},
        {**FOLDER, "0.txt": "A dog.\n\nA house,\nred.\n"},
        0,
        (1, 1),
    ),
    Fault(
        "text",
        "captions nan, None, null",
        TABLE,
        csv("image,caption\n0.png,nan\n1.png,fine\n"),
        3,
        (2, 1),
        "'nan' stands for a missing caption",
    ),
    Fault(
        "text",
        "a column that is there twice",
        TABLE,
        csv("image,caption,caption\n0.png,1,a\n"),
        2,
        None,
        "the column 'caption' is there 2 times",
    ),
    Fault(
        "text",
        "a null caption in COCO",
        COCO,
        {**TWO, "c.json": coco([(0, "0.png"), (1, "1.png")], [(0, None), (1, "x")])},
        3,
        (2, 1),
        "a caption is null",
    ),
    Fault(
        "refusal",
        "a byte order mark in JSON",
        COCO,
        {**TWO, "c.json": "\ufeff" + json.dumps(coco([(0, "0.png")], [(0, "x")]))},
        0,
        (1, 1),
    ),
    Fault(
        "refusal",
        "NaN in JSON",
        COCO,
        {**TWO, "c.json": '{"images": [{"id": NaN}]}'},
        2,
        None,
        "line 1 holds NaN, for which JSON has no value",
    ),
    Fault(
        "refusal",
        "COCO: ids written as 1.0",
        COCO,
        {**TWO, "c.json": coco([(0.0, "0.png"), (1.0, "1.png")], [(0, "a"), (1, "b")])},
        0,
        (2, 2),
    ),
    Fault(
        "refusal",
        "COCO: ids that are text in one place",
        COCO,
        {**TWO, "c.json": coco([(0, "0.png"), (1, "1.png")], [("0", "a"), (1, "b")])},
        3,
        (2, 1),
        "but 0 (a number) is: write both in the same way",
    ),
    Fault(
        "refusal",
        "a .csv with tabs",
        TABLE,
        csv("image\tcaption\n0.png\ta, b\n1.png\tc\n"),
        0,
        (2, 2),
        "read with tabs between the cells",
    ),
    Fault(
        "refusal",
        "Kaggle's results.csv, pipes, one row cut",
        TABLE,
        csv("image| n| caption\n0.png| 0| a .\n1.png| 4   b .\n"),
        3,
        (1, 1),
        "line 3 has 2 cells, the header 3",
    ),
    Fault(
        "refusal",
        "a table without a split column",
        {"kind": "table", "table": "t.csv"},
        csv("image,caption\n0.png,a\n"),
        2,
        None,
        "split_column: null",
    ),
    Fault(
        "refusal",
        "paths with backslashes",
        TABLE,
        csv("image,caption\nsub\\0.png,a\n1.png,b\n", **{"sub/0.png": picture(3)}),
        3,
        (1, 1),
        "did you mean sub/0.png?",
    ),
    Fault(
        "refusal", "names without suffix", TABLE, csv("image,caption\n0,a\n1.png,b\n"), 3, (1, 1), "did you mean 0.png?"
    ),
    Fault(
        "refusal",
        "addresses in place of files",
        TABLE,
        csv("image,caption\nhttps://a.org/0.png,a\n1.png,b\n"),
        3,
        (1, 1),
        "it is an address on the net",
    ),
    Fault(
        "refusal",
        "image and caption swapped",
        TABLE,
        csv("image,caption\na dog,0.png\na cat,1.png\n"),
        2,
        None,
        "are the two swapped?",
    ),
    Fault(
        "refusal",
        "a table in cp1252",
        TABLE,
        csv("x", **{"t.csv": "image,caption\n0.png,café\n".encode("cp1252")}),
        2,
        None,
        "manifest's key encoding",
    ),
    Fault(
        "path",
        "a JSON list of records",
        {**TABLE, "table": "t.json"},
        {**TWO, "t.json": [{"image": f"{i}.png", "caption": "x"} for i in range(2)]},
        0,
        (2, 2),
    ),
    Fault(
        "path",
        "JSON {image: [captions]}",
        {**TABLE, "table": "t.json"},
        {**TWO, "t.json": {"0.png": ["a", "b"], "1.png": ["c"]}},
        0,
        (2, 3),
    ),
    Fault(
        "path",
        "several caption columns",
        {**TABLE, "caption_column": ["a", "b"]},
        csv("image,a,b\n0.png,x,y\n1.png,z,w\n"),
        0,
        (2, 4),
    ),
    Fault(
        "path", "ids in place of paths", {**TABLE, "image_path": "{id}.png"}, csv("id,caption\n0,a\n1,b\n"), 0, (2, 2)
    ),
    Fault("path", "Parquet with the images inside", {**TABLE, "table": "t.parquet"}, {}, 0, (2, 4), make=images_inside),
]


def outcome(fault: Fault, trial: Trial) -> Outcome:
    """Make the example and prepare it."""
    for name, content in fault.files.items():
        trial.put(name, content)
    if fault.make is not None:
        fault.make(trial)
    return trial(**fault.manifest)


def check(fault: Fault, found: Outcome) -> None:
    """Raise AssertionError unless prepare ended as it must."""
    kept = None if found.code == 2 else tuple(map(sum, zip(*found.splits.values(), strict=True)))
    assert (found.code, kept) == (fault.code, fault.kept), (fault.example, found.code, kept, found.said)
    assert fault.said in found.said, (fault.example, found.said)


def table() -> str:
    """The part of the page: kind, example, outcome."""
    lines = [
        "## Faults found in the field\n",
        "Shapes of data from public bug reports, each made anew and prepared by tests/data/test_field_faults.py.\n",
        "| kind | example | outcome |",
        "|---|---|---|",
    ]
    for fault in FAULTS:
        said = f"`{fault.said}`" if fault.said else ""
        kept = f"{fault.kept[0]} images, {fault.kept[1]} captions" if fault.kept else "refused"
        lines.append(f"| {fault.kind} | {fault.example} | exit {fault.code}: {', '.join(filter(None, [kept, said]))} |")
    return "\n".join(lines) + "\n"
