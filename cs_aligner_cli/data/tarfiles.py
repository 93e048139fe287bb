"""The members of a tar, by their place in it: nothing is extracted, and what is odd or damaged is told."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cs_aligner_cli.common.errors import InputError

_BLOCK, _READ = 512, 2**20
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
# What tarfile raises on damaged headers, beside its own errors.
_DAMAGED = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, IndexError, KeyError, MemoryError)


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its bytes begin at ``offset`` of the tar."""

    name: str
    offset: int
    size: int


def list_members(path: Path, complain: Callable[[str, str], None]) -> Iterator[Member]:
    """The regular files in a tar, in order, from its headers alone.

    ``complain(member, reason)`` is told of every member that is not yielded, and with member "" where the tar ends
    before its end mark, or goes on behind it (several joined by ``cat``). Raises InputError if the file is compressed.
    """
    with path.open("rb") as file:
        if file.read(6).startswith((_GZIP, _BZIP2, _XZ, _ZSTD)):
            raise InputError(
                f"{path}: is compressed; shards are read where they lie, without unpacking",
                "Images do not shrink any further: uncompress the shard (gunzip) and name the plain .tar.",
            )
        size = file.seek(0, 2)
        file.seek(0)
        end, last = 0, "its start"
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as archive:
                while (found := archive.next()) is not None and archive.offset > end:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member; a shard may hold a million
                    end, last = archive.offset, storable(found.name)
                    if found.isreg() and (there := size - found.offset_data) < found.size:
                        reason = f"truncated inside {last}, after {there} of its {found.size} bytes"
                        complain("", f"{reason}: it and what should follow are lost")
                        return
                    yield from _judged(found, complain)
        except _DAMAGED:
            complain("", f"truncated: what should follow {last} is lost" if end else "is no tar file")
            return
        file.seek(end)
        if any(mark := file.read(_BLOCK)):
            complain("", f"damaged at byte {end}: what follows {last} is lost")
        elif len(mark) < _BLOCK:
            complain("", f"truncated: there is no end mark after {last}")
        elif (more := _after_zeros(file)) is not None:
            complain(
                "", f"goes on at byte {more}, behind its end mark, and that is lost: join tars by tar --concatenate"
            )


def _after_zeros(file: BinaryIO) -> int | None:
    """Where in a file the first byte that is not zero stands, from here on; None where there is none."""
    while block := file.read(_READ):
        if block.count(0) < len(block):
            return file.tell() - len(block.lstrip(b"\0"))
    return None


def storable(text: str) -> str:
    """A name from a tar as text that can be printed, stored and encoded: other characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _judged(found: tarfile.TarInfo, complain: Callable[[str, str], None]) -> Iterator[Member]:
    path, name = PurePosixPath(found.name), storable(found.name)
    if found.isdir():
        return
    if path.is_absolute() or ".." in path.parts:
        complain(name, "a path that leads out of the archive")
    elif found.issym() or found.islnk():
        complain(name, "a link, not a file")
    elif not found.isreg() or found.issparse():
        complain(name, "no regular file")
    else:
        yield Member(name, found.offset_data, found.size)
