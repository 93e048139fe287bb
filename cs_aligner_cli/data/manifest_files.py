"""Whether the files that a manifest names are there: asked before any work, and without reading them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, listed
from cs_aligner_cli.data.file_names import Lookalikes
from cs_aligner_cli.data.manifest import DrawnManifest, EmbeddingsManifest, Manifest, TableManifest
from cs_aligner_cli.data.manifest_base import PublishedFile
from cs_aligner_cli.data.manifest_layouts import (
    ClipRetrievalManifest,
    CocoManifest,
    ConversationsManifest,
    FolderManifest,
    KarpathyManifest,
    WebDatasetManifest,
)
from cs_aligner_cli.data.patterns import find_files, missing_numbers


def require_files(manifest: Manifest) -> None:
    """Raise InputError for the first file, folder or pattern of a manifest with a root that finds nothing."""
    if isinstance(manifest, DrawnManifest) or manifest.root is None:
        return
    for key, name in _named(manifest):
        path = manifest.root / name
        if path.exists():
            continue
        if any(character in str(name) for character in "*?["):
            find_files(manifest.root, str(name), key)
        else:
            raise InputError(f"{key}: {path}: no such file{Lookalikes().hint(path.parent, path.name)}")


class MissingFile(NamedTuple):
    """A file, folder or pattern that a manifest names and that is not there, and what is known of it."""

    key: str
    name: str
    about: str


def missing_files(manifest: Manifest, root: Path | None) -> Iterator[MissingFile]:
    """All that a manifest names and that is not below ``root``; without a root all of it. Nothing is read."""
    if isinstance(manifest, DrawnManifest):
        return
    named = {key: str(name) for key, name in _named(manifest)}
    folders = {f"files.{name}": name for name in manifest.files if name not in named.values()}
    for key, name in {**named, **folders}.items():
        pattern = any(character in name for character in "*?[")
        if root is not None and (any(root.glob(name)) if pattern else (root / name).exists()):
            continue
        published = manifest.files.get(name, PublishedFile())
        where = published.source or manifest.source
        about = [published.size or "size not stated", f"published at {where}" if where else "source not stated"]
        yield MissingFile(key, name, ", ".join(about))


def missing_shards(manifest: Manifest) -> Iterator[str]:
    """What to say of every pattern whose numbered files have gaps; files that are not there at all are another's.

    Every pattern of a manifest with a root must find files (``require_files``).
    """
    if isinstance(manifest, DrawnManifest) or manifest.root is None:
        return
    for key, name in _named(manifest):
        if any(character in str(name) for character in "*?[") and not (manifest.root / name).exists():
            files = find_files(manifest.root, str(name), key)
            if absent := missing_numbers(files):
                total = len(files) + len(absent)
                yield f"{key}: {counted(len(absent), 'numbered files', 'are', of=total)} not there: {listed(absent)}"


def files_to_fetch(manifest: Manifest) -> tuple[list[str], list[str]]:
    """The patterns of files that a manifest names, and those of images that may lie beside them, below its root."""
    named = [str(name) for _, name in _named(manifest)]
    folders = [*named, *(str(folder) for folder in [getattr(manifest, "image_dir", None)] if folder)]
    return named, [f"{folder}/*" for folder in folders if folder != "."]


def _named(manifest: Manifest) -> Iterator[tuple[str, Path | str]]:
    """(key, file or pattern) of all that a manifest names."""
    if isinstance(manifest, TableManifest):
        yield from [("table", manifest.table)] if manifest.table is not None else []
        yield from ((f"tables.{split}", pattern) for split, pattern in manifest.tables.items())
    elif isinstance(manifest, KarpathyManifest | ConversationsManifest):
        yield "annotations", manifest.annotations
    elif isinstance(manifest, CocoManifest):
        yield from ((f"splits.{split}.captions", files.captions) for split, files in manifest.splits.items())
    elif isinstance(manifest, FolderManifest):
        yield "image_dir", manifest.image_dir
        yield from [("caption_dir", manifest.caption_dir)] if manifest.caption_dir is not None else []
    elif isinstance(manifest, WebDatasetManifest):
        yield from ((f"shards.{split}", pattern) for split, pattern in manifest.shards.items())
        files = {"classes": manifest.classes, "templates": manifest.templates}
        yield from ((key, path) for key, path in files.items() if path is not None)
    elif isinstance(manifest, ClipRetrievalManifest):
        yield from ((key, getattr(manifest, key)) for key in ("image_features", "text_features", "metadata"))
    elif isinstance(manifest, EmbeddingsManifest):
        parts = {"images": manifest.images, "captions": manifest.captions, **manifest.modalities}
        for name, part in parts.items():
            if part is None:
                continue
            files = {"table": part.table, "features": part.features, "ids": part.ids}
            if part.tokens is not None:
                files |= {"tokens.features": part.tokens.features, "tokens.mask": part.tokens.mask}
            yield from ((f"{name}.{key}", path) for key, path in files.items() if path is not None)
