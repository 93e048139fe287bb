"""What a stage leaves on disk: atomic writes, fingerprints, freshness, and outputs that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs_aligner_cli import __version__
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.torchrun_env import rank
from cs_aligner_cli.files.checksums import MARKS, SEAL, digest, digests, is_whole, mark, sealed, vouch
from cs_aligner_cli.files.differences import StaleError, differences
from cs_aligner_cli.files.disk import writing
from cs_aligner_cli.files.places import A_PATH, aside_of, moved, places, without_paths
from cs_aligner_cli.files.placing import STEPS, linked_place, plan, put_in_place, size_of, sync, sync_all
from cs_aligner_cli.files.records import Inputs, StageRecord

RECORD = "stage.json"
# The place of an output itself among those that its record notes.
OWN = "."
_MARK = "building.json"
# Raised when what a stage writes changes in form, so that older outputs count as stale.
_FORMAT = 3
# Files on their way to their places: our own, and those of safetensors, which writes aside by itself.
_ASIDES = (".*.tmp", ".tmp*")
# How far above a file of an output its record is looked for.
_DEEPEST = 3


def fingerprint(value: Any) -> str:
    """A short digest of any JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Where to write a file that then appears at ``path`` whole or not at all: aside, fsync, rename.

    Raises InputError, naming the file, if the disk does not take it.
    """
    aside = aside_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            sync(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically."""
    with written_aside(path) as aside:
        aside.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    write_bytes(path, _as_text(value).encode())


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def read_json(path: Path, hint: str = "") -> Any:
    """Read a JSON file; raise InputError, with the hint, if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}", hint) from None


@dataclass(frozen=True)
class Artifact:
    """One stage's output folder and all that determines its content.

    ``recipe`` holds the parts of the recipe that matter for it and ``needs`` the artifacts that it is made
    from; the fingerprint covers both, so that a change anywhere upstream makes everything downstream stale.
    """

    name: str
    path: Path
    command: str
    recipe: Mapping[str, Any]
    needs: tuple[Artifact, ...] = ()

    def wanted(self, sources: str = "", needs: Mapping[str, str | None] | None = None) -> dict[str, Any]:
        """The inputs that a fresh output was made from; ``sources`` is a digest of outside files.

        ``needs`` are the fingerprints of what it is made from, by name, for a caller that has them already.
        """
        assert len({need.name for need in self.needs}) == len(self.needs), f"two needs of {self.name} have one name"
        return {
            "format": _FORMAT,
            "recipe": without_paths(json.loads(json.dumps(dict(self.recipe), default=str))),
            "needs": {need.name: need.fingerprint() for need in self.needs} if needs is None else dict(needs),
            **({"sources": sources} if sources else {}),
        }

    @property
    def places(self) -> dict[str, str]:
        """By recipe key, the paths of the files from outside that this output is made from."""
        return places(json.loads(json.dumps(dict(self.recipe), default=str)))

    def note_places(self, record: dict[str, Any], more: Mapping[str, str]) -> dict[str, Any]:
        """The record of a fresh output, which from now on says where the files from outside lie now."""
        now = {**self.places, **more, OWN: str(self.path)}
        if record.get("places", {}) != now:
            record = {**record, "places": now}
            write_json(self.path / RECORD, sealed(record))
        return record

    def record(self) -> dict[str, Any] | None:
        """What the finished stage wrote about itself, or None if there is no whole output."""
        self._settle()
        path = self.path / RECORD
        if not path.is_file():
            return None
        hint = f"Make the {self.name} again: {self.command} --force"
        record = read_record(path, hint)
        # An output of another form is whole or not, but stale in any case; require says so.
        whole = _form(record) != _FORMAT or all(
            size_of(f"{self.path}/{f}") == size for f, (size, _) in record["files"].items()
        )
        return record if whole else None

    def fingerprint(self) -> str | None:
        """The fingerprint of the output on disk, None where there is none."""
        record = self.record()
        return fingerprint(record["inputs"]) if record else None

    def fresh(self, sources: str = "") -> dict[str, Any] | None:
        """The record of the output on disk if it was made from exactly the inputs wanted now, else None."""
        record = self.record()
        if record is None:
            return None
        made = {key: value for key, value in record["inputs"].items() if key != "continues"}
        return record if made == self.wanted(sources) else None

    def require(self) -> dict[str, Any]:
        """The record of this artifact, which is about to be read; raise InputError if it is missing, was made from
        other inputs, or is damaged (see ``verify``)."""
        record = self.current()
        self.verify(record)
        return record

    def require_needs(self) -> None:
        """Raise InputError if anything that this artifact is made from is missing, stale or damaged."""
        for need in self.needs:
            need.require()

    def current(self, seen: dict[Path, tuple[Artifact, dict[str, Any]]] | None = None) -> dict[str, Any]:
        """The record of this artifact if it is there and, like all that it is made from, as wanted now.

        Compares records and sizes, and reads no content; what several needs are made from is looked at once, which
        ``seen`` is for. Raises InputError if it is missing or stale.
        """
        seen = {} if seen is None else seen
        if self.path in seen and seen[self.path][0] == self:
            return seen[self.path][1]
        needs = {need.name: fingerprint(need.current(seen)["inputs"]) for need in self.needs}
        record = self._as_wanted(needs)
        seen[self.path] = self, record
        return record

    def _as_wanted(self, needs: Mapping[str, str | None]) -> dict[str, Any]:
        """The record, if it is there and of these fingerprints of needs; raise InputError otherwise."""
        record = self.record()
        if record is None:
            self._refuse_damaged()
            raise InputError(f"no {self.name} in {self.path}", f"Make it first: {self.command}")
        if _form(record) != _FORMAT:
            age = "an older" if _form(record) < _FORMAT else "a newer"
            raise InputError(
                f"the {self.name} in {self.path} was written by {age} csalign ({record.get('csalign')}), in form "
                f"{_form(record)}; this csalign ({__version__}) reads form {_FORMAT}",
                f"Make it again: {self.command}",
            )
        if changes := self.changes(record, needs):
            raise StaleError(self, changes[0])
        if change := moved(record.get("places", {}), self.places):
            raise InputError(
                f"the {self.name} in {self.path} may be stale: {change}", f"See whether it is: {self.command}"
            )
        return record

    def changes(self, record: dict[str, Any], needs: Mapping[str, str | None] | None = None) -> list[str]:
        """In what a finished output differs from what is wanted now, in words; files from outside are not looked at.

        ``needs`` as in ``wanted``.
        """
        wanted, places = self.wanted(needs=needs), self.places
        found = differences({key: record["inputs"].get(key) for key in wanted}, wanted)
        return [change.replace(repr(A_PATH), places.get(change.split(" ")[0], "another path")) for change in found]

    def verify(self, record: dict[str, Any]) -> None:
        """Raise InputError naming the first file of this output that does not have the checksum it was written with.

        Whoever reads an output looks first; what it was made from is for its own readers to look at. Of several
        processes on one command, rank 0 looks for all.
        """
        if rank() == 0 and _form(record) == _FORMAT:
            found = digests(self.path / name for name in record["files"])
            for (name, (_, written)), now in zip(record["files"].items(), found, strict=True):
                if now != written:
                    raise _damaged(self.path / name, f"Make the {self.name} again: {self.command} --force")

    def _refuse_damaged(self) -> None:
        """Name the first file of a finished output that is not there in full."""
        if not (self.path / RECORD).is_file():
            return
        for name, (size, _) in read_record(self.path / RECORD)["files"].items():
            if size_of(self.path / name) != size:
                raise InputError(
                    f"{self.path / name}: is missing or cut short", f"Make the {self.name} again: {self.command}"
                )

    @contextmanager
    def building(self, sources: str = "", keep_earlier: bool = False, continues: str = "") -> Iterator[Build]:
        """Build the output aside and put it in place whole; a cut build from the same inputs goes on.

        An earlier output stays where it is until then, and goes; with ``keep_earlier`` it is kept, as NAME.1 or so.
        ``continues`` is the fingerprint of the output that this one goes on from; what is made of it differs by that.
        """
        with writing(self.work):
            yield from self._build(self.wanted(sources) | ({"continues": continues} if continues else {}), keep_earlier)

    def _build(self, wanted: dict[str, Any], keep_earlier: bool) -> Iterator[Build]:
        self._settle()
        resumed = _take_up(self.work, wanted)
        build = Build(self.work, resumed)
        started = time.monotonic()
        try:
            yield build
        except BaseException:
            if not resumed and not any(f for f in self.work.rglob("*") if f.is_file() and f.name != _MARK):
                shutil.rmtree(self.work, ignore_errors=True)  # nothing that a second try could go on from
            raise
        marks = set(self.work.rglob(MARKS))
        apart = {*marks, *build.leftovers, self.work / _MARK}
        made = [f for f in sorted(self.work.rglob("*")) if f.is_file() and f not in apart]
        _refuse_changed(f for f in made if mark(f) in marks)
        record = StageRecord(
            name=self.name,
            csalign=__version__,
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            seconds=round(time.monotonic() - started, 2),
            inputs=Inputs.model_validate(wanted),
            places={**self.places, **build.places, OWN: str(self.path)},
            summary=build.summary,
            files={
                f.relative_to(self.work).as_posix(): (f.stat().st_size, checksum)
                for f, checksum in zip(made, digests(made), strict=True)
            },
        )
        sync_all(made)
        plan(self.work, build.leftovers, keep_earlier)
        write_json(self.work / RECORD, sealed(record.data()))
        (self.work / _MARK).unlink()
        self._settle()

    @property
    def work(self) -> Path:
        """The folder in which the output is built before it is put in place."""
        place = linked_place(self.path)
        return place.with_name(f"{place.name}.partial")

    def _settle(self) -> None:
        """Put a finished build in place, also one whose process was killed in the middle of doing so."""
        if not (self.work / RECORD).is_file() or (self.work / _MARK).is_file():
            return
        put_in_place(self.work, self.path)


@dataclass
class Build:
    """A build in progress: its folder, whether it continues an interrupted one, the summary to record, and files that
    it has needed to be taken up, and which go once it is in place."""

    folder: Path
    resumed: bool
    summary: dict[str, Any] = field(default_factory=dict)
    leftovers: list[Path] = field(default_factory=list)
    places: Mapping[str, str] = field(default_factory=dict)


def _take_up(work: Path, wanted: dict[str, Any]) -> bool:
    """Make the folder of a build ready; return whether it holds the beginnings of one from equal inputs."""
    mark = work / _MARK
    resumed = mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == _as_text(wanted)
    if not resumed:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(mark, wanted)
    asides = (file for pattern in _ASIDES for file in work.rglob(pattern))
    for leftover in (work / RECORD, work / STEPS, *asides):  # of the process that was killed
        leftover.unlink(missing_ok=True)
    return resumed


def read_record(path: Path, hint: str = "") -> dict[str, Any]:
    """The record that a finished stage wrote about itself; raise InputError if it is damaged or none."""
    record: Any = read_json(path, hint)
    if not (isinstance(record, dict) and {"inputs", "summary", "files"} <= record.keys()):
        raise InputError(f"{path}: is not the record of a stage", hint)
    if _form(record) != _FORMAT:
        return record
    vouch(path, hint)
    return {key: value for key, value in record.items() if key != SEAL}


def verify_file(path: Path, remedy: str = "") -> None:
    """Raise InputError if a file of a finished output does not have its recorded checksum; other files pass."""
    folder = next((folder for folder in path.parents[:_DEEPEST] if (folder / RECORD).is_file()), None)
    if folder is None or not path.is_file():
        return
    record = read_record(folder / RECORD)
    written = record["files"].get(path.relative_to(folder).as_posix())
    if _form(record) == _FORMAT and written and digest(path) != written[1]:
        raise _damaged(path, remedy or f"Make it again with --force; {folder / RECORD} says what made it.")


def _damaged(path: Path, hint: str) -> InputError:
    return InputError(f"{path}: is damaged: its content does not have the checksum it was written with", hint)


def _form(record: dict[str, Any]) -> int:
    """In which form a recorded output is written: the version of its schema."""
    inputs = record.get("inputs")
    form = inputs.get("format") if isinstance(inputs, dict) else None
    return form if isinstance(form, int) else 0


def _refuse_changed(files: Iterable[Path]) -> None:
    """Raise InputError if a finished file of a build is no longer what was written, and let go of it."""
    for file in files:
        if not is_whole(file):
            file.unlink()
            raise InputError(f"{file}: was damaged after it was written", "The same command makes it again.")
