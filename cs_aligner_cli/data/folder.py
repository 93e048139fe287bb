"""The reader of folders: images, each with a text file of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cs_aligner_cli.common.console import Console, printable
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.caption_text import captions_in
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES, TEXT_SUFFIXES, Lookalikes, has_suffix, is_system_file
from cs_aligner_cli.data.images import BadImageError, read_bytes
from cs_aligner_cli.data.manifest_layouts import FolderManifest
from cs_aligner_cli.data.tarfiles import storable

# A text file that is longer is no list of captions.
_MAX_TEXT = 2**20


def read_folder(manifest: FolderManifest, folder: Path, console: Console) -> Source:
    """Images below a folder, in the order of their names, each with the captions in the text file of its name.

    An image without a text is a bad caption; texts without an image are left out and counted.
    """
    assert manifest.root is not None
    top, texts = _folders(manifest)
    entries = Entries()
    images = list(_files(top, IMAGE_SUFFIXES, entries))
    text_of = _texts(texts)
    used: set[str] = set()
    with console.progress("reading captions", len(images)) as advance:
        for inside in images:
            split = manifest.split
            if manifest.split_folders:
                split, slash, _ = inside.partition("/")
                if not slash:
                    raise InputError(
                        f"{top / inside}: stands in no split's folder",
                        "With split_folders each image lies in a sub-folder of image_dir that is named like its split.",
                    )
            if printable(inside) != inside or "\n" in inside:
                entries.drop("image", storable(inside), "a file name that is no printable text")
                continue
            found = _text_of(inside, text_of)
            used.add(found or "")
            captions = _captions(texts / (found or _stem(inside) + ".txt"), manifest, entries)
            entries.add(inside, split, str(manifest.image_dir / inside), captions)
            advance()
    for name in set(text_of.values()) - used:
        entries.skip(f"text files without an image ({Path(name).suffix.lower()})")
    return entries.source("folder", manifest.root)


def folder_files(manifest: FolderManifest) -> list[str]:
    """The images and text files of a folder, whose change makes a prepared data set stale."""
    top, texts = _folders(manifest)
    text_of = _texts(texts)
    images = list(_files(top, IMAGE_SUFFIXES, Entries()))
    found = (str(texts / (_text_of(image, text_of) or _stem(image) + ".txt")) for image in images)
    return [*(str(top / image) for image in images), *found]


def _folders(manifest: FolderManifest) -> tuple[Path, Path]:
    """The folder of the images and that of the texts."""
    assert manifest.root is not None
    top = manifest.root / manifest.image_dir
    texts = top if manifest.caption_dir is None else manifest.root / manifest.caption_dir
    for wanted in (top, texts):
        if not wanted.is_dir():
            hint = Lookalikes().hint(wanted.parent, wanted.name)
            raise InputError(f"{wanted}: no such folder{hint}")
    return top, texts


def _files(top: Path, suffixes: tuple[str, ...], entries: Entries) -> Iterator[str]:
    """The paths of the files below ``top`` with one of the suffixes, relative to it, in the order of their names."""
    for where, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        for linked in (name for name in folders if Path(where, name).is_symlink()):
            entries.skip(f"linked folder {Path(where, linked)}")
        for name in sorted(files):
            if has_suffix(name, suffixes):
                if is_system_file(name):
                    entries.skip("hidden files")
                else:
                    yield os.path.relpath(os.path.join(where, name), top)  # noqa: PTH118 (a million Path objects are ten times as large)


def _texts(top: Path) -> dict[str, str]:
    """The text files below a folder by their path without suffix; of several the one whose suffix comes first."""
    found: dict[str, str] = {}
    for inside in _files(top, TEXT_SUFFIXES, Entries()):
        stem = _stem(inside)
        if stem not in found or _rank(inside) < _rank(found[stem]):
            found[stem] = inside
    return found


def _rank(name: str) -> int:
    return TEXT_SUFFIXES.index(Path(name).suffix.lower())


def _stem(inside: str) -> str:
    return os.path.splitext(inside)[0]  # noqa: PTH122


def _text_of(image: str, text_of: dict[str, str]) -> str | None:
    """The text of an image: a.txt, or a.jpg.txt, of a.jpg."""
    return text_of.get(_stem(image)) or text_of.get(image)


def _captions(path: Path, manifest: FolderManifest, entries: Entries) -> list[str]:
    try:
        content = read_bytes(path)
        if len(content) > _MAX_TEXT:
            raise BadImageError(f"more than {_MAX_TEXT >> 10} KiB of text")
        text = content.decode(manifest.encoding).removeprefix("\ufeff")
    except BadImageError as error:
        entries.drop("caption", str(path), str(error))
    except UnicodeDecodeError as error:
        reason = f"is not {manifest.encoding.upper()} text (it holds the byte {content[error.start]:#x})"
        entries.drop("caption", str(path), f"{reason}; name its own with the manifest's key encoding")
    else:
        if found := captions_in(text, manifest.captions):
            return found
        entries.drop("caption", str(path), "holds no caption")
    return []
