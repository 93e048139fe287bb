"""Objectives that several ranks share, each with its own rows: those of one process, in a part of its memory."""

from __future__ import annotations

import multiprocessing
import socket
from importlib.util import find_spec
from typing import Any

import pytest
import shared_sums
import torch


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What jobs of two and three ranks computed, and the peak of one process; started from one that has torch."""
    folder = tmp_path_factory.mktemp("jobs")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shared_sums"])
    started = [context.Process(target=shared_sums.alone, args=(folder / "1",))]
    for ranks in (2, 3):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            parts = (rank, ranks, port, folder / str(ranks))
            started.append(context.Process(target=shared_sums.rank_of_a_job, args=parts))
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    return {ranks: torch.load(folder / str(ranks), weights_only=True) for ranks in (1, 2, 3)}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", shared_sums.CASES)
def test_values_and_gradients_are_those_of_one_process(jobs: dict[int, Any], case: str, ranks: int) -> None:
    found, expected = jobs[ranks][case], shared_sums.evaluated(case)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda said, name=name: name + said)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is for CUDA, on Linux")
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["cs", "mmd"])
def test_the_kernels_of_a_gpu_see_the_rows_of_other_ranks(jobs: dict[int, Any], kind: str, ranks: int) -> None:
    found, expected = jobs[ranks][f"fused {kind}"], shared_sums.fused(kind)
    for name, value in expected.items():
        assert float((found[name].double() - value).norm()) <= 3e-6 * float(value.norm()) + 1e-7, name


def test_memory_falls_with_the_number_of_ranks(jobs: dict[int, Any]) -> None:
    """To a rank's own rows and gradients come the block worked on, the next, and the gradients on their way back."""
    for ranks in (2, 3):
        assert ranks * float(jobs[ranks]["megabytes"].max()) < 2.3 * jobs[1]
