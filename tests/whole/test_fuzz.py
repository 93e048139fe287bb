"""Random recipes, manifests, tables, JSON, archives and features: refused in our words, or read; no traceback.

A few hundred cases in the ordinary run; `make fuzz` tries 20,000 (CSALIGN_FUZZ names the number in all). In process:
what the command line calls is called, and every exception but InputError, which is exit code 2, fails. A case that
takes more than some seconds fails too, so that nothing hangs.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.collector import Source, check_images
from cs_aligner_cli.data.features import FeatureFile
from cs_aligner_cli.data.manifest import MANIFESTS, Manifest, load_manifest
from cs_aligner_cli.data.source_files import lists_its_files, read_listed, source_files
from cs_aligner_cli.data.sources import SOURCES
from cs_aligner_cli.data.tables import FORMATS, read_frame, text_column
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stages.prepare import prepare

# Of all targets together; each has its share of twentieths.
CASES = int(os.environ.get("CSALIGN_FUZZ", "400"))
QUIET = Console(quiet=True)
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def fuzzed(shares: float) -> Callable[[Any], Any]:
    """Give a property its share of the cases."""
    return settings(
        max_examples=max(4, int(CASES * shares / 20)),
        deadline=timedelta(seconds=10),
        suppress_health_check=SUPPRESSED,
        derandomize="CSALIGN_FUZZ" not in os.environ,
        database=None,
    )


def outcome(call: Callable[[], object]) -> str:
    """ "read", or the message of the InputError; anything else that is raised fails the test."""
    try:
        call()
    except InputError as error:
        message = str(error)
        assert message.strip() and "Traceback" not in message
        return message
    return "read"


def pixels(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()


# ---- what is drawn


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few places overwritten, taken out, doubled, or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        place = draw(st.integers(0, len(content) - 1))
        how = draw(st.sampled_from(["set", "bits", "insert", "remove", "cut", "copy"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if how == "set":
            content[place : place + len(some)] = some
        elif how == "bits":
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            content[place:place] = some
        elif how == "remove":
            del content[place : place + draw(st.integers(1, 600))]
        elif how == "cut":
            del content[place:]
        else:
            content += content[place : place + draw(st.integers(1, 600))]
    return bytes(content)


ODD_TEXT = st.one_of(
    st.sampled_from(["", " ", "null", "~", "-", ".", "..", "/", "\x00", "\x1b[2J", "a" * 300, "nan", "1e999"]),
    st.sampled_from(["=1+1", "*", "**", "[", "%d", "../*", "/etc/*", "~root", "${HOME}"]),
    st.text(max_size=12),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ODD_TEXT, st.integers(-(10**40), 10**40))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ODD_TEXT, inner, max_size=3)),
    max_leaves=6,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key path of nested dicts and lists, inner ones too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *leaves(inner, (*path, key))]]


@st.composite
def changed(draw: st.DrawFn, whole: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """Nested dicts and lists with a few values replaced, keys renamed or taken out."""
    content = json.loads(json.dumps(whole, default=str))
    for _ in range(draw(st.integers(1, 3))):
        paths = leaves(content)
        if not paths:
            break
        *outer, last = draw(st.sampled_from(paths))
        owner = content
        for key in outer:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if how == "replace" or isinstance(owner, list):
            owner[last] = draw(values)
        elif how == "remove":
            del owner[last]
        else:
            owner[draw(ODD_TEXT)] = owner.pop(last)
    return content


RECIPES = {name: shelf.find("recipes", name).read_text(encoding="utf-8") for name in shelf.names("recipes")}
MANIFEST_TEXTS = {
    name: shelf.find("data_manifests", name).read_text(encoding="utf-8") for name in shelf.names("data_manifests")
}


# ---- recipes and manifests


@fuzzed(4)
@given(data=st.data())
def test_recipes(data: st.DataObject, tmp_path: Path) -> None:
    text = RECIPES[data.draw(st.sampled_from(sorted(RECIPES)))]
    path = tmp_path / "r.yaml"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(text.encode())))
    else:
        path.write_text(yaml.safe_dump(data.draw(changed(yaml.safe_load(text)))), encoding="utf-8")
    overrides = data.draw(st.lists(st.tuples(ODD_TEXT, ODD_TEXT).map("=".join), max_size=1))
    outcome(lambda: load_recipe(str(path), overrides))


@fuzzed(2)
@given(data=st.data())
def test_overrides(data: st.DataObject) -> None:
    key = data.draw(
        st.sampled_from(["seed", "train.lr", "train.objective.divergence.bandwidth", "data", "encoders.image", "x", ""])
    )
    value = data.draw(st.one_of(ODD_TEXT, VALUES.map(lambda value: yaml.safe_dump(value)), st.text(max_size=40)))
    outcome(lambda: load_recipe("flickr8k", [f"{key}={value}"]))


@fuzzed(3)
@given(data=st.data())
def test_manifests(data: st.DataObject, tmp_path: Path) -> None:
    text = MANIFEST_TEXTS[data.draw(st.sampled_from(sorted(MANIFEST_TEXTS)))]
    if data.draw(st.booleans()):
        (tmp_path / "m.yaml").write_bytes(data.draw(damaged(text.encode())))
    else:
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(data.draw(changed(yaml.safe_load(text)))), encoding="utf-8")
    recipe = load_recipe("flickr8k", [f"data.manifest={tmp_path / 'm.yaml'}", f"data.root={tmp_path}"])
    images = load_recipe("flickr8k_images", [f"data.manifest={tmp_path / 'm.yaml'}", f"data.root={tmp_path}"])
    for each in (recipe, images):
        outcome(lambda each=each: _source_files(load_manifest(each)))  # type: ignore[misc]


def _source_files(manifest: Manifest) -> list[str]:
    return read_listed(manifest, QUIET)[0] if lists_its_files(manifest) else source_files(manifest)


# ---- tables


def table_bytes(suffix: str) -> bytes:
    rows = [("a.png", 'one, "two"', "train"), ("b.png", "naïve\n图片", "test"), ("a.png", "", "train")] * 2
    frame = pd.DataFrame(rows, columns=["image", "caption", "split"])
    with io.BytesIO() as file:
        if suffix == ".parquet":
            frame.to_parquet(file, index=False)
        elif suffix in (".csv", ".tsv"):
            frame.to_csv(file, index=False, sep="," if suffix == ".csv" else "\t")
        else:
            frame.to_json(file, orient="records", lines=True)
        return file.getvalue()


TABLES = {suffix: table_bytes(suffix) for suffix in FORMATS}


@fuzzed(4)
@given(data=st.data())
def test_tables(data: st.DataObject, tmp_path: Path) -> None:
    suffix = data.draw(st.sampled_from(sorted(FORMATS)))
    path = tmp_path / f"t{suffix}"
    if suffix.startswith(".jsonl") and data.draw(st.booleans()):
        rows = data.draw(st.lists(changed({"image": "a", "caption": ["b"], "split": "c"}), min_size=1, max_size=3))
        path.write_text("\n".join(map(json.dumps, rows)))
    elif data.draw(st.integers(0, 4)) == 0:
        path.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        path.write_bytes(data.draw(damaged(TABLES[suffix])))
    columns = ["image", "caption", "split"]

    def read() -> None:
        frame = read_frame(path, columns)
        for column in columns:
            text_column(frame, column, path)

    outcome(read)
    manifest = MANIFESTS["table"].model_validate({"name": "x", "kind": "table", "table": path.name, "root": tmp_path})
    outcome(lambda: SOURCES["table"](manifest, tmp_path, QUIET))


# ---- annotation files


KARPATHY = {"images": [{"filename": "a.png", "filepath": "x", "split": "restval", "sentences": [{"raw": "one"}]}] * 2}
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "one"}] * 2}
SHARE = [{"image": "a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "one"}]}] * 2
ANNOTATED: dict[str, tuple[Any, dict[str, Any]]] = {
    "karpathy": (KARPATHY, {"annotations": "x.json"}),
    "coco": (COCO, {"splits": {"train": {"captions": "x.json", "image_dir": "."}}}),
    "conversations": (SHARE, {"annotations": "x.json"}),
}


@fuzzed(2)
@given(data=st.data())
def test_annotation_files(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(sorted(ANNOTATED)))
    whole, keys = ANNOTATED[kind]
    if data.draw(st.booleans()):
        content = data.draw(damaged(json.dumps(whole).encode()))
    else:
        content = json.dumps(data.draw(changed(whole))).encode()
    (tmp_path / "x.json").write_bytes(content)
    (tmp_path / "a.png").write_bytes(pixels())
    manifest = MANIFESTS[kind].model_validate({"name": "x", "kind": kind, "root": tmp_path, **keys})
    looked_at(lambda: SOURCES[kind](manifest, tmp_path, QUIET), tmp_path)


def looked_at(read: Callable[[], Source], root: Path) -> None:
    """Read a source and look at its images; either is refused in our words."""

    def call() -> None:
        source = read()
        check_images(source, root, False, 1, QUIET)
        assert len(source.images) == 0 or (source.images["width"] > 0).all()
        for frame in (source.images, source.captions):  # what is left can be stored
            frame.to_parquet(io.BytesIO())
        json.dumps(source.bad).encode()

    outcome(call)


# ---- archives


def tar_bytes(format: int) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            for key in ("a", "long/" * 30 + "b"):
                for suffix, content in (("png", pixels()), ("txt", b"told"), ("json", b'{"captions": ["x", "y"]}')):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    info.pax_headers = {"comment": "ü" * 20}
                    archive.addfile(info, io.BytesIO(content))
        return file.getvalue()[:-8192]  # most of the padding at the end


TARS = [tar_bytes(format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


@fuzzed(4)
@given(data=st.data())
def test_archives(data: st.DataObject, tmp_path: Path) -> None:
    whole = data.draw(st.sampled_from(TARS))
    content = bytearray(data.draw(damaged(whole)))
    if data.draw(st.booleans()):  # make a header's checksum right again, so that the damage gets further
        for start in range(0, len(content) - 511, 512):
            block = content[start : start + 512]
            if block[257:262] == b"ustar":
                total = sum(block[:148]) + sum(block[156:]) + 8 * 32
                content[start + 148 : start + 156] = b"%06o\0 " % total
    (tmp_path / "x.tar").write_bytes(content)
    manifest = MANIFESTS["webdataset"].model_validate({"name": "x", "kind": "webdataset", "root": tmp_path})
    looked_at(lambda: SOURCES["webdataset"](manifest, tmp_path, QUIET), tmp_path)


# ---- feature files


def npy_bytes() -> bytes:
    with io.BytesIO() as file:
        np.save(file, np.ones((6, 4), np.float32))
        return file.getvalue()


FEATURES = {".npy": npy_bytes(), ".safetensors": save({"x": np.ones((6, 4), np.float32)})}


@fuzzed(1)
@given(data=st.data())
def test_feature_files(data: st.DataObject, tmp_path: Path) -> None:
    suffix = data.draw(st.sampled_from(sorted(FEATURES)))
    path = tmp_path / f"f{suffix}"
    path.write_bytes(data.draw(damaged(FEATURES[suffix])))

    def read() -> None:
        file = FeatureFile(path)
        # A damaged shape may claim more rows than a test has time for.
        for block, _ in zip(file.blocks(), range(3), strict=False):
            assert block.dtype == np.float32

    outcome(read)


# ---- whole stages


@pytest.mark.filterwarnings("ignore::UserWarning")
@fuzzed(0.1)
@given(data=st.data())
def test_prepare_from_a_damaged_archive(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    from cs_aligner_cli.common.errors import TooManyBadItems

    root = tmp_path_factory.mktemp("fuzz")
    (root / "x.tar").write_bytes(data.draw(damaged(TARS[0])))
    (root / "m.yaml").write_text("name: m\nkind: webdataset\nroot: .\n")
    recipe = load_recipe(
        "flickr8k_images", [f"data.manifest={root / 'm.yaml'}", f"data.root={root}", f"run_dir={root / 'run'}"]
    )
    try:
        prepare(recipe, QUIET)
    except TooManyBadItems as error:
        assert error.result["bad_fraction"] > 0
    except InputError as error:
        assert str(error)
