"""Hostile input, tried through the command line: nothing runs, is written elsewhere or fills the memory."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, PngImagePlugin

from cs_aligner_cli.common.console import printable

Csalign = Callable[..., Any]
Refused = Callable[..., str]
WriteYaml = Callable[..., Path]
ESCAPE = "\x1b]0;owned\x07\x1b[2J\r"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Ten gigabytes more than now: what a bomb asks for fails at once, and does not take the machine along."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 10 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def picture(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()


@pytest.fixture
def shard_recipe(tmp_path: Path, write_yaml: WriteYaml) -> Path:
    """A recipe for the shards in tmp_path / "data"; its run goes to tmp_path / "run"."""
    (tmp_path / "data").mkdir()
    write_yaml("m.yaml", name="m", kind="webdataset", root="data")
    return write_yaml("r.yaml", name="r", run_dir="run", data={"manifest": "m.yaml"})


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def member(name: str, content: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if content else None)


def bad_items(recipe: Path) -> dict[str, str]:
    report = json.loads((recipe.parent / "run" / "data" / "report.json").read_text())
    return {item["item"].rpartition("::")[2]: item["reason"] for item in report["bad_items"]}


# ---- archives


def test_members_that_are_links_devices_or_lead_out_of_the_archive(
    shard_recipe: Path, tmp_path: Path, csalign: Csalign
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    write_tar(
        tmp_path / "data" / "a.tar",
        member("fine.png", picture()),
        member("fine.txt", b"a fine one"),
        member("/etc/cron.d/x.png", picture(1)),
        member("../../out.png", picture(2)),
        member("sub/../../out2.png", picture(3)),
        member("link.png", type=tarfile.SYMTYPE, linkname=str(secret)),
        member("hard.png", type=tarfile.LNKTYPE, linkname="fine.png"),
        member("device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("fifo.png", type=tarfile.FIFOTYPE),
        member("folder.png", type=tarfile.DIRTYPE),
    )
    before = everything_in(tmp_path)
    called = csalign("prepare", shard_recipe, "--json")
    assert called.exit_code == 3
    assert called.json["splits"] == {"all": {"images": 1, "captions": 1}}
    assert bad_items(shard_recipe) == {
        "/etc/cron.d/x.png": "a path that leads out of the archive",
        "../../out.png": "a path that leads out of the archive",
        "sub/../../out2.png": "a path that leads out of the archive",
        "link.png": "a link, not a file",
        "hard.png": "a link, not a file",
        "device.png": "no regular file",
        "fifo.png": "no regular file",
    }
    assert {name.split("/")[0] for name in everything_in(tmp_path) - before} == {"run"}
    assert not list((tmp_path / "run").rglob("*.png"))  # nothing is extracted


def test_names_in_archives_can_hold_anything(shard_recipe: Path, tmp_path: Path, csalign: Csalign) -> None:
    names = [f"{ESCAPE}a", "b\nc", "ü/ß", "d\udcff", "x.tar::y/z", "z@1+2", "e" * 300, "=cmd|' /C calc'!A0"]
    parts = [m for i, n in enumerate(names) for m in (member(n + ".png", picture(i)), member(n + ".txt", b"told"))]
    write_tar(tmp_path / "data" / "a.tar", *parts)
    called = csalign("prepare", shard_recipe, "--json")
    assert called.exit_code == 0, called.stderr
    images = pd.read_parquet(tmp_path / "run" / "data" / "images.parquet")
    assert len(images) == len(names)
    assert all(name.isprintable() for name in images["image_id"])


def test_sizes_that_are_not_there(shard_recipe: Path, tmp_path: Path, csalign: Csalign, bounded_memory: None) -> None:
    """Headers that claim 8 GiB, 4 EiB and a negative size, and a pax header that claims more than all memory."""
    fine = [member("fine.png", picture()), member("fine.txt", b"a fine one")]
    claims = {"huge": 2**33 - 1, "absurd": 2**62, "negative": -512}
    for name, size in claims.items():
        write_tar(tmp_path / "data" / f"{name}.tar", *fine, member("x.png", picture()))
        content = bytearray((tmp_path / "data" / f"{name}.tar").read_bytes())
        with tarfile.open(tmp_path / "data" / f"{name}.tar") as archive:
            place = archive.getmember("x.png").offset
        info = tarfile.TarInfo("x.png")
        info.size = size
        content[place : place + 512] = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "data" / f"{name}.tar").write_bytes(content)
    pax = tarfile.TarInfo("p")
    pax.type, pax.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "data" / "pax.tar").write_bytes(pax.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    called = csalign("prepare", shard_recipe, "--json")
    assert called.exit_code == 3
    reasons = {Path(name).stem: reason for name, reason in bad_items(shard_recipe).items() if name.endswith(".tar")}
    assert set(reasons) == {*claims, "pax"}
    assert reasons["huge"].startswith("truncated inside x.png, after ")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_archives_are_not_unpacked(
    compress: Callable[[bytes], bytes], shard_recipe: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "data" / "bomb.tar").write_bytes(compress(bytes(2**26)))
    assert "bomb.tar: is compressed; shards are read where they lie" in refused("prepare", shard_recipe)


# ---- images


def pixel_bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG whose compressed comment unpacks to 200 MB."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "x" * 200_000_000, zip=True)
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=about)
        return file.getvalue()


def gif_bomb() -> bytes:
    """A GIF that claims 65,535 x 65,535 pixels."""
    with io.BytesIO() as file:
        Image.new("P", (1, 1)).save(file, "GIF")
        content = bytearray(file.getvalue())
    content[6:10] = b"\xff\xff\xff\xff"
    return bytes(content)


def test_images_that_unpack_to_more_than_memory(
    shard_recipe: Path, tmp_path: Path, csalign: Csalign, bounded_memory: None
) -> None:
    bombs = {"pixels": pixel_bomb(), "text": text_bomb(), "gif": gif_bomb()}
    samples = [m for n, b in bombs.items() for m in (member(f"{n}.png", b), member(f"{n}.txt", b"told"))]
    write_tar(tmp_path / "data" / "a.tar", member("fine.png", picture()), member("fine.txt", b"a fine one"), *samples)
    called = csalign("prepare", shard_recipe, "--json")
    assert called.exit_code == 3
    assert called.json["splits"] == {"all": {"images": 1, "captions": 1}}
    reasons = {name.partition(".")[0]: reason for name, reason in bad_items(shard_recipe).items()}
    assert reasons["pixels"] == reasons["gif"] == "more than 89478485 pixels"
    assert reasons["text"].startswith("damaged: ")


def test_a_postscript_file_is_not_run(tmp_path: Path, photos_root: Path, photos_recipe: Path, csalign: Csalign) -> None:
    """PIL would hand EPS to Ghostscript."""
    (photos_root / "images" / "00.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/owned) (w) file\nshowpage\n%%EOF\n"
    )
    called = csalign("prepare", photos_recipe, "--json")
    assert called.exit_code == 3
    assert bad_items(photos_recipe)[str(photos_root / "images" / "00.jpg")] == "not an image"


# ---- YAML


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 20000 values: do aliases multiply each other?"),
        ("name: &x [*x]", "an alias contains itself"),
        ("name: !!python/object/apply:os.system ['touch owned']", "is not allowed here"),
        ("name: !!python/name:os.system", "is not allowed here"),
        ("name: " + "[" * 100_000, "nested too deeply"),
        ("? {a: b}\n: c", "a key must be plain text"),
        ("name: " + "9" * 5000, "cannot be read as int"),
    ],
)
def test_yaml(
    text: str, message: str, tmp_path: Path, refused: Refused, write_yaml: WriteYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.yaml").write_text(text)
    assert message in refused("recipe", "validate", tmp_path / "hostile.yaml")
    recipe = write_yaml("r.yaml", name="r", data={"manifest": "hostile.yaml"})
    assert message in refused("recipe", "validate", recipe)
    assert not (tmp_path / "owned").exists()


# ---- features and weights


class Planted:
    """An object whose unpickling leaves a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def entry(**changes: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [200, 4], "data_offsets": [0, 3200], **changes}}).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("object.npy", None),
        ("pickle.npy", pickle.dumps(Planted())),
        ("shape.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 9)}"),
        ("code.npy", b"\x93NUMPY\x01\x00v\x00__import__('os').mkdir('owned')"),
        ("long.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
        ("length.safetensors", safetensors(b"{}", 2**63)),
        ("longer.safetensors", safetensors(b"{}", 2**64 - 1)),
        ("claimed.safetensors", safetensors(b"{}", 10**9)),
        ("shape.safetensors", safetensors(entry(shape=[2**62, 2**62])) + bytes(3200)),
        ("offsets.safetensors", safetensors(entry(data_offsets=[0, 2**62])) + bytes(3200)),
        ("backwards.safetensors", safetensors(entry(data_offsets=[3200, 0])) + bytes(3200)),
        ("deep.safetensors", safetensors(b"[" * 100_000)),
        ("twice.safetensors", safetensors(b'{"x":{},"x":{}}')),
    ],
)
def test_feature_files(
    name: str, content: bytes | None, features_root: Path, tmp_path: Path, refused: Refused, write_yaml: WriteYaml,
    monkeypatch: pytest.MonkeyPatch, bounded_memory: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = features_root / name
    if content is None:
        np.save(path, np.array([[Planted()] * 4] * 200), allow_pickle=True)
    else:
        path.write_bytes(content)
    images, captions = (
        {"table": "images.csv", "features": name},
        {"table": "captions.csv", "features": "text_minilm.npy"},
    )
    write_yaml("m.yaml", name="m", kind="embeddings", root=str(features_root), images=images, captions=captions)
    image = {"kind": "features"}
    recipe = write_yaml("r.yaml", name="r", run_dir="run", data={"manifest": "m.yaml"}, encoders={"image": image})
    message = refused("prepare", recipe)
    assert message.startswith(f"{path}: cannot be read as ")
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_is_a_pickle_is_not_run(
    tmp_path: Path, photos_recipe: Path, csalign: Csalign, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Planted()}, tmp_path / "weights.pt")
    settings = ("--set", "encoders.image.random_init=false", "--set", "encoders.image.pretrained=weights.pt")
    assert csalign("prepare", photos_recipe).exit_code == 0
    assert "weights.pt" in refused("embed", photos_recipe, *settings)
    assert not (tmp_path / "owned").exists()


# ---- what is shown


@pytest.fixture
def hostile_run(tmp_path: Path, write_yaml: WriteYaml, tiny_clip_config: dict[str, Any]) -> Path:
    """A recipe over images and captions whose names, texts and split are hostile."""
    (tmp_path / "data").mkdir()
    rows = []
    for i in range(12):
        name = f"{i}{SCRIPT.replace('/', '_')}{ESCAPE}.png" if i else '=HYPERLINK("http:__evil").png'
        (tmp_path / "data" / name).write_bytes(picture(i))
        rows += [(name, f"{k} of {i} {SCRIPT} {ESCAPE}", "test") for k in range(2)]
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_json(
        tmp_path / "data" / "t.jsonl", orient="records", lines=True
    )
    write_yaml("m.yaml", name=f"m {SCRIPT}", kind="table", root="data", table="t.jsonl")
    return write_yaml(
        "r.yaml", name="r", run_dir="run", train=None, data={"manifest": "m.yaml"},
        encoders={"image": {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}},
        eval_retrieval={"split": "test", "ks": [1]}, gap_report={"max_pairs": 10},
    )  # fmt: skip


def test_hostile_names_and_captions_in_pages_tables_and_the_terminal(
    hostile_run: Path, tmp_path: Path, csalign: Csalign
) -> None:
    called = csalign("run", hostile_run)
    assert called.exit_code == 0, called.stderr
    page = tmp_path / "search.html"
    searched = csalign("search", hostile_run, "--text", SCRIPT + ESCAPE, "--html", page, "-k", "3", "--store", "frozen")
    assert searched.exit_code == 0, searched.stderr
    for shown in (called, searched, csalign("prepare", hostile_run)):
        assert not set("\x1b\x07\r") & set(shown.stdout + shown.stderr)
    assert "\\x1b[2J" in searched.stdout
    for html in (page, tmp_path / "run" / "gap_report" / "report.html"):
        text = html.read_text()
        assert "<script>alert" not in text and "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in page.read_text()
    tables = list((tmp_path / "run").rglob("*.csv"))
    assert tables
    for path in tables:
        for row in csv.reader(path.read_text().splitlines()):
            assert not any(cell.startswith(("=", "+", "@")) for cell in row), path


def test_csv_cells_that_would_be_formulas_get_an_apostrophe() -> None:
    from cs_aligner_cli.common.safe_csv import csv_bytes

    frame = pd.DataFrame({"=a": ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "x=1"], "n": [-1.5, 2, 3, 4, 5, 6, 7]})
    found = list(csv.reader(io.StringIO(csv_bytes(frame).decode(), newline="")))
    assert [row[0] for row in found] == ["'=a", "'=1+1", "'+x", "'-x", "'@x", "'\tx", "'\nx", "x=1"]
    assert [float(row[1]) for row in found[1:]] == list(frame["n"])


def test_errors_do_not_steer_the_terminal(csalign: Csalign, tmp_path: Path, write_yaml: WriteYaml) -> None:
    (tmp_path / "data").mkdir()
    table = f"image,caption,split\n{ESCAPE.strip()}gone.png,x,a\n"
    (tmp_path / "data" / "t.csv").write_text(table)
    write_yaml("m.yaml", name="m", kind="table", root="data", table="t.csv")
    recipe = write_yaml("r.yaml", name="r", run_dir="run", data={"manifest": "m.yaml"})
    for arguments in (("prepare", recipe), ("prepare", f"{ESCAPE}.yaml"), ("prepare", recipe, "--set", f"{ESCAPE}=1")):
        called = csalign(*arguments)
        assert called.exit_code == 2
        assert not set("\x1b\x07\r") & set(called.stdout + called.stderr)
        assert "\\x1b" in called.stderr


def test_printable_keeps_text_and_escapes_what_steers() -> None:
    fine = "naïve 图片 👩‍🚀 nbsp\u00a0x\ttab\nline"
    assert printable(fine) == fine
    assert printable("a\x1b[31m\x9b\u202e\ud800\x00") == "a\\x1b[31m\\x9b\\u202e\\ud800\\x00"


def test_a_split_cannot_lead_out_of_the_folder_of_shards(
    tmp_path: Path, write_yaml: WriteYaml, csalign: Csalign
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(picture())
    (tmp_path / "data" / "t.csv").write_text("image,caption,split\na.png,x,../../out%\n")
    write_yaml("m.yaml", name="m", kind="table", root="data", table="t.csv")
    recipe = write_yaml("r.yaml", name="r", run_dir="run%d", data={"manifest": "m.yaml"}, prepare={"repack": {}})
    assert csalign("prepare", recipe).exit_code == 0
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["%2E%2E%2F%2E%2E%2Fout%25-00000.tar"]
