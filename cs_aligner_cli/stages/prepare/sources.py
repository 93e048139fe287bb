"""The files that a prepared data set is made from, and whether they have changed since, without reading them.

Which images an annotation file or a table lists is known only from reading it. The list is kept with the prepared data
set: as long as every file on it (the annotation file is one) has its size and time, the list is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.manifest import Manifest, manifest_path
from cs_aligner_cli.data.source_files import annotation_files, listed_files, lists_its_files, source_files
from cs_aligner_cli.files.artifact import file_stamps
from cs_aligner_cli.runs.layout import Layout

LISTING = "sources.list"


@dataclass(frozen=True)
class Sources:
    """The files, there or not, whose change makes a prepared data set stale, and a digest of their stamps."""

    files: tuple[str, ...]
    stamp: str

    def write(self, path: Path) -> None:
        """Keep the list; a name ends with a zero byte, since it may hold anything else."""
        path.write_text("".join(f"{file}\0" for file in self.files), encoding="utf-8", errors="surrogateescape")


def sources_stamp(layout: Layout, manifest: Manifest, console: Console) -> Sources:
    """The sources of a data set as they are now."""
    if lists_its_files(manifest):
        record, kept = layout.prepared.record(), _kept(layout.prepared.path / LISTING)
        same = record is not None and kept and file_stamps(kept) == record["inputs"].get("sources")
        if same and {str(file) for file in annotation_files(manifest)} <= {*kept}:  # a pattern may find a further one
            return Sources(kept, file_stamps(kept))
        files = listed_files(manifest, console)
    else:
        files = source_files(manifest)
    every = (str(manifest_path(layout.recipe)), *files)
    return Sources(every, file_stamps(every))


def _kept(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8", errors="surrogateescape").split("\0")[:-1])
    except OSError:
        return ()
