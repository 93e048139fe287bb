"""The last steps of a build: it is put in place whole, what it leaves behind removed, an earlier output kept beside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.checksums import MARKS

# What of a build goes, and whether what it replaces stays; it lies in the build until both are done.
STEPS = "placing.json"
# Above so many files one sync of the whole system is quicker than one of each.
_MANY_FILES = 200


def plan(work: Path, leftovers: Iterable[Path], keep_earlier: bool) -> None:
    """Note what ``put_in_place`` is to do with a build: files of it that go, and whether what it replaces stays."""
    names = [path.relative_to(work).as_posix() for path in leftovers]
    aside = work / f".{STEPS}.tmp"
    aside.write_text(json.dumps({"leftovers": names, "keep_earlier": keep_earlier}), encoding="utf-8")
    sync(aside)
    aside.replace(work / STEPS)


def put_in_place(work: Path, path: Path) -> None:
    """Move a finished build to ``path``.

    Killed anywhere, the same call ends it: until its last rename the build lies in ``work``, with its plan.
    """
    path = linked_place(path)
    steps = _planned(work)
    for leftover in (*work.rglob(MARKS), *(work / name for name in steps["leftovers"])):
        leftover.unlink(missing_ok=True)
    sync(work)
    old = path.with_name(f"{path.name}.old")
    if path.exists():
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
        path.rename(beside(path) if steps["keep_earlier"] else old)
    (work / STEPS).unlink(missing_ok=True)
    work.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def linked_place(path: Path) -> Path:
    """Where an output is built and put: the folder itself or, where that is a link (to a larger disk, say), what it
    names, there or not yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def beside(path: Path) -> Path:
    """Where an output is kept that another takes the place of: the first free one of NAME.1, NAME.2, ..."""
    path, number = linked_place(path), 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # there is no such thing for folders there
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(files: Sequence[Path]) -> None:
    """Have the system write files and the names in their folders to the disk."""
    if len(files) > _MANY_FILES and os.name != "nt":
        os.sync()
        return
    for path in (*files, *{file.parent for file in files}):
        sync(path)


def size_of(path: Path | str) -> int | None:
    """The bytes of a file; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of thousands of files; making a Path takes longer than the call
    except OSError:
        return None
    return found.st_size if S_ISREG(found.st_mode) else None


def _planned(work: Path) -> dict[str, Any]:
    try:
        steps: dict[str, Any] = json.loads((work / STEPS).read_text(encoding="utf-8"))
    except FileNotFoundError:  # its process was killed just before the last rename
        return {"leftovers": [], "keep_earlier": False}
    except ValueError:
        raise InputError(f"{work / STEPS}: is damaged", f"Remove {work} to make it anew.") from None
    return steps
