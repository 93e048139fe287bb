"""The files that a prepared data set is made from, and whether they have changed since, without reading them.

Which images an annotation file or a table lists is known only from reading it. The list is kept with the prepared data
set: as long as every file on it (the annotation file is one) has its size and time, the list is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.manifest import DrawnManifest, Manifest, manifest_path
from cs_aligner_cli.data.source_files import annotation_files, lists_its_files, read_listed, source_files
from cs_aligner_cli.files.artifact import fingerprint
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.runs.layout import Layout

if TYPE_CHECKING:  # brings pandas along
    from cs_aligner_cli.data.collector import Source

LISTING = "sources.list"


@dataclass(frozen=True)
class Sources:
    """The data files, there or not, whose change makes a prepared data set stale, and a digest of their stamps and the
    manifest's; ``source`` is what was read where the files had to be read to know them."""

    files: tuple[str, ...]
    stamp: str
    source: Source | None = None

    def write(self, path: Path, root: Path | None) -> None:
        """Keep the list, below the data's root; a name ends with a zero byte, since it may hold anything else."""
        names = (file.removeprefix(f"{root}{os.sep}") for file in self.files)
        path.write_text("".join(f"{name}\0" for name in names), encoding="utf-8", errors="surrogateescape")


def sources_stamp(layout: Layout, manifest: Manifest, console: Console) -> Sources:
    """The sources of a data set as they are now."""
    own, root = str(manifest_path(layout.recipe)), None if isinstance(manifest, DrawnManifest) else manifest.root
    if lists_its_files(manifest):
        record, kept = layout.prepared.record(), _kept(layout.prepared.path / LISTING, root)
        stamp = _stamp(own, kept, root)
        same = record is not None and kept and stamp == record["inputs"].get("sources")
        if same and {str(file) for file in annotation_files(manifest)} <= {*kept}:  # a pattern may find a further one
            return Sources(kept, stamp)
        files, source = read_listed(manifest, console)
    else:
        files, source = source_files(manifest), None
    return Sources(tuple(files), _stamp(own, files, root), source)


def _stamp(manifest: str, files: Iterable[str], root: Path | None) -> str:
    return fingerprint([file_stamps([manifest]), file_stamps(files, root)])


def _kept(path: Path, root: Path | None) -> tuple[str, ...]:
    try:
        names = path.read_text(encoding="utf-8", errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return ()
    return tuple(name if Path(name).is_absolute() else f"{root}{os.sep}{name}" for name in names)
