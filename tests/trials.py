"""What tests of sources share: small pictures and tars, and ``Trial``, which prepares what a test has put there."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cs_aligner_cli.data.prepared import PreparedData

# Towers that are never built; the text tower is of the hub, so that prepare counts no tokens.
PICTURES = {
    "image": {"kind": "open_clip", "model": "ViT-B-32", "random_init": True},
    "text": {"kind": "transformers", "model": "none"},
}
FEATURES = {"image": {"kind": "features"}, "text": {"kind": "features"}}


def picture(number: int, form: str = "PNG", **options: Any) -> bytes:
    """A small picture, another for every number, that no other one resembles."""
    rng = np.random.default_rng(number)
    with io.BytesIO() as file:
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(file, form, **options)
        return file.getvalue()


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """A tar of these members, in this order."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, content in members:
                content = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what prepare left."""

    code: int
    said: str
    summary: dict[str, Any]
    folder: Path

    @property
    def data(self) -> PreparedData:
        return PreparedData(self.folder)

    @property
    def captions(self) -> list[tuple[str | None, str]]:
        """(image_id, text) of every caption, in order."""
        frame = self.data.captions[["image_id", "text"]].astype(object)
        return list(frame.where(frame.notna(), None).itertuples(index=False, name=None))

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        return {name: (n["images"], n["captions"]) for name, n in self.summary["splits"].items()}

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(item, reason) of everything that was dropped; paths are cut to the file's name."""
        items = json.loads((self.folder / "report.json").read_text())["bad_items"]
        return [(item["item"].rpartition("/data/")[2], item["reason"]) for item in items]


class Trial:
    """A folder of data and a manifest over it."""

    def __init__(self, folder: Path, csalign: Callable[..., Any], write_yaml: Callable[..., Path]) -> None:
        self.folder, self.root = folder, folder / "data"
        self._csalign, self._write_yaml = csalign, write_yaml
        self.root.mkdir()

    def put(self, name: str, content: bytes | str | dict[str, Any] | list[Any]) -> Path:
        """A file below the data's root; objects are written as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict | list):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def pictures(self, *names: str) -> None:
        """A PNG under each name, whatever its suffix; the i-th is ``picture(i)``."""
        for i, name in enumerate(names):
            self.put(name, picture(i))

    def recipe(self, sections: dict[str, Any] | None = None, **manifest: Any) -> Path:
        """A recipe over a manifest of these keys."""
        manifest = {"name": "mine", "root": "data", **manifest}
        self._write_yaml("m.yaml", **{key: value for key, value in manifest.items() if value is not ...})
        stored = manifest["kind"] in ("embeddings", "clip_retrieval")
        content = {"train": None, "encoders": FEATURES if stored else PICTURES, **(sections or {})}
        return self._write_yaml("r.yaml", name="trial", run_dir="run", data={"manifest": "m.yaml"}, **content)

    def __call__(self, *options: str, sections: dict[str, Any] | None = None, **manifest: Any) -> Outcome:
        """``csalign prepare`` over a manifest of these keys."""
        return self.run("prepare", self.recipe(sections, **manifest), "--json", *options)

    def run(self, *arguments: Any) -> Outcome:
        called = self._csalign(*arguments)
        summary = called.json if called.stdout.startswith("{") else {}
        return Outcome(called.exit_code, called.stderr, summary, self.folder / "run" / "data")
