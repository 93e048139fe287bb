"""The reader of WebDataset shards: samples KEY.jpg, KEY.txt, KEY.json, read where they lie in their tars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.annotation_readers import IMAGE_SUFFIXES
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.images import member_locator
from cs_aligner_cli.data.manifest_layouts import WebDatasetManifest
from cs_aligner_cli.data.patterns import find_files
from cs_aligner_cli.data.tarfiles import Member, list_members

# The text or JSON of one sample that is longer describes no image.
_MAX_TEXT = 4 * 2**20


def read_webdataset(manifest: WebDatasetManifest, folder: Path, console: Console) -> Source:
    """The samples of all shards. Captions are the list ``captions`` in the JSON, else the text, else ``caption``.

    An image's id is the JSON's ``image_id``, else SHARD/KEY. A shard that is cut short or damaged is a bad item, and
    so is each member that cannot be read; a sample without an image gives unpaired captions.
    """
    assert manifest.root is not None
    entries, shards = Entries(), shard_files(manifest)
    with console.progress("reading shards (MiB)", sum(_mebibytes(path) for _, path in shards)) as advance:
        for split, path in shards:
            _Shard(manifest.root, path, split, entries).read()
            advance(_mebibytes(path))
    source = entries.source("webdataset", manifest.root)
    source.totals["shards"] = len(shards)
    return source


def shard_files(manifest: WebDatasetManifest) -> list[tuple[str, Path]]:
    """(split, file) of every shard, in the order of names; InputError where a pattern finds none."""
    assert manifest.root is not None
    found = [
        (split, path)
        for split, pattern in manifest.shards.items()
        for path in find_files(manifest.root, pattern, f"shards.{split}")
    ]
    for split, path in found:
        if path.suffix != ".tar":
            raise InputError(
                f"{path}: is no .tar, but the pattern shards.{split} finds it",
                "Shards are read where they lie: uncompress them, and let the pattern end in .tar.",
            )
    return found


class _Shard:
    """One tar file, whose samples go to ``entries``."""

    def __init__(self, root: Path, path: Path, split: str, entries: Entries) -> None:
        self.root, self.path, self.split, self.entries = root, path, split, entries
        self.name = str(path.relative_to(root) if path.is_relative_to(root) else path)

    def read(self) -> None:
        members = list_members(self.path, self._complain)
        with self.path.open("rb") as file:
            # Members of one sample follow each other; webdataset itself relies on it.
            for key, parts in groupby(members, key=lambda member: _split_name(member.name)[0]):
                self._sample(key, {_split_name(part.name)[1]: part for part in parts}, file)

    def _complain(self, member: str, reason: str) -> None:
        if member:
            kind = "image" if _split_name(member)[1] in IMAGE_SUFFIXES else "member"
            self.entries.drop(kind, f"{self.path}::{member}", reason)
        else:
            self.entries.drop("shard", str(self.path), reason)

    def _sample(self, key: str, parts: dict[str, Member], file: Any) -> None:
        about = self._json(parts, file)
        captions = list(self._captions(parts, about, file))
        image = next((part for suffix, part in parts.items() if suffix in IMAGE_SUFFIXES), None)
        named = about.get("image_id")
        image_id = named if isinstance(named, str) and named else f"{self.path.stem}/{key}"
        if image is not None:
            locator = member_locator(self.name, image.name, image.offset, image.size)
            self.entries.add(image_id, self.split, locator, captions)
        elif captions:
            self.entries.add_captions(None, self.split, captions)
        else:
            self.entries.skip("samples with neither an image nor a caption")

    def _json(self, parts: dict[str, Member], file: Any) -> dict[str, Any]:
        if ".json" not in parts:
            return {}
        try:
            about = json.loads(self._text(parts[".json"], file) or "{}")
            json.dumps(about, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            self.entries.drop("member", f"{self.path}::{parts['.json'].name}", "is no JSON object")
            return {}
        return about

    def _captions(self, parts: dict[str, Member], about: dict[str, Any], file: Any) -> Iterator[str]:
        several = about.get("captions")
        if isinstance(several, list) and all(isinstance(text, str) for text in several):
            yield from several
        elif ".txt" in parts:
            yield from [text] if (text := self._text(parts[".txt"], file)) is not None else []
        elif isinstance(about.get("caption"), str):
            yield about["caption"]

    def _text(self, part: Member, file: Any) -> str | None:
        """The text of a member; None, and a bad item, if it is none."""
        if part.size > _MAX_TEXT:
            self.entries.drop("member", f"{self.path}::{part.name}", f"more than {_MAX_TEXT >> 20} MiB of text")
            return None
        file.seek(part.offset)
        try:
            return str(file.read(part.size).decode("utf-8-sig"))
        except UnicodeDecodeError:
            self.entries.drop("member", f"{self.path}::{part.name}", "is not UTF-8 text")
            return None


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix as webdataset has them: the suffix begins at the first dot of the last part; lower case."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _mebibytes(path: Path) -> int:
    return max(1, path.stat().st_size >> 20)
