"""Readers of the layouts in which captioned images are published: Karpathy, COCO, folders, conversations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.images import BadImageError, read_bytes
from cs_aligner_cli.data.manifest_layouts import (
    CocoManifest,
    ConversationsManifest,
    FolderManifest,
    KarpathyManifest,
)
from cs_aligner_cli.data.tarfiles import storable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# A sidecar that is longer is no list of captions.
_MAX_SIDECAR = 2**20


def read_karpathy(manifest: KarpathyManifest, folder: Path, console: Console) -> Source:
    """Images with their sentences and split, as in dataset_coco.json."""
    assert manifest.root is not None
    entries, path = Entries(), manifest.root / manifest.annotations
    for i, image in enumerate(json_items(path, "images", console)):
        at = _Place(path, f"images[{i}]", image)
        split = at.text("split")
        if split == "restval" and manifest.restval == "drop":
            entries.skip("images of the split restval")
            continue
        name = at.text("filename")
        locator = manifest.image_dir / at.text("filepath", "") / name
        texts = [_Place(path, f"{at.place}.sentences", s).text("raw") for s in at.items("sentences")]
        entries.add(name, manifest.restval if split == "restval" else split, str(locator), texts)
    return entries.source("karpathy", manifest.root)


def read_coco(manifest: CocoManifest, folder: Path, console: Console) -> Source:
    """Images and annotations of COCO's captions JSON; an image's id is that of its file name."""
    assert manifest.root is not None
    entries = Entries()
    for split, files in manifest.splits.items():
        path = manifest.root / files.captions
        names: dict[int | str, str] = {}
        for i, image in enumerate(json_items(path, "images", console)):
            at = _Place(path, f"images[{i}]", image)
            names[at.key("id")] = name = at.text("file_name")
            entries.add(name, split, str(files.image_dir / name), [])
        for i, annotation in enumerate(json_items(path, "annotations", console)):
            at = _Place(path, f"annotations[{i}]", annotation)
            owner = names.get(at.key("image_id"))
            if owner is None:
                reason = f"names the image {at.key('image_id')}, which is not listed"
                entries.drop("caption", f"{path}: annotations[{i}]", reason)
            else:
                entries.add_captions(owner, split, [at.text("caption")])
    return entries.source("coco", manifest.root)


def read_conversations(manifest: ConversationsManifest, folder: Path, console: Console) -> Source:
    """The first answer of every conversation about an image; conversations without one are left out and counted."""
    assert manifest.root is not None
    entries, path = Entries(), manifest.root / manifest.annotations
    named: set[str] = set()
    for i, conversation in enumerate(json_items(path, "", console)):
        at = _Place(path, f"[{i}]", conversation)
        turns = [_Place(path, f"[{i}].conversations", turn) for turn in at.items("conversations")]
        answers = [turn.text("value") for turn in turns if turn.text("from") == "gpt"]
        image = at.text("image", "")
        if not image:
            entries.skip("conversations about no image")
        elif not answers:
            entries.drop("caption", f"{path}: [{i}]", "a conversation without an answer (from: gpt)")
        elif image in named:
            entries.add_captions(image, manifest.split, answers[:1])
        else:
            named.add(image)
            entries.add(image, manifest.split, str(manifest.image_dir / image), answers[:1])
    return entries.source("conversations", manifest.root)


def read_folder(manifest: FolderManifest, folder: Path, console: Console) -> Source:
    """Images below a folder, in the order of their names, each with the lines of the text file of its name."""
    assert manifest.root is not None
    top = manifest.root / manifest.image_dir
    texts = top if manifest.caption_dir is None else manifest.root / manifest.caption_dir
    for wanted in (top, texts):
        if not wanted.is_dir():
            raise InputError(f"{wanted}: no such folder")
    entries = Entries()
    paths = list(_image_files(top, entries))
    with console.progress("reading captions", len(paths)) as advance:
        for path in paths:
            inside = Path(path).relative_to(top)
            split = manifest.split
            if manifest.split_folders:
                if len(inside.parts) == 1:
                    raise InputError(
                        f"{path}: stands in no split's folder",
                        "With split_folders each image lies in a sub-folder of image_dir that is named like its split.",
                    )
                split = inside.parts[0]
            name = storable(str(inside))
            if name != str(inside):
                entries.drop("image", name, "a file name that is no printable text")
                continue
            entries.add(name, split, str(manifest.image_dir / inside), _sidecar(texts / inside, entries))
            advance()
    return entries.source("folder", manifest.root)


def folder_files(manifest: FolderManifest) -> list[str]:
    """The images and text files of a folder, whose change makes a prepared data set stale."""
    assert manifest.root is not None
    top = manifest.root / manifest.image_dir
    texts = top if manifest.caption_dir is None else manifest.root / manifest.caption_dir
    images = list(_image_files(top, Entries()))
    return [*images, *(str(_text_file(texts / Path(image).relative_to(top))) for image in images)]


def _image_files(top: Path, entries: Entries) -> Iterator[str]:
    for where, folders, files in os.walk(top):
        folders.sort()
        for linked in (name for name in folders if Path(where, name).is_symlink()):
            entries.skip(f"linked folder {Path(where, linked)}")
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield os.path.join(where, name)  # noqa: PTH118 (a million Path objects are ten times as large)


def _text_file(image: Path) -> Path:
    return image.with_suffix(".txt")


def _sidecar(image: Path, entries: Entries) -> list[str]:
    path = _text_file(image)
    try:
        content = read_bytes(path)
        if len(content) > _MAX_SIDECAR:
            raise BadImageError(f"more than {_MAX_SIDECAR >> 10} KiB of text")
        lines = content.decode("utf-8-sig").splitlines()
    except BadImageError as error:
        entries.drop("caption", str(path), str(error))
    except UnicodeDecodeError as error:
        entries.drop("caption", str(path), f"is not UTF-8 text (it holds the byte {content[error.start]:#x})")
    else:
        return [line for line in lines if line.strip()]
    return []


def json_items(path: Path, key: str, console: Console) -> Iterator[Any]:
    """The items of the list under a top-level key ("": of the list that is the whole file), one at a time.

    Raises InputError if the file is missing, is no JSON, or holds no such list.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    total, told, empty = max(1, path.stat().st_size >> 20), 0, True
    try:
        with path.open("rb") as file, console.progress(f"reading {path.name} (MiB)", total) as advance:
            for item in ijson.items(file, f"{key}.item" if key else "item", use_float=True):
                empty = False
                yield item
                if (read := file.tell() >> 20) > told:
                    advance(read - told)
                    told = read
        if empty:
            _require_list(path, key)
    except (ijson.JSONError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as JSON: {reason}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _require_list(path: Path, key: str) -> None:
    """Raise InputError unless the file holds a list, if an empty one, where it should."""
    there: list[str] = []
    with path.open("rb") as file:
        for prefix, event, value in ijson.parse(file, use_float=True):
            if prefix == key and event == "start_array":
                return
            if prefix == "" and event == "map_key":
                there.append(value)
    wanted = f"an object with a list {key!r}" if key else "a list"
    raise InputError(f"{path}: expected {wanted}{did_you_mean(key, there) if key else ''}")


class _Place:
    """An object in a JSON file, whose keys are checked as they are read; InputError names file, place and key."""

    def __init__(self, path: Path, place: str, value: Any) -> None:
        self.path, self.place, self.value = path, place, value
        if not isinstance(value, dict):
            raise InputError(f"{path}: {place}: expected an object with keys, found {_named(value)}")

    def text(self, key: str, default: str | None = None) -> str:
        """The text under a key, which must be there where there is no ``default``."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.path}: {self.place}.{key}: expected text, found {_named(value)}")
        return _whole(value)

    def key(self, key: str) -> int | str:
        """The number or name under a key."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(f"{self.path}: {self.place}.{key}: expected a number or a name, found {_named(value)}")
        return value

    def items(self, key: str) -> list[Any]:
        """The list under a key."""
        value = self._get(key)
        if not isinstance(value, list):
            raise InputError(f"{self.path}: {self.place}.{key}: expected a list, found {_named(value)}")
        return value

    def _get(self, key: str, default: Any = None) -> Any:
        if key not in self.value and default is None:
            raise InputError(f"{self.path}: {self.place}: no key {key!r}{did_you_mean(key, list(self.value))}")
        return self.value.get(key, default)


def _named(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _whole(text: str) -> str:
    """Text that can be stored: half a surrogate pair, which JSON may spell, is no character."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
