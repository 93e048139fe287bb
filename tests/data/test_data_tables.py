"""Tables as people have them: every format, separator and encoding, lists in cells, images inside, several files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from trials import Trial, picture

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.images import read_bytes
from cs_aligner_cli.data.manifest import TableManifest
from cs_aligner_cli.data.sources import SOURCES as READERS

ROWS = [("0.png", "of, 0"), ("0.png", "also 0"), ("1.png", "of 1")]
TABLE = {"kind": "table", "split_column": None}


def write(path: Path, form: str) -> None:
    """ROWS in a form that tables have."""
    frame = pd.DataFrame(ROWS, columns=["image", "caption"])
    by_image = frame.groupby("image")["caption"].agg(list)
    texts: dict[str, Callable[[], str]] = {
        "csv": lambda: frame.to_csv(index=False),
        "tsv": lambda: frame.to_csv(index=False, sep="\t"),
        "tabs": lambda: frame.to_csv(index=False, sep="\t"),
        "semicolons": lambda: frame.to_csv(index=False, sep=";"),
        "excel": lambda: "sep=;\r\n" + frame.to_csv(index=False, sep=";"),
        "excel with tabs": lambda: '"sep=\t"\r\n' + frame.to_csv(index=False, sep="\t"),
        "pipes": lambda: "image| number| caption\n" + "".join(f"{i}| 0| {c}\n" for i, c in ROWS),
        "jsonl": lambda: frame.to_json(orient="records", lines=True),
        "records": lambda: frame.to_json(orient="records"),
        "columns": lambda: frame.to_json(),
        "shuffled": lambda: json.dumps(
            {"image": frame["image"].to_dict(), "caption": frame["caption"].iloc[::-1].to_dict()}
        ),
        "lists": lambda: json.dumps(frame.to_dict("list")),
        "wrapped": lambda: json.dumps({"info": {"x": 1}, "data": frame.to_dict("records")}),
        "dict": lambda: json.dumps(by_image.to_dict()),
        "array": lambda: json.dumps([{"image": i, "caption": c} for i, c in by_image.items()]),
    }
    if form == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(texts[form]())


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("t.csv", "csv"),
        ("t.CSV", "csv"),
        ("t.tsv", "tsv"),
        ("t.txt", "tabs"),
        ("t.txt", "csv"),
        ("t.csv", "tabs"),
        ("t.csv", "semicolons"),
        ("t.csv", "pipes"),
        ("t.csv", "excel"),
        ("t.csv", "excel with tabs"),
        ("t.jsonl", "jsonl"),
        ("t.json", "records"),
        ("t.json", "columns"),
        ("t.json", "shuffled"),
        ("t.json", "lists"),
        ("t.json", "wrapped"),
        ("t.json", "dict"),
        ("t.json", "array"),
        ("t.Parquet", "parquet"),
    ],
)
def test_every_form_of_a_table(trial: Trial, name: str, form: str) -> None:
    trial.pictures("0.png", "1.png")
    write(trial.root / name, form)
    found = trial(table=name, **TABLE)
    assert found.code == 0, found.said
    assert found.captions == ROWS


def test_excels_own_first_line_counts_as_a_line_and_yields_to_the_manifest(trial: Trial) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", b"sep=;\nimage;caption\n0.png;of 0\n0.png;of 0;too many\n")
    assert "line 4 has 3 cells, the header 2" in str(trial(table="t.csv", **TABLE).bad)
    trial.put("t.csv", b"sep=;\nimage,caption\n0.png,of 0\n")
    assert trial(table="t.csv", delimiter=",", **TABLE).captions == [("0.png", "of 0")]


def test_a_cell_may_hold_an_article_but_no_book(trial: Trial) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", f"image,caption\n0.png,{'long ' * 100_000}\n".encode())
    assert [len(text) for _, text in trial(table="t.csv", **TABLE).captions] == [500_000]
    trial.put("t.csv", f"image,caption\n0.png,of 0\n0.png,{'long ' * 2**20}\n".encode())
    found = trial(table="t.csv", **TABLE)
    assert found.code == 2 and "line 3: a cell holds more than 4194304 characters" in found.said


@pytest.mark.parametrize(("suffix", "press"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_compressed_tables(trial: Trial, name: str, suffix: str, press: Callable[[bytes], bytes]) -> None:
    trial.pictures("0.png", "1.png")
    write(trial.root / name, {"t.csv": "csv", "t.jsonl": "jsonl", "t.json": "records"}[name])
    trial.put(f"{name}.{suffix}", press((trial.root / name).read_bytes()))
    assert trial(table=f"{name}.{suffix}", **TABLE).captions == ROWS


def test_a_table_compressed_by_zstandard(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    with pa.output_stream(str(trial.root / "t.csv.zst"), compression="zstd") as file:
        file.write(pd.DataFrame(ROWS, columns=["image", "caption"]).to_csv(index=False).encode())
    assert trial(table="t.csv.zst", **TABLE).captions == ROWS


def test_a_table_is_read_once(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.pictures("0.png", "1.png")
    write(trial.root / "t.csv", "csv")
    read, readings = READERS["table"], []
    monkeypatch.setitem(READERS, "table", lambda *given: readings.append(read(*given)) or readings[-1])
    assert trial(table="t.csv", **TABLE).captions == ROWS
    assert len(readings) == 1


# ---- cells


def test_between_tabs_a_quote_is_a_character(trial: Trial) -> None:
    trial.pictures("0.png", "1.png", "2.png")
    rows = [("0.png", '"Go slowly, says the board'), ("1.png", "a red house"), ("2.png", 'a cat named Tom"')]
    trial.put("t.tsv", "image\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert trial(table="t.tsv", **TABLE).captions == rows
    trial.put("t.tsv", 'image\tcaption\n0.png\t"with a\ttab, ""quoted"""\n')
    found = trial(table="t.tsv", **TABLE)
    assert found.code == 2 and "line 2 has 3 cells, the header 2" in found.said
    assert trial(table="t.tsv", quoting="csv", **TABLE).captions == [("0.png", 'with a\ttab, "quoted"')]


def test_empty_lines_before_the_names_are_passed_over(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("t.csv", "\n  \nimage;caption\n0.png;of 0\n\n1.png;of 1;more\n")
    found = trial(table="t.csv", **TABLE)
    assert (found.code, found.captions) == (3, [("0.png", "of 0")])
    assert found.bad == [("t.csv", "line 6 has 3 cells, the header 2")]
    trial.put("t.csv", "\n\n")
    assert "t.csv: holds no rows" in trial(table="t.csv", **TABLE).said


def test_a_quote_that_swallows_rows_is_refused(trial: Trial) -> None:
    trial.pictures("0.png", "1.png", "2.png")
    trial.put("t.csv", 'image,caption\n0.png,"Go slowly\n1.png,a red house\n2.png,named Tom"\n')
    found = trial(table="t.csv", **TABLE)
    assert found.code == 2 and "has a cell that holds further rows; is a quote missing" in found.said


def test_rows_of_another_length_are_bad_one_by_one(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("t.csv", "image| number| caption\n0.png| 0| Fine .\n1.png| 0| Good .\n1.png| 4   A dog runs .\n")
    found = trial(table="t.csv", **TABLE)
    assert (found.code, found.captions) == (3, [("0.png", "Fine ."), ("1.png", "Good .")])
    assert found.bad == [("t.csv", "line 4 has 2 cells, the header 3")]
    assert "t.csv: read with pipes between the cells" in found.said


@pytest.mark.parametrize(
    "cell",
    [
        '["one, of it", "two"]',
        "['one, of it', 'two']",
        "[\"one, of it\", 'two']",
        "['one, of it'\n 'two']",  # as numpy writes it
    ],
)
def test_a_cell_that_holds_a_list_is_several_captions(trial: Trial, cell: str) -> None:
    trial.pictures("0.png", "1.png")
    pd.DataFrame({"image": ["0.png", "1.png"], "caption": [cell, "[sic] one"]}).to_csv(
        trial.root / "t.csv", index=False
    )
    found = trial(table="t.csv", **TABLE)
    assert found.captions == [("0.png", "one, of it"), ("0.png", "two"), ("1.png", "[sic] one")]


@pytest.mark.parametrize("cell", ['["one", 3]', "['one', 3]", ["one", 3]])
def test_a_number_in_a_list_of_captions_is_bad(trial: Trial, cell: str | list[Any]) -> None:
    trial.pictures("0.png")
    trial.put("t.json", [{"image": "0.png", "caption": cell}])
    found = trial(table="t.json", **TABLE)
    assert (found.code, found.captions) == (3, [("0.png", "one")])
    assert found.bad == [("caption of image 0.png", "3 in a list is no text")]


@pytest.mark.parametrize("cell", [{"en": "a dog", "de": "ein Hund"}, [{"raw": "a dog"}], [["a dog"]]])
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_an_object_in_place_of_a_caption_is_refused(trial: Trial, cell: Any, name: str) -> None:
    trial.pictures("0.png", "1.png")
    rows = [{"image": "0.png", "text": None}, {"image": "1.png", "text": cell}]
    trial.put("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), trial.root / "t.parquet")
    found = trial(table=name, caption_column="text", **TABLE)
    assert found.code == 2
    assert f"{name}: row 1 (counted from 0) has an object in the column 'text', not text" in found.said


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({split: [{"image": "0.png", "caption": "a"}] for split in ("train", "test")}, "train, test"),
        ({"columns": ["image", "caption"], "index": [0], "data": [["0.png", "a"]]}, "columns, index, data"),
    ],
)
def test_json_of_another_layout_is_refused_as_such(trial: Trial, content: dict[str, Any], keys: str) -> None:
    trial.put("t.json", content)
    found = trial(table="t.json", **TABLE)
    assert found.code == 2 and "expected a list of objects" in found.said and f"found other keys: {keys}" in found.said


def test_a_table_of_images_alone_that_lists_one_in_two_splits(trial: Trial) -> None:
    trial.put("t.csv", "image,split\nx.png,train\ny.png,train\nx.png, Train\nx.png,test\n")
    manifest = TableManifest(name="x", table="t.csv", caption_column=None, root=trial.root)
    found = READERS["table"](manifest, trial.folder, Console(quiet=True))
    assert found.images[["image_id", "split"]].to_numpy().tolist() == [["x.png", "train"], ["y.png", "train"]]
    bad = {"kind": "image", "item": "x.png (x.png)", "reason": "was listed before, in split train"}
    assert found.bad == [bad]


def test_bytes_are_text(trial: Trial) -> None:
    trial.pictures("0.png", "é.png")
    table = pa.table({"id": [b"0", "é".encode()], "a": ["café".encode(), b"two"], "b": [[b"x", b"y"], [b"z"]]})
    pq.write_table(table, trial.root / "t.parquet")
    found = trial(table="t.parquet", image_path="{id}.png", caption_column=["a", "b"], **TABLE)
    assert (found.code, found.captions[:3]) == (0, [("0.png", "café"), ("0.png", "x"), ("0.png", "y")])
    assert found.captions[3:] == [("é.png", "two"), ("é.png", "z")]

    pq.write_table(table.set_column(1, "a", pa.array([b"caf\xe9", b"two"])), trial.root / "t.parquet")
    found = trial(table="t.parquet", image_path="{id}.png", caption_column="a", **TABLE)
    assert found.code == 2 and "the column 'a' holds bytes that are no UTF-8 text" in found.said


@pytest.mark.parametrize(
    "pattern", ["a.jpg", "{}.jpg", "{0}.jpg", "{id.jpg", "{id!r}.jpg", "{id.x}.jpg", "{split}.jpg"]
)
def test_a_path_that_is_made_from_no_column_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"expected names of columns in braces, as \{id\}"):
        TableManifest(name="x", table="t.csv", image_path=pattern)


@pytest.mark.parametrize(("cell", "bad"), [('["one", null]', 1), ("['one', None]", 1), ("['one', nan]", 1), ("[]", 1)])
def test_missing_captions_in_a_list_are_bad(trial: Trial, cell: str, bad: int) -> None:
    trial.pictures("0.png", "1.png")
    pd.DataFrame({"image": ["0.png", "1.png"], "caption": [cell, "x"]}).to_csv(trial.root / "t.csv", index=False)
    found = trial(table="t.csv", **TABLE)
    assert (found.code, len(found.bad)) == (3, bad)


def test_several_caption_columns(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("t.csv", 'image,a,b\n0.png,one,two\n1.png,"[""three"", ""four""]",\n')
    found = trial(table="t.csv", caption_column=["a", "b"], **TABLE)
    assert (found.code, [text for _, text in found.captions]) == (0, ["one", "two", "three", "four"])


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl"])
def test_a_column_that_is_there_twice_is_refused(trial: Trial, name: str) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", "image,caption,caption\n0.png,1,a dog\n")
    trial.put("t.jsonl", '{"image": "0.png", "caption": "1", "caption": "a dog"}\n')
    pq.write_table(pa.table([["0.png"], ["1"], ["a dog"]], ["image", "caption", "caption"]), trial.root / "t.parquet")
    found = trial(table=name, **TABLE)
    assert found.code == 2 and ("caption' is there 2 times" in found.said or "caption' is there twice" in found.said)


def test_numbers_as_names_beside_missing_ones(trial: Trial) -> None:
    trial.pictures("7.png")
    pd.DataFrame({"id": [7.0, None], "caption": ["x", "alone"]}).to_parquet(trial.root / "t.parquet")
    found = trial(table="t.parquet", image_path="{id}.png", **TABLE)
    assert found.captions == [("7.png", "x"), (None, "alone")]


def test_names_with_the_number_of_the_caption(trial: Trial) -> None:
    trial.pictures("0.jpg", "1.jpg")
    trial.put("Flickr8k.token.txt", "0.jpg#0\tone\n0.jpg#1\ttwo\n1.jpg#0\tthree\n")
    found = trial(table="Flickr8k.token.txt", header=["image", "caption"], **TABLE)
    assert found.captions == [("0.jpg", "one"), ("0.jpg", "two"), ("1.jpg", "three")]


@pytest.mark.parametrize(
    ("pattern", "there"), [("{id}.png", "7.png"), ("{id:012d}.png", "000000000007.png"), ("{part}/{id}.png", "a/7.png")]
)
def test_paths_made_from_columns(trial: Trial, pattern: str, there: str) -> None:
    trial.pictures(f"images/{there}")
    trial.put("t.csv", "id,part,caption\n7,a,x\n")
    assert trial(table="t.csv", image_dir="images", image_path=pattern, **TABLE).captions == [(there, "x")]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig", "gb18030"])
def test_encodings(trial: Trial, encoding: str) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", "image,caption\n0.png,café\n".encode(encoding))
    assert trial(table="t.csv", encoding=encoding, **TABLE).captions == [("0.png", "café")]
    said = trial(table="t.csv", **TABLE).said
    if encoding == "utf-16":
        assert "is UTF-16 text" in said and "encoding: utf-16" in said
    elif encoding != "utf-8-sig":
        assert "is not UTF-8 text" in said and "manifest's key encoding" in said


@pytest.mark.parametrize("kind", [TABLE | {"table": "t.csv"}, {"kind": "folder"}])
@pytest.mark.parametrize("name", ["klingon", "base64", "undefined", "a\0"])
def test_an_encoding_that_is_none_is_refused(trial: Trial, kind: dict[str, Any], name: str) -> None:
    trial.pictures("0.png")
    trial.put("0.txt", "a dog")
    trial.put("t.csv", "image,caption\n0.png,a dog\n")
    found = trial(encoding=name, **kind)
    assert (found.code, "encoding: got" in found.said) == (2, True), found.said
    assert "expected a name that Python knows, such as utf-8, utf-16, cp1252" in found.said


def test_what_is_said_of_columns_that_are_not_there(trial: Trial) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", "image,caption\n0.png,a dog\n")
    said = trial(kind="table", table="t.csv").said
    assert "no column 'split'" in said and "split_column: null" in said
    assert "split_column: null" not in trial(kind="table", table="t.csv", split_column="part").said
    trial.put("bare.csv", "0.png,a dog\n1.png,a cat\n")
    assert "header: [image, caption]" in trial(table="bare.csv", **TABLE).said
    swapped = trial(table="t.csv", image_column="caption", caption_column="image", **TABLE)
    assert swapped.code == 2 and "are the two swapped?" in swapped.said


def test_json_of_null_and_nan_captions(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("t.json", '\ufeff[{"image": "0.png", "caption": NaN}, {"image": "1.png", "caption": "x"}]')
    found = trial(table="t.json", **TABLE)
    assert (found.code, found.captions) == (3, [("1.png", "x")])


# ---- several files, splits


def test_tables_by_split_and_by_pattern(trial: Trial) -> None:
    trial.pictures("0.png", "1.png", "2.png")
    for i, name in enumerate(("train-0.csv", "train-1.csv", "test.csv")):
        trial.put(name, f"image,caption\n{i}.png,of {i}\n")
    found = trial(kind="table", tables={"train": "train-*.csv", "test": "test.csv"})
    assert found.splits == {"train": (2, 2), "test": (1, 1)}
    found = trial(kind="table", table="t*.csv", split_column=None)
    assert found.splits == {"all": (3, 3)}


def test_a_manifest_s_root_is_its_own_folder(trial: Trial) -> None:
    trial.pictures("0.png")
    trial.put("t.csv", "image,caption\n0.png,x\n")
    assert trial(root=..., table="data/t.csv", image_dir="data", **TABLE).captions == [("0.png", "x")]


SOURCES: dict[str, Callable[[Trial, int], dict[str, Any]]] = {}


def source(make: Callable[[Trial, int], dict[str, Any]]) -> Callable[[Trial, int], dict[str, Any]]:
    SOURCES[make.__name__] = make
    return make


@source
def table(trial: Trial, count: int) -> dict[str, Any]:
    trial.put("t.csv", "image,caption\n" + "".join(f"{i}.png,of {i}\n" for i in range(count)))
    return {"kind": "table", "table": "t.csv"}


@source
def folder(trial: Trial, count: int) -> dict[str, Any]:
    for i in range(count):
        trial.put(f"{i}.txt", f"of {i}")
    return {"kind": "folder"}


@source
def karpathy(trial: Trial, count: int) -> dict[str, Any]:
    images = [{"filename": f"{i}.png", "split": "x", "sentences": [{"raw": f"of {i}"}]} for i in range(count)]
    trial.put("k.json", {"images": images})
    return {"kind": "karpathy", "annotations": "k.json"}


@source
def embeddings(trial: Trial, count: int) -> dict[str, Any]:
    trial.put("i.csv", "image\n" + "".join(f"{i}.png\n" for i in range(count)))
    trial.put("c.csv", "image,caption\n" + "".join(f"{i}.png,of {i}\n" for i in range(count)))
    features = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    features[1] = features[0]
    np.save(trial.root / "f.npy", features)
    parts = {"images": {"table": "i.csv", "features": "f.npy"}, "captions": {"table": "c.csv", "features": "f.npy"}}
    return {"kind": "embeddings", **parts}


@pytest.mark.parametrize("kind", SOURCES)
def test_drawn_splits_keep_copies_together(trial: Trial, kind: str) -> None:
    count = 40
    trial.pictures(*(f"{i}.png" for i in range(count)))
    trial.put("1.png", picture(0))
    manifest = SOURCES[kind](trial, count) | {"split_fractions": {"train": 0.75, "test": 0.25}}
    found = trial(**manifest)
    assert found.code == 0, found.said
    assert 28 <= found.splits["train"][0] <= 32 and sum(n for n, _ in found.splits.values()) == count
    images = found.data.images
    split = images.set_index("image_id")["split"]
    assert split["0.png"] == split["1.png"]
    captions = found.data.captions
    assert (captions["image_id"].map(split) == captions["split"]).all()
    again = trial("--force", **manifest)
    pd.testing.assert_frame_equal(again.data.images, images)
    other = trial(**manifest, split_seed=1)
    assert not (other.data.images["split"] == images["split"]).all()


def test_fractions_that_do_not_sum_to_one_are_refused(trial: Trial) -> None:
    found = trial(kind="folder", split_fractions={"train": 0.9, "test": 0.2})
    assert found.code == 2 and "split_fractions" in found.said and "these sum to 1.1" in found.said


# ---- images inside


def hugging_face(count: int, per_image: int = 2) -> pa.Table:
    """As datasets writes an image column and a list of captions."""
    images = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(count)]
    captions = [[f"{k} of {i}" for k in range(per_image)] for i in range(count)]
    return pa.table({"image": images, "caption": captions, "id": list(range(count))})


def check_inside(found: Any, count: int) -> None:
    assert found.code == 0, found.said
    assert found.captions == [(f"{i}.png", f"{k} of {i}") for i in range(count) for k in range(2)]
    for i, locator in enumerate(found.data.images["locator"]):
        assert read_bytes(found.data.root / locator) == picture(i)


def test_images_inside_parquet_shards(trial: Trial) -> None:
    whole = hugging_face(7)
    (trial.root / "data").mkdir()
    for i, part in enumerate((whole[:4], whole[4:])):
        pq.write_table(part, trial.root / "data" / f"train-{i:05d}-of-00002.parquet", row_group_size=3)
    found = trial(kind="table", tables={"train": "data/train-*.parquet"})
    check_inside(found, 7)
    assert found.splits == {"train": (7, 14)}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_paths_that_are_written_as_bytes_are_no_images(trial: Trial, form: str, kind: pa.DataType) -> None:
    """As Spark and TFDS write texts; a first row without an image says nothing."""
    trial.pictures("0.png", "é/1.png")
    names = pa.array([None, *(name.encode() for name in ("0.png", "0.png", "é/1.png"))], kind)
    table = pa.table({"image": names, "caption": pa.array([b"alone", b"of 0", b"also 0", b"of 1"])})
    if form == "parquet":
        pq.write_table(table, trial.root / "t.parquet")
    else:
        with pa.OSFile(str(trial.root / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    found = trial(table=f"t.{form}", **TABLE)
    assert found.code == 0, found.said
    assert found.captions == [(None, "alone"), ("0.png", "of 0"), ("0.png", "also 0"), ("é/1.png", "of 1")]


@pytest.mark.parametrize("splits", [True, False])
def test_a_folder_of_save_to_disk(trial: Trial, splits: bool) -> None:
    whole = hugging_face(5)
    at = trial.root / "saved" / ("train" if splits else "")
    at.mkdir(parents=True)
    with pa.OSFile(str(at / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, whole.schema) as out:
        for start in (0, 3):
            out.write_table(whole[start : start + 3])
    if splits:
        trial.put("saved/dataset_dict.json", {"splits": ["train"]})
    found = trial(table="saved", **({"kind": "table"} if splits else TABLE))
    check_inside(found, 5)
    assert list(found.splits) == ["train" if splits else "all"]


def saved(folder: Path, *parts: pa.Table, cached: pa.Table) -> None:
    """As save_to_disk writes shards, and what a map over them leaves beside them."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, table in zip([*names, "cache-0123456789abcdef.arrow"], [*parts, cached], strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("state", [True, False])
def test_what_a_map_has_cached_in_a_saved_folder_is_not_read(trial: Trial, state: bool) -> None:
    whole = hugging_face(5)
    saved(trial.root / "saved", whole[:2], whole[2:], cached=hugging_face(9)[6:])
    if not state:
        (trial.root / "saved" / "state.json").unlink()
    check_inside(trial(table="saved", **TABLE), 5)


def test_a_saved_folder_that_lacks_a_shard_is_refused(trial: Trial) -> None:
    whole = hugging_face(5)
    saved(trial.root / "saved", whole[:2], whole[2:], cached=whole)
    (trial.root / "saved" / "data-00001-of-00002.arrow").unlink()
    found = trial(table="saved", **TABLE)
    assert found.code == 2 and "saved/data-00001-of-00002.arrow: no such file" in found.said
    for text in ("{", '{"_data_files": [3]}', "[]"):
        trial.put("saved/state.json", text)
        assert "state.json: is none that datasets' save_to_disk wrote, or damaged" in trial(table="saved", **TABLE).said
    trial.put("saved/state.json", {"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]})
    assert "saved: its rows are chosen by a list of indices" in trial(table="saved", **TABLE).said


def test_the_splits_of_a_saved_folder_are_not_joined(trial: Trial) -> None:
    for name in ("train", "test"):
        saved(trial.root / "saved" / name, hugging_face(5), cached=hugging_face(1))
    trial.put("saved/dataset_dict.json", {"splits": ["train", "test"]})
    found = trial(kind="table", tables={"train": "saved"})
    assert found.code == 2 and "tables.train: " in found.said and "has splits of its own: test, train" in found.said
    check_inside(trial(kind="table", tables={"train": "saved/train"}), 5)


def test_one_row_per_caption_of_an_image_inside(trial: Trial) -> None:
    rows = [
        {"image": {"bytes": picture(i // 2), "path": f"{i // 2}.png"}, "caption": f"{i % 2} of {i // 2}"}
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), trial.root / "t.parquet")
    found = trial(table="t.parquet", **TABLE)
    assert found.captions == [(f"{i // 2}.png", f"{i % 2} of {i // 2}") for i in range(6)]
    assert found.splits == {"all": (3, 6)}


@pytest.mark.parametrize("paths", [[None] * 4, ["a.png"] * 4])
def test_images_inside_without_names_of_their_own(trial: Trial, paths: list[str | None]) -> None:
    rows = [{"image": {"bytes": picture(i), "path": path}, "caption": f"of {i}"} for i, path in enumerate(paths)]
    pq.write_table(pa.Table.from_pylist(rows), trial.root / "t.parquet", row_group_size=3)
    found = trial(table="t.parquet", **TABLE)
    assert found.code == 0 and found.splits == {"all": (4, 4)}
    located = found.data.images.set_index("image_id")["locator"]
    for image_id, text in found.captions:
        assert read_bytes(found.data.root / located[str(image_id)]) == picture(int(text[-1]))


def test_binary_cells_and_bad_ones(trial: Trial) -> None:
    cells = [picture(0), None, b"no image", picture(3)]
    pq.write_table(pa.table({"image": cells, "caption": list("abcd")}), trial.root / "t.parquet")
    found = trial(table="t.parquet", **TABLE)
    assert (found.code, [text for _, text in found.captions]) == (3, ["a", "d"])
    assert [reason for _, reason in found.bad] == ["an empty file", "not an image"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary_view()])
@pytest.mark.parametrize("column", ["image/encoded", "0.png", "a::b/c"])
def test_images_in_columns_of_any_name(trial: Trial, column: str, kind: pa.DataType) -> None:
    images = pa.array([picture(i) for i in range(300)], kind)
    pq.write_table(pa.table({column: images, "text/en": [f"of {i}" for i in range(300)]}), trial.root / "t.parquet")
    found = trial(table="t.parquet", image_column=column, caption_column="text/en", **TABLE)
    assert found.code == 0, found.said
    assert found.captions == [(f"t/{i:06d}", f"of {i}") for i in range(300)]
    for i, locator in list(enumerate(found.data.images["locator"]))[::100]:
        assert read_bytes(found.data.root / locator) == picture(i)


def test_a_path_in_place_of_an_image_s_bytes_is_named(trial: Trial) -> None:
    images = [{"bytes": content, "path": f"/photos/{i}.png"} for i, content in enumerate((picture(0), None))]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b"]}), trial.root / "t.parquet")
    found = trial(table="t.parquet", **TABLE)
    assert [reason for _, reason in found.bad] == [
        "cannot be read: the table does not hold it, only the path /photos/1.png"
    ]


@pytest.mark.slow  # four gigabytes of memory
def test_images_of_a_row_group_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    image = bytes(16 * 2**20)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 140, pa.int32()), pa.array([image], pa.binary()))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": cells}), path, store_schema=False)
    assert read_bytes(Path(f"{path}::image/@0+139")) == image


def test_a_compressed_table_that_is_read_where_it_lies_is_refused(trial: Trial) -> None:
    pq.write_table(pa.table({"image": ["0.png"], "caption": ["a dog"]}), trial.root / "t.parquet")
    trial.put("t.parquet.gz", gzip.compress((trial.root / "t.parquet").read_bytes()))
    found = trial(table="t.parquet.gz", **TABLE)
    assert found.code == 2 and "t.parquet.gz: is compressed, and such tables are not: uncompress it" in found.said
