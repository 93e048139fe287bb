"""The reader of WebDataset shards: samples KEY.jpg, KEY.txt, KEY.json, read where they lie in their tars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, listed
from cs_aligner_cli.data.caption_text import captions_in
from cs_aligner_cli.data.class_files import Classes, read_classes
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.file_names import is_system_file
from cs_aligner_cli.data.images import member_locator
from cs_aligner_cli.data.manifest_layouts import WebDatasetManifest
from cs_aligner_cli.data.patterns import find_files
from cs_aligner_cli.data.samples import CLASS, IMAGE, JSON, TEXT, Sample, grouped, role_of
from cs_aligner_cli.data.tarfiles import Member, list_members

# The text or JSON of one sample that is longer describes no image.
_MAX_TEXT = 4 * 2**20
# Under which of them a JSON has its captions, the first one before the others.
CAPTION_KEYS = ("captions", "caption", "texts", "text", "sentences", "sentence", "description", "title")


def read_webdataset(manifest: WebDatasetManifest, folder: Path, console: Console) -> Source:
    """The samples of all shards. Captions are a list in the JSON, else the text's, else the JSON's one caption; where
    the manifest names classes, and there is none of these, the class name in the first template.

    An image's id is the JSON's ``image_id``, else SHARD/KEY, SHARD being its path below root; its label is its class,
    or the JSON's ``label`` where that is text, as ``prepare.repack`` writes it. A shard that is cut short
    or damaged is a bad item, and so is each member that cannot be read; a sample without an image gives unpaired
    captions. Raises InputError for a class number that the class names do not have.
    """
    assert manifest.root is not None
    entries, shards, classes = Entries(), shard_files(manifest), read_classes(manifest)
    unclear, example = 0, ""
    with console.progress("reading shards (MiB)", sum(_mebibytes(path) for _, path in shards)) as advance:
        for split, path in shards:
            names = _Shard(manifest, path, split, entries, classes).read()
            unclear, example = unclear + len(names), example or next((f"{path}::{name}" for name in names), "")
            advance(_mebibytes(path))
    if unclear:
        entries.notes.append(
            f"{counted(unclear, 'names', 'stand')} for several images or several captions, as {example}: nothing says"
            " which belong together, so that they are unpaired; expected: one of each, those that image_suffix and"
            " caption_suffix name, or several captions as lines of one text or a list in the JSON"
        )
    source = entries.source("webdataset", manifest.root, unique=True)
    source.totals["shards"] = len(shards)
    if classes is not None:
        source.description |= classes.described()
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
        if path.suffix.lower() != ".tar":
            raise InputError(
                f"{path}: is no .tar, but the pattern shards.{split} finds it",
                "Shards are read where they lie: uncompress them, and let the pattern end in .tar.",
            )
    in_split: dict[Path, str] = {}
    for split, path in found:
        if in_split.setdefault(path, split) != split:
            raise InputError(f"{path}: is found by the patterns shards.{in_split[path]} and shards.{split}")
    return found


class _Shard:
    """One tar file, whose samples go to ``entries``."""

    def __init__(
        self, manifest: WebDatasetManifest, path: Path, split: str, entries: Entries, classes: Classes | None
    ) -> None:
        assert manifest.root is not None
        self.classes = classes
        self.manifest, self.path, self.split, self.entries = manifest, path, split, entries
        self.name = str(path.relative_to(manifest.root) if path.is_relative_to(manifest.root) else path)

    def read(self) -> list[str]:
        """Read all samples; the names of those whose images and captions nothing pairs."""
        members = (m for m in list_members(self.path, self._complain) if not is_system_file(m.name))
        samples, odd = grouped(members, self.manifest.image_suffix, self.manifest.caption_suffix)
        for item, reason in odd.bad:
            self.entries.drop("image", f"{self.path}::{item}", reason)
        for what, count in odd.skipped.items():
            self.entries.skip(what, count)
        with self.path.open("rb") as file:
            for sample in samples:
                self._sample(sample, file)
        return odd.unclear

    def _complain(self, member: str, reason: str) -> None:
        if member:
            kind = "image" if role_of(member) == IMAGE else "member"
            self.entries.drop(kind, f"{self.path}::{member}", reason)
        else:
            self.entries.drop("shard", str(self.path), reason)

    def _sample(self, sample: Sample, file: Any) -> None:
        parts = sample.parts
        about = self._json(parts, file)
        captions, meant = self._captions(parts, about, file)
        number = self._class(sample, file) if self.classes and IMAGE in parts else None
        label = about["label"] if isinstance(about.get("label"), str) else ""
        if self.classes and number is not None:
            label, captions = self.classes.labels[number], captions or [self.classes.caption(number)]
        if IMAGE in parts:
            image, named = parts[IMAGE], about.get("image_id")
            image_id = str(named) if isinstance(named, str | int) and named != "" else f"{self.stem}/{sample.key}"
            locator = member_locator(self.name, image.name, image.offset, image.size)
            self.entries.add(image_id, self.split, locator, captions, label)
            if meant and not captions:
                keys = f" (its JSON has the keys {listed([*about])})" if about else ""
                self.entries.drop("caption", f"{self.path}::{sample.key}", f"no caption in its text or JSON{keys}")
        elif captions:
            self.entries.add_captions(None, self.split, captions)
        else:
            self.entries.skip(f"samples with neither an image nor a caption (members {listed(sample.suffixes)})")

    @property
    def stem(self) -> str:
        """The shard's path without its suffix: no two shards have the same."""
        return self.name.removesuffix(self.path.suffix)

    def _class(self, sample: Sample, file: Any) -> int | None:
        """The number of a sample's class; None, and a bad item, where it has none."""
        assert self.classes is not None
        if CLASS not in sample.parts:
            self.entries.drop(
                "member", f"{self.path}::{sample.key}", f"has no .cls (members {listed(sample.suffixes)})"
            )
            return None
        part, last = sample.parts[CLASS], len(self.classes.names) - 1
        text = (self._text(part, file) or "").strip()
        try:
            number = int(text)
        except ValueError:
            self.entries.drop("member", f"{self.path}::{part.name}", f"is no class number: {text[:20]!r}")
            return None
        if not 0 <= number <= last:
            known = f"those of {self.manifest.classes} are 0 to {last}"
            raise InputError(f"{self.path}::{part.name}: there is no class {number}; {known}")
        return number

    def _json(self, parts: dict[str, Member], file: Any) -> dict[str, Any]:
        if JSON not in parts:
            return {}
        try:
            about = json.loads(self._text(parts[JSON], file) or "{}")
            json.dumps(about, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            self.entries.drop("member", f"{self.path}::{parts[JSON].name}", "is no JSON object")
            return {}
        return about

    def _captions(self, parts: dict[str, Member], about: dict[str, Any], file: Any) -> tuple[list[str], bool]:
        """The captions of a sample, and whether it has a place for some: a text, or JSON that does not say []."""
        name = f"{self.path}::{parts[JSON].name}" if JSON in parts else ""
        key = self.manifest.caption_key
        found = about.get(key) if key else _first_caption(about)
        if isinstance(found, list):
            return [text for text in found if self._is_text(text, name)], bool(found)
        if TEXT in parts and not (key and isinstance(found, str)):
            text = self._text(parts[TEXT], file)
            return captions_in(text, self.manifest.captions) if text is not None else [], text is not None
        if found is not None:
            return [found] if self._is_text(found, name) else [], False
        return [], JSON in parts and bool(about)

    def _is_text(self, value: Any, name: str) -> bool:
        if isinstance(value, str):
            return True
        self.entries.drop("caption", name, f"a caption is {'null' if value is None else 'no text'}")
        return False

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


def _first_caption(about: dict[str, Any]) -> Any:
    """The value of the first key of CAPTION_KEYS, in any case; a list before a text; None where there is none."""
    lower = {key.lower(): value for key, value in reversed(about.items())}
    found = [lower[key] for key in CAPTION_KEYS if lower.get(key) is not None]
    return next((value for value in found if isinstance(value, list)), found[0] if found else None)


def _mebibytes(path: Path) -> int:
    return max(1, path.stat().st_size >> 20)
