"""The files that a manifest's data set is made from: named by it, found by its patterns, or listed in its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.manifest import DrawnManifest, EmbeddingsManifest, Manifest, TableManifest
from cs_aligner_cli.data.manifest_layouts import (
    ClipRetrievalManifest,
    CocoManifest,
    ConversationsManifest,
    FolderManifest,
    KarpathyManifest,
    MixbenchManifest,
    WebDatasetManifest,
)

if TYPE_CHECKING:  # brings pandas along, see source_files
    from cs_aligner_cli.data.collector import Source


def lists_its_files(manifest: Manifest) -> bool:
    """Whether the images of a data set are known only from reading its annotations or its table."""
    return isinstance(
        manifest, TableManifest | KarpathyManifest | CocoManifest | ConversationsManifest | MixbenchManifest
    )


def source_files(manifest: Manifest) -> list[str]:
    """The files, there or not, whose change makes a prepared data set stale, of a manifest that names them itself."""
    if isinstance(manifest, DrawnManifest):
        return []
    assert manifest.root is not None
    if isinstance(manifest, EmbeddingsManifest):
        parts = [part for part in (manifest.images, manifest.captions, *manifest.modalities.values()) if part]
        files = [name for part in parts for name in (part.table, part.features, part.ids) if name is not None]
        files += [name for part in parts if part.tokens for name in (part.tokens.features, part.tokens.mask)]
        return [str(manifest.root / name) for name in files]
    # Imported here, since these bring pandas along, which few data sets need before there is something to do.
    if isinstance(manifest, ClipRetrievalManifest):
        from cs_aligner_cli.data.clip_retrieval import embedding_parts

        return [str(path) for paths in embedding_parts(manifest) for path in paths]
    if isinstance(manifest, WebDatasetManifest):
        from cs_aligner_cli.data.shards import shard_files

        named = [manifest.root / name for name in (manifest.classes, manifest.templates) if name is not None]
        return [str(path) for path in (*named, *(path for _, path in shard_files(manifest)))]
    from cs_aligner_cli.data.folder import folder_files

    assert isinstance(manifest, FolderManifest)
    return folder_files(manifest)


def read_listed(manifest: Manifest, console: Console) -> tuple[list[str], Source]:
    """The annotation files of a manifest and the images that they list; and the source that was read to know them."""
    from cs_aligner_cli.data.sources import SOURCES

    assert not isinstance(manifest, DrawnManifest)
    source = SOURCES[manifest.kind](manifest, Path(), console)
    loose = (f"{manifest.root}/{locator}" for locator in source.images["locator"] if "::" not in locator)
    return [*map(str, annotation_files(manifest)), *loose], source


def annotation_files(manifest: Manifest) -> list[Path]:
    """The tables and JSON files that list the images of a manifest."""
    assert not isinstance(manifest, DrawnManifest)
    assert manifest.root is not None
    if isinstance(manifest, CocoManifest):
        return [manifest.root / split.captions for split in manifest.splits.values()]
    if isinstance(manifest, TableManifest):
        if manifest.table is not None and (manifest.root / manifest.table).is_file():
            return [manifest.root / manifest.table]
        from cs_aligner_cli.data.table_source import table_files

        return [path for _, path in table_files(manifest)]
    if isinstance(manifest, MixbenchManifest):
        from cs_aligner_cli.data.mixbench import corpus_files

        return corpus_files(manifest.root)[:2]
    assert isinstance(manifest, KarpathyManifest | ConversationsManifest)
    return [manifest.root / manifest.annotations]
