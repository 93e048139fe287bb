"""Whole runs on a CUDA device: the bitwise end of a run that was cut, precisions, ranks, an index of FAISS."""

from __future__ import annotations

import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import TORCHRUN
from samples import smooth_picture
from trained_runs import QUIET, assert_resumes_bitwise, recipe_of, stored

from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.training.scheduled_objective import ObjectiveState
from cs_aligner_cli.training.step import Batch, Stepper

pytestmark = pytest.mark.gpu
_PATIENCE = 60  # seconds for two ranks, of which a few are work


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


def test_photos_that_processes_decode_are_embedded_as_those_of_threads(photos_recipe: Path, tmp_path: Path) -> None:
    """Crops that the device normalises are the library's pixels, bit for bit."""
    found = {}
    for decoders in (0, 2):
        settings = ("embed.device=cuda", f"embed.decoders={decoders}", "embed.batch_size=3")
        recipe = recipe_of(photos_recipe, tmp_path / str(decoders), *settings)
        for stage in ("prepare", "embed"):
            run_stage(stage, recipe, QUIET)
        found[decoders] = stored(recipe, "image", "frozen")
    np.testing.assert_array_equal(found[2], found[0])


def test_jpegs_that_the_device_decodes_give_nearly_the_same_embeddings(
    photos_recipe: Path, photos_root: Path, tmp_path: Path
) -> None:
    """Other decoders and filters round otherwise; what is no plain JPEG still goes through PIL, bit for bit."""
    smooth_picture(300, 200).save(photos_root / "images" / "08.jpg", quality=95)
    found = {}
    for how in ("exact", "device"):
        settings = ("embed.device=cuda", "embed.precision=fp32", f"embed.jpeg={how}", "train=null")
        recipe = load_recipe(str(photos_recipe), [f"run_dir={tmp_path / how}", *settings])
        for stage in ("prepare", "embed"):
            run_stage(stage, recipe, QUIET)
        found[how] = stored(recipe, "image", "frozen")
    one, other = found["exact"], found["device"]
    assert not np.array_equal(one[0], other[0])
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(1) / norms)[0] > 0.999
    np.testing.assert_array_equal(one[1], other[1])


def test_a_step_waits_for_the_device_once(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third on, which is when a step's kernels are compiled and recorded; steps that are logged may read."""
    settings = ("embed.device=cuda", "train.device=cuda", "train.epochs=4", "train.log_steps=1000")
    recipe = recipe_of(features_recipe, tmp_path / "run", *settings)
    waits: list[list[str]] = []
    plain = Stepper.step

    def counted(self: Stepper, step: int, batch: Batch, state: ObjectiveState) -> Any:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return plain(self, step, batch, state)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                if not self.logs(step + 1):
                    waits.append([str(one.message) for one in said if "synchronizing" in str(one.message)])

    monkeypatch.setattr(Stepper, "step", counted)
    for stage in ("prepare", "embed", "train"):
        run_stage(stage, recipe, QUIET)
    assert len(waits) > 3
    assert [len(said) for said in waits[3:]] == [1] * len(waits[3:]), waits


def _two_ranks(recipe: Path, log: Path, *settings: str) -> tuple[int, str]:
    """The exit code of training on two ranks, and what they said; a job that takes too long is ended."""
    options = [option for setting in settings for option in ("--set", setting)]
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "cs_aligner_cli", "train", str(recipe), *options]
    # A machine without a network has no other interface.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("w") as said:  # no pipe, which a rank that outlives torchrun would keep open
        job = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            job.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            job.terminate()  # torchrun ends its ranks, by force after half a minute
            job.wait(timeout=60)
    return job.returncode, log.read_text()[-6000:]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="each rank has a GPU of its own")
def test_two_ranks_on_one_device(features_recipe: Path, tmp_path: Path) -> None:
    """Through gloo they train; nccl wants a device for each, and the message says so."""
    settings = (
        f"run_dir={tmp_path / 'run'}",
        "train.val_split=dev",
        "train.epochs=1",
        "embed.device=cuda",
        "train.device=cuda",
        "distributed.timeout_minutes=0.5",
    )
    recipe = recipe_of(features_recipe, tmp_path / "run", "train.epochs=1", "embed.device=cuda", "train.device=cuda")
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, QUIET)
    code, said = _two_ranks(features_recipe, tmp_path / "nccl.txt", *settings, "distributed.backend=nccl")
    assert code != 0
    assert "nccl wants a GPU for each of this machine's 2 processes, and it has 1" in said, said
    code, said = _two_ranks(features_recipe, tmp_path / "gloo.txt", *settings, "distributed.backend=gloo")
    assert code == 0, said
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
