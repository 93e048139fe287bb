"""Files by a pattern of a manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.file_names import is_system_file

# Shards say how many they are.
_SHARD = re.compile(r"(.*)-(\d{5,7})-of-(\d{5,7})(\.[^/]*)")


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


def missing_of_total(files: Sequence[Path]) -> list[str]:
    """The names that are missing of shards that say how many they are, as in train-00000-of-00005.parquet."""
    shards: dict[tuple[Path, str, str, str], set[int]] = {}
    for path in files:
        if found := _SHARD.fullmatch(path.name):
            shards.setdefault((path.parent, found[1], found[3], found[4]), set()).add(int(found[2]))
    absent = []
    for (_, before, total, after), numbers in shards.items():
        first = 1 if int(total) in numbers else 0  # some count from one
        wanted = range(first, int(total) + first)
        absent += [f"{before}-{n:0{len(total)}d}-of-{total}{after}" for n in wanted if n not in numbers]
    return absent


def missing_numbers(files: Sequence[Path]) -> list[str]:
    """The names that are missing of shards that say how many they are, else between the first and the last of files
    that are numbered one by one (00000.tar, ...).

    Numbers are the last digits of a name; what stands around them must be the same, and width that of the first.
    """
    if absent := missing_of_total(files):
        return absent
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", path.name) for path in files]
    found = [part for part in parts if part]
    if len(found) < len(files) or len({(part[1], part[3]) for part in found}) != 1:
        return []
    numbers = {int(part[2]) for part in found}
    width = min(len(part[2]) for part in found)
    before, after = found[0][1], found[0][3]
    absent = sorted({*range(min(numbers), max(numbers))} - numbers)
    # A few of many are missing; otherwise they are not numbered one by one.
    return [f"{before}{n:0{width}d}{after}" for n in absent] if len(absent) < len(numbers) else []
