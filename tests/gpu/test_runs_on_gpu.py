"""Whole runs on a CUDA device: the bitwise end of a run that was cut, precisions, ranks, an index of FAISS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trained_runs import QUIET, assert_resumes_bitwise, recipe_of, stored

from cs_aligner_cli.stages.pipeline import run_stage

pytestmark = pytest.mark.gpu
_TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")


@pytest.mark.parametrize("products", ["fp32", "bf16"])
def test_a_run_that_was_cut_ends_bit_for_bit_as_one_that_was_not(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: str
) -> None:
    settings = (
        "embed.device=cuda",
        "train.device=cuda",
        f"train.objective.divergence.products={products}",
        "train.epochs=2",
    )
    assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *settings)


def test_embeddings_of_every_precision_agree_with_the_processor(photos_recipe: Path, tmp_path: Path) -> None:
    """bf16 keeps 8 bits and fp16 11: angles differ by a few of their roundings after two layers."""
    found = {}
    for name, device in {"cpu": "cpu", "fp32": "cuda", "fp16": "cuda", "bf16": "cuda", "auto": "cuda"}.items():
        precision = "fp32" if name == "cpu" else name
        settings = (f"embed.device={device}", f"embed.precision={precision}")
        recipe = recipe_of(photos_recipe, tmp_path / name, *settings)
        for stage in ("prepare", "embed"):
            run_stage(stage, recipe, QUIET)
        found[name] = {modality: stored(recipe, modality, "frozen") for modality in ("image", "text")}
    for name, least in {"fp32": 1 - 1e-6, "fp16": 1 - 1e-5, "bf16": 1 - 1e-3}.items():
        for modality in ("image", "text"):
            one, other = found[name][modality], found["cpu"][modality]
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            assert ((one * other).sum(1) / norms).min() > least, (name, modality)
    np.testing.assert_array_equal(found["auto"]["image"], found["bf16"]["image"])


def _two_ranks(recipe: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    options = [option for setting in settings for option in ("--set", setting)]
    command = [sys.executable, *_TORCHRUN, "--rdzv-endpoint", "localhost:0", "-m", "cs_aligner_cli", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(recipe), *options], capture_output=True, text=True, env=environment)


def test_two_ranks_on_one_device(features_recipe: Path, tmp_path: Path) -> None:
    """Through gloo they train; nccl wants a device for each, and the message says so."""
    settings = (
        f"run_dir={tmp_path / 'run'}",
        "train.val_split=dev",
        "train.epochs=1",
        "embed.device=cuda",
        "train.device=cuda",
    )
    recipe = recipe_of(features_recipe, tmp_path / "run", "train.epochs=1", "embed.device=cuda", "train.device=cuda")
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, QUIET)
    refused = _two_ranks(features_recipe, *settings, "distributed.backend=nccl")
    assert refused.returncode != 0
    assert "has no GPU of its own: this machine has 1" in refused.stderr
    trained = _two_ranks(features_recipe, *settings, "distributed.backend=gloo")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (tmp_path / "run").is_dir()


def test_an_index_trained_on_the_device_finds_what_an_exact_one_finds() -> None:
    faiss = pytest.importorskip("faiss")
    if not faiss.get_num_gpus():
        pytest.skip("this build of faiss has no GPU")
    rows = np.random.default_rng(0).standard_normal((4096, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = faiss.index_factory(32, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(32))
    index.train(rows)
    index.add(rows)
    faiss.extract_index_ivf(index).nprobe = 16  # every list, so that nothing can be missed
    found = index.search(rows[:64], 5)[1]
    np.testing.assert_array_equal(found, np.argsort(-rows[:64] @ rows.T, axis=1)[:, :5])
