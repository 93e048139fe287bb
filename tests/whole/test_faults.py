"""Signals, disks that do not take what is written, flipped bits, old files: told by name, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from chaos import can_mount
from PIL import Image
from safetensors.torch import load_file, save_file

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.signals import noticed_interrupts
from cs_aligner_cli.files.checksums import sealed, unsealed
from cs_aligner_cli.files.disk import writing
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stores.embeddings import ShardWriter
from cs_aligner_cli.towers.weights import read_plans
from cs_aligner_cli.training.step import Stepper

Csalign = Callable[..., Any]
Refused = Callable[..., str]
# 28 steps per epoch, so that most of them are no end of an epoch; dropout, so that draws matter.
TRAINING = (
    "--set",
    "train.batch_size=4",
    "--set",
    "train.epochs=2",
    "--set",
    "train.image.adapter.dropout=0.3",
    "--set",
    "train.keep_states=1",
)


def done(csalign: Csalign, command: str, recipe: Path, *options: str) -> Any:
    called = csalign(command, recipe, *options)
    assert called.exit_code == 0, called.stderr
    return called


def flip(path: Path, bit: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# ---- SIGINT and SIGTERM


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``with signalled(5, signal.SIGTERM):`` training gets a real signal in the middle of its fifth step."""

    @contextmanager
    def at(number: int, signum: int = signal.SIGTERM) -> Iterator[None]:
        step = Stepper.step

        def signalled_step(self: Stepper, which: int, *arguments: Any) -> Any:
            if which + 1 == number:
                os.kill(os.getpid(), signum)
            return step(self, which, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Stepper, "step", signalled_step)
            yield

    return at


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_exits_with_130_and_the_run_ends_bitwise_equal(
    csalign: Csalign, features_recipe: Path, tmp_path: Path, signalled: Callable[..., Any], signum: int
) -> None:
    whole, cut = (("--set", f"run_dir={tmp_path / name}", *TRAINING) for name in ("whole", "cut"))
    for command in ("prepare", "embed", "train"):
        done(csalign, command, features_recipe, "-q", *whole)
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q", *cut)
    with signalled(5, signum):
        called = csalign("train", features_recipe, *cut)
    assert called.exit_code == 130
    assert "interrupted; the same command takes the work up again" in called.stderr
    partial = tmp_path / "cut" / "train" / "aligned.partial"
    assert json.loads((partial / "last.json").read_text())["step"] == 5
    assert "going on from step 5 of 56" in done(csalign, "train", features_recipe, *cut).stderr
    ours, theirs = (tmp_path / name / "train" / "aligned" for name in ("cut", "whole"))
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "last.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_the_first_signal_is_noted_and_the_second_interrupts_and_handlers_come_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), noticed_interrupts() as interrupts:
        assert not interrupts.wanted
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.wanted
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is former


def test_no_generator_but_the_seeded_ones_has_a_say_in_training(
    csalign: Csalign, features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state holds the step; every draw is a function of it and the seed, whatever the global generators did."""
    plain, stirred = (("--set", f"run_dir={tmp_path / name}", *TRAINING) for name in ("plain", "stirred"))
    for command in ("prepare", "embed", "train"):
        done(csalign, command, features_recipe, "-q", *plain)
    take = Stepper.step

    def stir(self: Stepper, step: int, *arguments: Any) -> Any:
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002 (the global generator is the point)
        torch.manual_seed(step)
        return take(self, step, *arguments)

    monkeypatch.setattr(Stepper, "step", stir)
    for command in ("prepare", "embed", "train"):
        done(csalign, command, features_recipe, "-q", *stirred)
    one, other = (load_file(tmp_path / name / "train/aligned/last.safetensors") for name in ("plain", "stirred"))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- disks


def _faiss(path: Path) -> None:
    index = faiss.IndexFlatIP(64)
    index.add(np.ones((100, 64), np.float32))
    faiss.write_index(index, str(path))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 9000),
    "npy": lambda path: np.save(path, np.ones(3000)),
    "npy by handle": lambda path: np.save(path.open("wb"), np.ones(3000)),
    "safetensors": lambda path: save_file({"x": torch.ones(3000)}, path),
    "parquet": lambda path: pd.DataFrame({"x": np.random.default_rng(0).random(3000)}).to_parquet(path),
    "csv": lambda path: pd.DataFrame({"x": np.ones(9000)}).to_csv(path),
    "png": lambda path: Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path),
    "faiss": _faiss,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an unfinished file, closed late
def test_every_library_that_writes_is_reported_where_the_disk_takes_no_more(kind: str, tmp_path: Path) -> None:
    """A real limit, on the size of files: each library has its own words for it."""
    path = tmp_path / f"file.{kind.split()[0]}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError) as caught, writing(path):
            WRITERS[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written: "), message
    assert "Free some room there" in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_a_quota_and_a_read_only_folder_are_named(number: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"thing/file: cannot be written: {os.strerror(number)}"):  # noqa: SIM117
        with writing(tmp_path / "thing"):
            raise OSError(number, os.strerror(number), str(tmp_path / "thing" / "file"))


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    """Above all a photo that may not be read: that is not the output's fault."""
    for error in (PermissionError(errno.EACCES, "denied", "/photos/1.jpg"), ZeroDivisionError(), InputError("x")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


@pytest.mark.skipif(not can_mount(), reason="no tmpfs can be mounted here")
def test_a_read_only_run_folder_is_reported_with_exit_2(features_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    command = f"mount -t tmpfs -o ro tmpfs {tmp_path / 'run'} && exec {sys.executable} -m cs_aligner_cli prepare"
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{command} {features_recipe}"]
    ended = subprocess.run(unshared, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"csalign: {tmp_path / 'run'}: cannot be written: Read-only file system")


# ---- damaged files


@pytest.fixture
def finished(csalign: Csalign, features_recipe: Path, tmp_path: Path) -> Path:
    """The folder of a run that went through all stages but the report."""
    for command in ("prepare", "embed", "train", "embed", "eval-retrieval"):
        done(csalign, command, features_recipe, "-q", "--set", "train.epochs=2")
    return tmp_path / "run"


def test_a_flipped_bit_is_named_by_whoever_reads_the_file(
    csalign: Csalign, refused: Refused, features_recipe: Path, finished: Path
) -> None:
    epochs = ("--set", "train.epochs=2", "-q")
    for file, command, removed in (
        ("data/captions.parquet", "embed", "embeddings/frozen/dev"),
        ("data/report.json", "embed", "embeddings/frozen/dev"),
        ("embeddings/frozen/train/image/shard-00000.npy", "train", "train/aligned"),
        ("embeddings/frozen/train/identity.json", "train", "train/aligned"),
        ("train/aligned/best.safetensors", "embed", "embeddings/aligned/dev"),
        ("embeddings/aligned/dev/text.parquet", "eval-retrieval", "eval_retrieval"),
        ("embeddings/frozen/dev/text/shard-00000.npy", "eval-retrieval", "eval_retrieval"),
        ("embeddings/frozen/dev/stage.json", "eval-retrieval", ""),
        ("run.json", "eval-retrieval", ""),
    ):
        whole = (finished / file).read_bytes()
        aside = finished.parent / "aside"
        if removed:
            (finished / removed).rename(aside)
        flip(finished / file, 8 * whole.index(b"csalign") if file == "run.json" else None)
        message = refused(command, features_recipe, *epochs)
        assert message.startswith(f"{finished / file}: "), (file, message)
        assert "damaged" in message or "cannot be read as JSON" in message, message
        assert "Make " in message or "Remove it" in message
        (finished / file).write_bytes(whole)
        if removed:
            shutil.rmtree(finished / removed, ignore_errors=True)
            aside.rename(finished / removed)
    assert "nothing to do" in done(csalign, "eval-retrieval", features_recipe, *epochs[:2]).stderr


def test_a_flip_in_weights_of_another_run_is_named(
    csalign: Csalign, refused: Refused, features_recipe: Path, finished: Path, tmp_path: Path
) -> None:
    weights = finished / "train" / "aligned" / "best.safetensors"
    other = ("--set", f"run_dir={tmp_path / 'other'}", "--set", f"embed.weights={weights}")
    done(csalign, "prepare", features_recipe, "-q", *other)
    flip(weights)
    message = refused("embed", features_recipe, "-q", *other)
    assert message.startswith(f"{weights}: is damaged")


def test_a_damaged_state_is_left_for_the_one_before_it(
    csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path, signalled: Callable[..., Any]
) -> None:
    whole, cut = (("--set", f"run_dir={tmp_path / name}", *TRAINING) for name in ("whole", "cut"))
    often = ("--set", "train.checkpoint_steps=2")
    for command in ("prepare", "embed", "train"):
        done(csalign, command, features_recipe, "-q", *whole, *often)
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q", *cut)
    with signalled(31):  # after the first epoch, so that there are best weights, too
        assert csalign("train", features_recipe, "-q", *cut, *often).exit_code == 130
    partial = tmp_path / "cut" / "train" / "aligned.partial"
    kept = tmp_path / "kept"
    shutil.copytree(partial, kept)
    names = sorted(path.name for path in partial.glob("last*"))
    assert names == ["last-00000030.json", "last-00000030.safetensors", "last-00000031.safetensors", "last.json"]

    for damaged in ("last-00000031.safetensors", "last.json"):
        flip(partial / damaged)
        called = done(csalign, "train", features_recipe, *cut, *often)
        assert "warning: " in called.stderr and str(partial / damaged) in called.stderr
        assert "the state of step 30 before it is taken" in called.stderr
        ours, theirs = (tmp_path / name / "train" / "aligned" for name in ("cut", "whole"))
        for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "last.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        shutil.rmtree(ours)
        shutil.copytree(kept, partial)

    for damaged in ("last-00000031.safetensors", "last-00000030.safetensors"):
        flip(partial / damaged)
    message = refused("train", features_recipe, "-q", *cut, *often)
    assert message.startswith(f"{partial / 'last-00000031.safetensors'}: is damaged")
    assert message.endswith(f"Remove {partial} to begin it anew.")
    shutil.rmtree(partial)
    shutil.copytree(kept, partial)
    flip(partial / "metrics.jsonl")
    assert refused("train", features_recipe, "-q", *cut, *often).startswith(f"{partial / 'metrics.jsonl'}: is damaged")


def test_best_weights_that_changed_during_training_are_not_exported(
    csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path, signalled: Callable[..., Any]
) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q", *TRAINING)
    with signalled(56):  # the last step: best.safetensors is final
        assert csalign("train", features_recipe, "-q", *TRAINING).exit_code == 130
    best = tmp_path / "run" / "train" / "aligned.partial" / "best.safetensors"
    flip(best)
    assert refused("train", features_recipe, "-q", *TRAINING).startswith(f"{best}: is damaged")


def test_a_damaged_shard_of_a_cut_job_is_computed_again(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    writer = ShardWriter(tmp_path, 10, 3, "float32")
    for number, rows in writer.missing():
        writer.write(number, array[rows])
    assert list(writer.missing()) == []
    flip(tmp_path / "shard-00001.npy")
    (tmp_path / ".shard-00002.npy.sum").unlink()
    assert [number for number, _ in writer.missing()] == [1, 2]


def test_a_seal_tells_any_change() -> None:
    value = {"a": [1, 2.5, None], "b": {"1": "x"}}
    text = json.dumps(sealed(value))
    assert unsealed(json.loads(text), Path("f")) == value
    for old, new in (("2.5", "2.6"), ("null", "0"), ('"x"', '"y"')):
        with pytest.raises(InputError, match="f: is damaged"):
            unsealed(json.loads(text.replace(old, new, 1)), Path("f"))
    with pytest.raises(InputError, match="lacks the checksum"):
        unsealed(value, Path("f"))


# ---- files of other versions


@pytest.mark.parametrize(("form", "age"), [(1, "an older"), (99, "a newer")])
def test_an_output_of_another_version_is_reported_as_such(
    csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path, form: int, age: str
) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q")
    path = tmp_path / "run" / "embeddings" / "frozen" / "train" / "stage.json"
    record = json.loads(path.read_text())
    record["inputs"]["format"], record["csalign"] = form, "0.0.7"
    record["files"] = {name: size for name, (size, _) in record["files"].items()}  # as form 1 had them
    path.write_text(json.dumps(record))
    message = refused("train", features_recipe, "-q")
    assert f"was written by {age} csalign (0.0.7), in form {form}; this csalign" in message
    assert message.endswith(f"Make it again: csalign embed {features_recipe}")
    done(csalign, "embed", features_recipe, "-q")
    done(csalign, "train", features_recipe, "-q", "--set", "train.epochs=1")


def test_weights_and_states_of_another_version_are_reported_as_such(
    csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path, signalled: Callable[..., Any]
) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q", *TRAINING)
    with signalled(30):
        assert csalign("train", features_recipe, "-q", *TRAINING).exit_code == 130
    partial = tmp_path / "run" / "train" / "aligned.partial"
    plans = {"format": 9, "image": {}, "text": {}}
    save_file({"x": torch.ones(1)}, tmp_path / "w.safetensors", {"csalign_towers": json.dumps(plans)})
    with pytest.raises(InputError, match=r"w\.safetensors: is in form 9; this csalign \(.*\) reads form 1"):
        read_plans(tmp_path / "w.safetensors")
    for form in (1, 9):  # of an earlier csalign and of a later one
        for path in partial.glob("last*.json"):
            path.write_text(re.sub(r'"format": \d', f'"format": {form}', path.read_text()))
        message = refused("train", features_recipe, "-q", *TRAINING)
        assert f"last.json: is in form {form}; this csalign" in message
        assert "train again" in message


def test_a_state_is_saved_after_some_minutes_even_within_an_epoch(
    csalign: Csalign, features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TRAINING, "--set", "train.checkpoint_minutes=1e-9", "--set", "train.keep_checkpoints=3")
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, "-q", *options)

    def killed(self: Stepper, which: int, *arguments: Any) -> Any:
        if which == 7:
            raise KeyboardInterrupt
        return step(self, which, *arguments)

    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", killed)
    assert csalign("train", features_recipe, "-q", *options).exit_code == 130
    partial = tmp_path / "run" / "train" / "aligned.partial"
    assert json.loads((partial / "last.json").read_text())["step"] == 7
    kept = [f"last-{number:08d}.safetensors" for number in (5, 6, 7)]
    assert sorted(path.name for path in partial.glob("last-*.safetensors")) == kept


def test_recipe_options_of_safety_do_not_make_a_run_stale(csalign: Csalign, features_recipe: Path) -> None:
    assert load_recipe(str(features_recipe), ["distributed.timeout_minutes=3"]).distributed.timeout_minutes == 3
    for command in ("prepare", "embed", "train"):
        done(csalign, command, features_recipe, "-q", "--set", "train.epochs=1")
    options = ("train.checkpoint_minutes=1", "train.keep_checkpoints=5", "distributed.backend=gloo", "train.epochs=1")
    again = done(csalign, "train", features_recipe, *(part for option in options for part in ("--set", option)))
    assert "nothing to do" in again.stderr
