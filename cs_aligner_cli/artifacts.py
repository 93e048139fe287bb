"""What lies on disk: run directories, atomic writes, fingerprints, freshness and locks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs_aligner_cli import __version__
from cs_aligner_cli.errors import InputError

RECORD = "stage.json"
# Raised when what a stage writes changes in form, so that older outputs count as stale.
_FORMAT = 1


def fingerprint(value: Any) -> str:
    """A short digest of any JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_stamps(paths: Iterable[Path]) -> str:
    """A digest of names, sizes and modification times, as make would look at them."""
    stamps = []
    for path in sorted(paths):
        status = path.stat()
        stamps.append([str(path), status.st_size, status.st_mtime_ns])
    return fingerprint(stamps)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all: aside, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; raise InputError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None


@dataclass(frozen=True)
class Artifact:
    """One stage's output folder and all that determines its content.

    ``recipe`` holds the parts of the recipe that matter for it and ``needs`` the artifacts that it is made from; the
    fingerprint covers both, so that a change anywhere upstream makes everything downstream stale.
    """

    name: str
    path: Path
    command: str
    recipe: Mapping[str, Any]
    needs: tuple[Artifact, ...] = ()

    def wanted(self, sources: str = "") -> dict[str, Any]:
        """The inputs that a fresh output must have been made from; ``sources`` is a digest of outside files."""
        return {
            "format": _FORMAT,
            "recipe": dict(self.recipe),
            "needs": {need.name: need.fingerprint() for need in self.needs},
            **({"sources": sources} if sources else {}),
        }

    def record(self) -> dict[str, Any] | None:
        """What the finished stage wrote about itself, or None if there is no whole output."""
        if not (self.path / RECORD).is_file():
            return None
        record: dict[str, Any] = read_json(self.path / RECORD)
        sizes = record.get("files", {})
        whole = all((self.path / f).is_file() and (self.path / f).stat().st_size == size for f, size in sizes.items())
        return record if whole else None

    def fingerprint(self) -> str | None:
        """The fingerprint of the output on disk, None where there is none."""
        record = self.record()
        return fingerprint(record["inputs"]) if record else None

    def fresh(self, sources: str = "") -> dict[str, Any] | None:
        """The record of the output on disk if it was made from exactly the inputs wanted now, else None."""
        record = self.record()
        wanted = json.loads(json.dumps(self.wanted(sources), default=str))
        return record if record and record["inputs"] == wanted else None

    def require(self) -> dict[str, Any]:
        """The record of this artifact; raise InputError if it is missing or was made from other inputs."""
        for need in self.needs:
            need.require()
        record = self.record()
        if record is None:
            raise InputError(f"no {self.name} in {self.path}", f"Make it first: {self.command}")
        wanted = json.loads(json.dumps(self.wanted(), default=str))
        made = {key: record["inputs"].get(key) for key in wanted}
        if made != wanted:
            raise InputError(
                f"the {self.name} in {self.path} is stale: {_first_difference(made, wanted)}",
                f"Make it again: {self.command}",
            )
        return record

    @contextmanager
    def building(self, sources: str = "") -> Iterator[Build]:
        """Build the output aside and put it in place whole; a build from the same inputs is taken up again."""
        wanted = self.wanted(sources)
        work = self.path.with_name(f"{self.path.name}.partial")
        mark = work / "building.json"
        if work.exists() and not (mark.is_file() and read_json(mark) == json.loads(json.dumps(wanted, default=str))):
            shutil.rmtree(work)
        resumed = work.exists()
        work.mkdir(parents=True, exist_ok=True)
        write_json(mark, wanted)
        build = Build(work, resumed)
        started = time.monotonic()
        yield build
        made = (f for f in sorted(work.rglob("*")) if f.is_file() and f != mark)
        files = {str(f.relative_to(work)): f.stat().st_size for f in made}
        record = {
            "name": self.name,
            "csalign": __version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - started, 2),
            "inputs": wanted,
            "summary": build.summary,
            "files": files,
        }
        write_json(work / RECORD, record)
        mark.unlink()
        _replace_folder(work, self.path)


@dataclass
class Build:
    """A build in progress: its folder, whether it continues an interrupted one, and the summary to record."""

    folder: Path
    resumed: bool
    summary: dict[str, Any] = field(default_factory=dict)


def _replace_folder(new: Path, place: Path) -> None:
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _first_difference(made: Any, wanted: Any, path: str = "") -> str:
    if isinstance(made, dict) and isinstance(wanted, dict):
        for key in {**wanted, **made}:
            if made.get(key) != wanted.get(key):
                return _first_difference(made.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    if path.startswith("needs."):
        return f"the {path.removeprefix('needs.')} it was made from has changed"
    return f"{path.removeprefix('recipe.')} was {made!r} and is now {wanted!r}"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raise InputError if another csalign process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: another csalign process ({file.read().strip() or 'unknown'}) is working there",
                "Wait for it, or give this run another run_dir.",
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield
