"""Outputs appear whole or not at all, are taken up where they were cut, and say what makes them stale."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files import placing
from cs_aligner_cli.files.artifact import Artifact, write_bytes, write_json
from cs_aligner_cli.files.locks import lock
from cs_aligner_cli.files.places import file_stamps


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact("thing", tmp_path / "out" / "thing", "csalign make-it", {"train": {"lr": 1.0, "steps": 3}})


def build(artifact: Artifact, text: str = "content", sources: str = "") -> None:
    with artifact.building(sources) as building:
        (building.folder / "deep").mkdir(exist_ok=True)
        (building.folder / "deep" / "file.txt").write_text(text)
        building.summary = {"text": text}


def content(artifact: Artifact) -> str:
    return (artifact.path / "deep" / "file.txt").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_build_is_recorded_with_inputs_summary_and_files(artifact: Artifact) -> None:
    assert artifact.record() is None
    assert artifact.fingerprint() is None
    build(artifact, "abc", sources="stamp")
    record = artifact.fresh("stamp")
    assert record is not None
    assert record["summary"] == {"text": "abc"}
    assert record["files"] == {"deep/file.txt": [3, hashlib.blake2b(b"abc", digest_size=16).hexdigest()]}
    assert record["inputs"]["recipe"] == {"train": {"lr": 1.0, "steps": 3}}
    assert names(artifact.path.parent) == ["thing"]
    assert names(artifact.path) == ["deep", "stage.json"]


def test_a_record_is_checked_again_once_it_changes(artifact: Artifact) -> None:
    build(artifact)
    assert artifact.record() is not None
    path = artifact.path / "stage.json"
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))}: is damaged: its content does not have the checksum"
    ):
        artifact.record()


def test_what_several_needs_are_made_from_is_looked_at_once(artifact: Artifact, tmp_path: Path) -> None:
    build(artifact)
    sides = tuple(Artifact(name, tmp_path / name, "csalign side", {}, (replace(artifact),)) for name in ("a", "b"))
    last = Artifact("last", tmp_path / "last", "csalign last", {}, sides)
    for made in (*sides, last):
        build(made)
    seen: dict[Path, Any] = {}
    last.current(seen)
    assert len(seen) == 4 and seen[artifact.path][1] == artifact.record()
    other = replace(sides[1], needs=(replace(artifact, recipe={"train": {"lr": 2.0, "steps": 3}}),))
    with pytest.raises(InputError, match="lr"):
        replace(last, needs=(sides[0], other)).current()


def test_other_inputs_are_not_fresh(artifact: Artifact, tmp_path: Path) -> None:
    build(artifact, sources="old")
    assert artifact.fresh("old")
    assert artifact.fresh("new") is None
    assert artifact.fresh() is None
    assert replace(artifact, recipe={"train": {"lr": 2.0, "steps": 3}}).fresh("old") is None


def test_paths_and_tuples_in_a_recipe_compare_as_they_are_written(artifact: Artifact) -> None:
    odd = replace(artifact, recipe={"path": Path("/x"), "ks": (1, 5)})
    build(odd)
    assert odd.fresh()
    assert odd.require()


def test_a_changed_need_makes_what_is_made_from_it_stale(artifact: Artifact, tmp_path: Path) -> None:
    later = Artifact("later thing", tmp_path / "later", "csalign later", {}, (artifact,))
    build(artifact)
    build(later)
    assert later.require()
    with artifact.building("other") as building:
        (building.folder / "new").write_text("")
    assert later.fresh() is None
    with pytest.raises(InputError, match="the thing it was made from has changed") as error:
        later.require()
    assert str(error.value).endswith("Make it again: csalign later")


def test_require_names_what_is_missing_or_has_changed_and_the_command(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"no thing in .*thing\nMake it first: csalign make-it"):
        artifact.require()
    build(artifact)
    changed = replace(artifact, recipe={"train": {"lr": 0.5, "steps": 3}})
    with pytest.raises(InputError, match=r"stale: train.lr was 1.0 and is now 0.5\nMake it again: csalign make-it"):
        changed.require()


@pytest.mark.parametrize("made", [{"lr": 1.0}, {"lr": 1.0, "steps": None}])
@pytest.mark.parametrize("wanted", [{"lr": 1.0}, {"lr": 1.0, "steps": None}])
def test_what_is_not_fresh_has_a_change_that_says_why(
    artifact: Artifact, made: dict[str, Any], wanted: dict[str, Any]
) -> None:
    build(replace(artifact, recipe={"train": made}))
    record = artifact.record()
    assert record is not None
    now = replace(artifact, recipe={"train": wanted})
    assert (now.fresh() is None) == bool(now.changes(record)) == (made != wanted)
    if "steps" in wanted and made != wanted:
        assert now.changes(record) == ["train.steps was not set and is now None"]


def test_require_looks_at_needs_first(artifact: Artifact, tmp_path: Path) -> None:
    later = Artifact("later thing", tmp_path / "later", "csalign later", {}, (artifact,))
    with pytest.raises(InputError, match="no thing in"):
        later.require()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("longer than it was")])
def test_a_missing_or_cut_file_makes_the_output_count_as_absent(
    artifact: Artifact, damage: Callable[[Path], Any]
) -> None:
    build(artifact)
    damage(artifact.path / "deep" / "file.txt")
    assert artifact.record() is None
    build(artifact, "again")
    assert content(artifact) == "again"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"inputs": {}, "summary": {}}', "\xff"])
def test_a_damaged_record_says_so_and_can_be_made_again(artifact: Artifact, text: str) -> None:
    build(artifact)
    (artifact.path / "stage.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"stage\.json: .*\nMake the thing again: csalign make-it --force"):
        artifact.fresh()
    build(artifact, "again")
    assert artifact.fresh()


def test_an_exception_in_the_middle_leaves_the_old_output(artifact: Artifact) -> None:
    build(artifact, "old")
    with pytest.raises(ZeroDivisionError), artifact.building("new") as building:
        (building.folder / "half").write_text("half")
        raise ZeroDivisionError
    assert content(artifact) == "old"
    assert artifact.fresh()
    build(artifact, "newer", "newer")
    assert content(artifact) == "newer"
    assert not (artifact.path / "half").exists()


def cut_build(artifact: Artifact, sources: str = "") -> None:
    with pytest.raises(KeyboardInterrupt), artifact.building(sources) as building:
        (building.folder / "first").write_text("done")
        (building.folder / ".second.tmp").write_text("ha")
        (building.folder / ".tmpVRs41H").write_text("as safetensors writes aside")
        raise KeyboardInterrupt


def test_a_cut_build_is_taken_up_for_equal_inputs_only(artifact: Artifact) -> None:
    cut_build(artifact)
    with artifact.building() as building:
        assert building.resumed
        assert names(building.folder) == ["building.json", "first"]
    assert names(artifact.path) == ["first", "stage.json"]

    for other, sources in ((artifact, "other"), (replace(artifact, recipe={"train": {}}), "")):
        cut_build(artifact)
        with other.building(sources) as building:
            assert not building.resumed
            assert names(building.folder) == ["building.json"]


def test_a_damaged_mark_of_a_cut_build_begins_anew(artifact: Artifact) -> None:
    cut_build(artifact)
    (artifact.path.with_name("thing.partial") / "building.json").write_bytes(b"\xff\x00{")
    with artifact.building() as building:
        assert not building.resumed
        assert names(building.folder) == ["building.json"]


@pytest.mark.parametrize("there", [True, False], ids=["moved", "not there yet"])
def test_an_output_that_is_a_link_is_made_again_where_it_leads(artifact: Artifact, tmp_path: Path, there: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    artifact.path.parent.mkdir()
    if there:
        build(artifact, "moved")
        artifact.path.rename(disk / "large")
    artifact.path.symlink_to(disk / "large")
    for text in ("one", "two", "three"):
        build(artifact, text)
        assert (artifact.record() or {})["summary"] == {"text": text}
        assert content(artifact) == (disk / "large" / "deep" / "file.txt").read_text() == text
        assert artifact.path.is_symlink()
        assert (names(artifact.path.parent), names(disk)) == (["thing"], ["large"])
    with artifact.building(keep_earlier=True):
        pass
    assert (names(artifact.path.parent), names(disk)) == (["thing"], ["large", "large.1"])


def test_a_link_that_was_left_behind_is_no_hindrance(artifact: Artifact, tmp_path: Path) -> None:
    build(artifact, "one")
    (tmp_path / "elsewhere").mkdir()
    artifact.path.with_name("thing.old").symlink_to(tmp_path / "elsewhere")
    build(artifact, "two")
    assert content(artifact) == "two"
    assert (tmp_path / "elsewhere").is_dir()


KILLED = """
import os, sys
from pathlib import Path
from cs_aligner_cli.files import artifact as artifacts
from cs_aligner_cli.files.artifact import Artifact

calls = 0

def killed_at(function, number):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return call

def replace(place, number, keep):
    artifact = Artifact("thing", place, "csalign make-it", {})
    with artifact.building("old") as building:
        (building.folder / "file").write_text("old")
    # Every step by which a build changes the folders: the record, the mark, the renames, the removal of the old.
    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "replace"), (artifacts.shutil, "rmtree")):
        setattr(owner, name, killed_at(getattr(owner, name), number))
    with artifact.building("new", keep) as building:
        (building.folder / "file").write_text("new")
        building.leftovers = [building.folder / "state"]
        building.leftovers[0].write_text("what only the build itself needs")

folder, keep, number, status = Path(sys.argv[1]), bool(sys.argv[2:]), 0, 9
while status:
    number += 1
    if os.fork() == 0:
        replace(folder / str(number) / "thing", number, keep)
        os._exit(0)
    status = os.wait()[1]
    assert status in (0, 9), status
print(number)
"""


@pytest.mark.parametrize("keep", [(), ("keep",)], ids=["replaced", "kept"])
def test_a_kill_between_any_two_steps_leaves_an_old_or_a_new_output(tmp_path: Path, keep: tuple[str, ...]) -> None:
    called = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *keep], capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    seen = set()
    for number in range(1, int(called.stdout) + 1):
        artifact = Artifact("thing", tmp_path / str(number) / "thing", "csalign make-it", {})
        record = artifact.record()
        assert record is not None, f"lost at step {number}"
        found = (artifact.path / "file").read_text()
        assert record["inputs"]["sources"] == found
        assert names(artifact.path) == ["file", "stage.json"]
        with artifact.building("newer") as building:
            assert not building.resumed
            (building.folder / "file").write_text("newer")
        if keep and found == "new":
            assert names(artifact.path.parent) == ["thing", "thing.1"]
            kept = replace(artifact, path=artifact.path.with_name("thing.1"))
            assert kept.fresh("old") and (kept.path / "file").read_text() == "old"
        else:
            assert names(artifact.path.parent) == ["thing"]
        seen.add(found)
    assert number > 5
    assert seen == {"old", "new"}


def test_every_file_is_on_the_disk_before_the_output_is_in_place(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        if not artifact.path.exists():
            synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    build(artifact)
    work = artifact.path.with_name("thing.partial")
    assert {work / "deep" / "file.txt", work / "deep", work / ".stage.json.tmp", work} <= set(synced)


def test_many_files_are_synced_in_one_go(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(os, "sync", lambda: calls.append("sync"))
    monkeypatch.setattr(placing, "_MANY_FILES", 2)
    with artifact.building() as building:
        for i in range(3):
            (building.folder / str(i)).write_text("")
    assert calls == ["sync"]


def test_write_bytes_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "deep" / "file", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"deep/file: cannot be written: No space left on device\nFree some room"):
            write_bytes(tmp_path / "deep" / "file", b"new")
    assert (tmp_path / "deep" / "file").read_bytes() == b"old"
    assert names(tmp_path / "deep") == ["file"]
    write_json(tmp_path / "deep" / "file", {"a": [1, None]})
    assert json.loads((tmp_path / "deep" / "file").read_text()) == {"a": [1, None]}


def test_file_stamps_follow_name_size_time_and_absence(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    os.utime(one, ns=(0, 1000))
    first = file_stamps([one, two])
    assert (
        file_stamps(
            [
                str(two),
                str(one),
            ]
        )
        == first
    )
    two.write_text("2")
    second = file_stamps([one, two])
    os.utime(one, ns=(0, 1001))
    third = file_stamps([one, two])
    one.write_text("11")
    os.utime(one, ns=(0, 1001))
    assert len({first, second, third, file_stamps([one, two]), file_stamps([one])}) == 5
    assert file_stamps([tmp_path / ("x" * 300), "a\0b"])


def test_a_second_process_is_refused_while_the_first_works(tmp_path: Path, csalign: Any, features_recipe: Path) -> None:
    code = "import sys; from pathlib import Path; from cs_aligner_cli.files.locks import lock\n"
    code += "with lock(Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        called = csalign("prepare", features_recipe)
        assert called.exit_code == 2
        assert f"another csalign process (pid {holder.pid} on {socket.gethostname()}) is working there" in called.stderr
        assert "another run_dir" in called.stderr
        holder.communicate()
    assert csalign("prepare", features_recipe).exit_code == 0


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/run: cannot be written: Not a directory"),
        lock(tmp_path / "file" / "run"),
    ):
        pass
