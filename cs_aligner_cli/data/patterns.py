"""Files by a pattern of a manifest."""

from __future__ import annotations

from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.file_names import is_system_file


def find_files(root: Path, pattern: str, key: str) -> list[Path]:
    """The files that a manifest's pattern finds below root, in the order of their numbers; InputError if none."""
    try:
        # By length first: from part 10 on, unpadded numbers are longer.
        found = sorted(
            (p for p in root.glob(pattern) if p.is_file() and not is_system_file(str(p.relative_to(root)))),
            key=lambda path: (len(path.name), str(path)),
        )
    except (ValueError, NotImplementedError, OSError, IndexError):
        raise InputError(f"{key}: {pattern!r} is no pattern of files below the manifest's root") from None
    if not found:
        raise InputError(f"{key}: {root / pattern}: finds no files")
    return found
