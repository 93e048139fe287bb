"""Checksums: what is read is what was written, or the damaged file is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from cs_aligner_cli.common.errors import InputError

SEAL = "seal"
_MARK = ".{}.sum"
MARKS = _MARK.format("*")
_hash = partial(hashlib.blake2b, digest_size=16)


_State: TypeAlias = tuple[str, int, int, int]
# The checksums that this process has computed: most stages look at what the one before left and this one looked at.
_known: dict[_State, str] = {}
_MOST_KNOWN = 1 << 16


def digest(path: Path) -> str:
    """The checksum of a file's content (BLAKE2b, 128 bits); computed once per process while the file stays as it is."""
    return digests([path])[0]


def digests(paths: Iterable[Path]) -> list[str]:
    """The checksum of every file, on all cores."""
    states = [_state(str(path)) for path in paths]
    found = {state: known for state in states if (known := _known.get(state))}
    new = [state for state in dict.fromkeys(states) if state not in found]
    found.update(zip(new, _read_all([file for file, *_ in new]), strict=True))
    if len(_known) + len(new) > _MOST_KNOWN:
        _known.clear()
    _known.update((state, found[state]) for state in new)
    return [found[state] for state in states]


def _state(file: str) -> _State:
    """What a file keeps while it stays as it is."""
    status = os.stat(file)  # noqa: PTH116 - of thousands of files; making a Path takes longer than the call
    return file, status.st_ino, status.st_size, status.st_mtime_ns


def _read_all(files: Sequence[str]) -> list[str]:
    def read(name: str) -> str:
        with open(name, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, _hash).hexdigest()

    if len(files) < 2:
        return [read(file) for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, files))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` with the checksum of its own content, so that a JSON file vouches for itself."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return {**plain, SEAL: _seal(plain)}


def unsealed(value: Any, path: Path, hint: str = "") -> dict[str, Any]:
    """What was sealed and read back from ``path``; raise InputError if it is not as it was written."""
    if not isinstance(value, dict) or SEAL not in value:
        raise InputError(f"{path}: is damaged: it lacks the checksum of its content", hint)
    rest = {key: inner for key, inner in value.items() if key != SEAL}
    if value[SEAL] != _seal(rest):
        raise InputError(f"{path}: is damaged: its content does not have the checksum it was written with", hint)
    return rest


def vouch(path: Path, hint: str = "") -> None:
    """Raise InputError if a sealed JSON file is not as it was written; looked at once while the file stays as it is.

    To check the record of many files takes longer than to read it, and a run reads some of them fifty times.
    """
    try:
        status = path.stat()
        _vouch(path, hint, status.st_ino, status.st_size, status.st_mtime_ns)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # another process is replacing it
        raise InputError(f"{path}: cannot be read as JSON: {error}", hint) from None


@lru_cache(maxsize=1 << 12)
def _vouch(path: Path, hint: str, inode: int, size: int, mtime_ns: int) -> None:
    unsealed(json.loads(path.read_text(encoding="utf-8")), path, hint)


def _seal(value: dict[str, Any]) -> str:
    return _hash(json.dumps(value, sort_keys=True).encode()).hexdigest()


def mark(path: Path) -> Path:
    """Where the checksum of a file of an unfinished build stands, so that the build can be taken up again."""
    return path.with_name(_MARK.format(path.name))


def is_whole(path: Path) -> bool:
    """Whether a file of an unfinished build is there as its mark says."""
    try:
        return path.is_file() and mark(path).read_text(encoding="ascii") == digest(path)
    except (OSError, UnicodeDecodeError):
        return False
