"""Random small data sets with hostile names, ids, captions and layouts, in every kind of source, read back whole."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials import picture, tar

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.caption_text import PLACEHOLDERS
from cs_aligner_cli.data.collector import Source, check_images
from cs_aligner_cli.data.images import read_bytes
from cs_aligner_cli.data.manifest import MANIFESTS
from cs_aligner_cli.data.sources import SOURCES
from cs_aligner_cli.data.tidy import linked, unify_splits

# Names with dots, spaces, brackets, quotes, signs and other scripts, and the folders that they lie in.
PARTS = st.text("ab01. -_'\"()[]#%&+,;=@~éñ图犬", min_size=1, max_size=8).filter(
    lambda text: not text.startswith((".", " ")) and not text.endswith((".", " "))
)
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".jpeg", ".JPG", ".webp"])
# Captions of one line that are more than space and no placeholder; quotes, commas, tabs, brackets, odd line ends.
CAPTIONS = st.text("ab ,;|\t\"'[]{}\\\u2028\x85\x0cé图", min_size=1, max_size=12).filter(
    lambda text: text.strip() != "" and text.strip() not in PLACEHOLDERS
)
IMAGE = st.tuples(
    st.sampled_from(["", "x/", "y z/", "x/y.d/"]), PARTS, SUFFIXES, st.lists(CAPTIONS, min_size=1, max_size=3)
)
DATA = st.lists(IMAGE, min_size=1, max_size=5, unique_by=lambda image: (image[0] + image[1]).casefold())
Items = list[tuple[str, list[str]]]


def csv_table(root: Path, items: Items) -> dict[str, Any]:
    with io.StringIO(newline="") as text:
        writer = csv.writer(text)
        writer.writerows([("image", "caption"), *((name, c) for name, captions in items for c in captions)])
        (root / "t.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    return {"kind": "table", "table": "t.csv", "split_column": None}


def json_table(root: Path, items: Items) -> dict[str, Any]:
    rows = [{"image": name, "caption": captions} for name, captions in items]
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"kind": "table", "table": "t.jsonl", "split_column": None}


def json_dict(root: Path, items: Items) -> dict[str, Any]:
    (root / "t.json").write_text(json.dumps(dict(items), ensure_ascii=False), encoding="utf-8")
    return {"kind": "table", "table": "t.json", "split_column": None}


def parquet(root: Path, items: Items) -> dict[str, Any]:
    rows = [{"image": {"bytes": (root / name).read_bytes(), "path": name}, "caption": c} for name, c in items]
    pq.write_table(pa.Table.from_pylist(rows), root / "t.parquet", row_group_size=2)
    return {"kind": "table", "table": "t.parquet", "split_column": None}


def karpathy(root: Path, items: Items) -> dict[str, Any]:
    images = [{"filename": n, "split": "all", "sentences": [{"raw": c} for c in captions]} for n, captions in items]
    (root / "k.json").write_text(json.dumps({"images": images}))
    return {"kind": "karpathy", "annotations": "k.json"}


def coco(root: Path, items: Items) -> dict[str, Any]:
    images = [{"id": i * 7, "file_name": name} for i, (name, _) in enumerate(items)]
    annotations = [{"image_id": i * 7, "caption": c} for i, (_, captions) in enumerate(items) for c in captions]
    (root / "c.json").write_text(json.dumps({"images": images[::-1], "annotations": annotations}))
    return {"kind": "coco", "splits": {"all": {"captions": "c.json", "image_dir": "."}}}


def folder(root: Path, items: Items) -> dict[str, Any]:
    for name, captions in items:
        (root / name).with_suffix(".txt").write_text("\n".join(captions), encoding="utf-8", newline="")
    return {"kind": "folder"}


def webdataset(root: Path, items: Items) -> dict[str, Any]:
    """The images first and the texts after them, so that no two members of a sample are neighbours."""
    images = [(name, (root / name).read_bytes()) for name, _ in items]
    texts = [(str(Path(name).with_suffix(".txt")), "\n".join(captions)) for name, captions in items]
    (root / "a.tar").write_bytes(tar(*images, *texts))
    return {"kind": "webdataset", "shards": {"all": "a.tar"}}


LAYOUTS: dict[str, Callable[[Path, Items], dict[str, Any]]] = {
    make.__name__: make for make in (csv_table, json_table, json_dict, parquet, karpathy, coco, folder, webdataset)
}


def read(root: Path, manifest: dict[str, Any]) -> tuple[Source, list[tuple[bytes, str]]]:
    """The source, and (bytes of the image, caption) of every caption that has one."""
    made = MANIFESTS[manifest["kind"]].model_validate({"name": "x", "root": root, **manifest}, strict=False)
    console = Console(quiet=True)
    source = SOURCES[made.kind](made, root, console)
    check_images(source, root, False, 1, console)
    unify_splits(source)
    images, captions = linked(source)
    located = dict(zip(images["image_id"], images["locator"], strict=True))
    pairs = captions.dropna(subset="image_id")
    return source, [(read_bytes(root / located[i]), t) for i, t in zip(pairs["image_id"], pairs["text"], strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=DATA)
def test_every_caption_is_read_back_on_its_own_image(layout: str, data: list[tuple[str, str, str, list[str]]]) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        items: Items = []
        for i, (where, stem, suffix, captions) in enumerate(data):
            (root / where).mkdir(parents=True, exist_ok=True)
            name = f"{where}{stem}{suffix}"
            (root / name).write_bytes(picture(i))
            items.append((name, captions))
        source, found = read(root, LAYOUTS[layout](root, items))
        expected = [(picture(i), text) for i, (_, captions) in enumerate(items) for text in captions]
        if source.bad or source.skipped:  # what is lost must be counted, and nothing be on another image
            assert set(found) <= set(expected)
            assert len(found) < len(expected)
        else:
            assert sorted(found) == sorted(expected)
    finally:
        shutil.rmtree(root)
