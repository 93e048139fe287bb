"""Ranks: how a batch is split, and real torchrun jobs against one process on the same global batch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import CASES, TORCHRUN, differences, embedded, launch, trained, write_data
from safetensors.torch import load_file

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.runs.distributed import Ranks, share_of_batch
from cs_aligner_cli.runs.process_group import refuse_shared_gpus


@given(st.integers(1, 200), st.none() | st.integers(1, 64), st.integers(1, 8))
def test_shares_cover_the_batch_once_in_order(size: int, micro: int | None, ranks: int) -> None:
    if size < ranks:
        with pytest.raises(InputError, match=f"a batch of {size} pairs cannot be split over {ranks} ranks"):
            share_of_batch(size, micro, 0, ranks)
        return
    shares = [share_of_batch(size, micro, rank, ranks) for rank in range(ranks)]
    rows = list(range(size))
    assert [row for share in shares for row in rows[share.rows]] == rows
    parts = [(number, rows[share.rows][part]) for share in shares for number, part in share.parts]
    assert [row for _, part in parts for row in part] == rows
    assert [number for number, _ in parts] == list(range(len(parts)))
    for share in shares:
        assert share.counts == [len(rows[other.rows]) for other in shares]
        assert min(share.counts) >= 1
    alone = share_of_batch(size, micro)
    if len(parts) == len(alone.parts):  # the micro-batches of one process, and so its random draws
        assert parts == [(number, rows[part]) for number, part in alone.parts]
    else:
        assert len(parts) == ranks and len(alone.parts) < ranks


def test_every_rank_refuses_nccl_where_some_would_lack_a_gpu() -> None:
    """All alike and before they join: one that waited for the others would be killed half a minute later."""
    refuse_shared_gpus(2, 2)
    with pytest.raises(InputError, match="nccl wants a GPU for each of this machine's 2 processes, and it has 1"):
        refuse_shared_gpus(2, 1)


def test_one_process_is_a_share_by_itself() -> None:
    alone = Ranks()
    rows = torch.ones(3, 2, requires_grad=True)
    assert alone.all_gather_rows(rows, [3]) is rows
    assert (alone.main, alone.mine([1, 2]), alone.any(True), alone.broadcast(lambda: 5), alone.all_gather(5)) == (
        True, [1, 2], True, 5, [5],
    )  # fmt: skip


_STEPS = 10


def _equal_to_one_process(tmp_path: Path, ranks: int) -> None:
    write_data(tmp_path)
    many = launch(tmp_path, ranks, with_memory=False, steps=_STEPS)
    one: dict[str, Any] = {"losses": {}, "tensors": {}, "store": embedded(tmp_path / "alone", Ranks())}
    for name, case in CASES.items():
        one["losses"][name], tensors = trained(case, Ranks(), _STEPS)
        one["tensors"] |= {f"{name}/{key}": value for key, value in tensors.items()}
        assert one["losses"][name][-1] < one["losses"][name][0]
    for name, apart in differences(one, many).items():
        assert apart["loss"] < 1e-6, (name, apart)
        assert apart["grad"] < 1e-6, (name, apart)
        assert apart["weight"] < 1e-5, (name, apart)
    assert len(many["store"]) > 8
    assert many["store"] == one["store"]


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Losses and gradients within 1e-6, weights within 1e-5 after ten steps, embedding stores bit by bit."""
    _equal_to_one_process(tmp_path, 2)


@pytest.mark.slow
def test_four_ranks_equal_one_process(tmp_path: Path) -> None:
    _equal_to_one_process(tmp_path, 4)


def test_two_ranks_equal_one_process_in_the_data_regimes(
    csalign: Callable[..., Any], features_recipe: Path, tmp_path: Path
) -> None:
    """Uneven shares: unpaired items, all captions and a memory; weights as near as float32 sums in another order."""
    regimes = ["data.unpaired={paired_fraction: 0.5}", "train.unpaired_per_pair={image: 1.5, text: 0.3}"]
    regimes += ["train.captions=all", "train.objective.memory=30", "train.batch_size=15", "train.epochs=3"]
    regimes += ["train.objective.structure={}", "train.objective.teacher={}", "train.objective.memory_momentum=0.9"]
    regimes += ["train.objective.pairwise.unpaired_negatives=true", "train.objective.agreement={}"]
    settings = [part for regime in regimes for part in ("--set", regime)]
    for stage in ("prepare", "embed", "train"):
        assert csalign(stage, features_recipe, *settings, "-q").exit_code == 0
    alone = load_file(tmp_path / "run" / "train" / "aligned" / "last.safetensors")
    shutil.rmtree(tmp_path / "run" / "train")
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "cs_aligner_cli", "train", str(features_recipe), *settings]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ranks = load_file(tmp_path / "run" / "train" / "aligned" / "last.safetensors")
    for name, weight in alone.items():
        torch.testing.assert_close(ranks[name], weight, rtol=1e-4, atol=1e-5)


def _rank(number: int, run_dir: Path) -> int:
    """The process id of one rank of the job that works in a run's folder."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run_dir).encode() in command and f"RANK={number}".encode() in environment:
            return int(process.name)
    raise AssertionError(f"rank {number} is not running")


def _started(recipe: Path, run_dir: Path) -> subprocess.Popen[str]:
    """A training job of two ranks that has saved its first state; without end, unless it is ended."""
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "cs_aligner_cli", "train", str(recipe), *_settings(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 180
    while not (run_dir / "train" / "aligned.partial" / "last.json").is_file():
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.01)
    return job


def _settings(run_dir: Path) -> list[str]:
    return ["--set", f"run_dir={run_dir}", "--set", "train.epochs=30", "--set", "train.checkpoint_steps=3"]


def test_a_rank_that_dies_ends_the_job_with_a_message_and_one_process_goes_on(
    csalign: Callable[..., Any], features_recipe: Path, tmp_path: Path
) -> None:
    for command in ("prepare", "embed"):
        assert csalign(command, features_recipe, "-q", *_settings(tmp_path / "run")).exit_code == 0
    job = _started(features_recipe, tmp_path / "run")
    os.kill(_rank(1, tmp_path / "run"), signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert said.count("csalign:") == 1, said
    assert "csalign: another rank of this job ended" in said or "csalign: interrupted" in said
    assert "the same command" in said
    resumed = csalign("train", features_recipe, *_settings(tmp_path / "run"))
    assert resumed.exit_code == 0
    assert "going on from step" in resumed.stderr

    whole = _settings(tmp_path / "whole")
    for command in ("prepare", "embed", "train"):
        assert csalign(command, features_recipe, "-q", *whole).exit_code == 0
    ours, theirs = (load_file(tmp_path / run / "train/aligned/last.safetensors") for run in ("run", "whole"))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_the_step_and_says_so_once(
    csalign: Callable[..., Any], features_recipe: Path, tmp_path: Path
) -> None:
    for command in ("prepare", "embed"):
        assert csalign(command, features_recipe, "-q", *_settings(tmp_path / "run")).exit_code == 0
    job = _started(features_recipe, tmp_path / "run")
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert said.count("csalign: interrupted; the same command takes the work up again") == 1, said
    assert "going on from step" in csalign("train", features_recipe, *_settings(tmp_path / "run")).stderr


@pytest.mark.slow
def test_wrong_input_is_reported_once_by_all_ranks(features_recipe: Path, tmp_path: Path) -> None:
    """Before the ranks have joined (a recipe's key) and after (no prepared data)."""
    for setting, message in (("train.epoch=3", "unknown key"), ("train.epochs=3", "no prepared data set in")):
        command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "cs_aligner_cli", "train", str(features_recipe)]
        ended = subprocess.run([*command, "--set", setting], capture_output=True, text=True, check=False)
        assert ended.stderr.count("csalign:") == 1, ended.stderr
        assert message in ended.stderr
        assert "exitcode  : 2" in ended.stderr
