"""Decoders on a CUDA device: half precision, offloading, and the decoder that csalign trains itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import BUILT, DIM, saved_pipeline

from cs_aligner_cli.generation.native_decoder import DecoderData, train_decoder
from cs_aligner_cli.generation.pipelines import DiffusersDecoder, load_pipeline
from cs_aligner_cli.recipe.generate import Generate, TrainDecoder

pytestmark = pytest.mark.gpu

CONDITIONS = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))


def decoder(kind: str, folder: Path, **changes: str) -> DiffusersDecoder:
    model = {"kind": kind, "model": f"local-dir:{folder}"}
    return load_pipeline(Generate.model_validate({"decoder": model, "steps": 2, **changes}), str(folder), None, "cuda")


def pictures(found: DiffusersDecoder) -> np.ndarray:
    return np.stack([np.asarray(p) for p in found.draw(CONDITIONS, ["a", "b"], [1, 2])]).astype(int)


@pytest.mark.parametrize("kind", BUILT)
def test_offloading_changes_no_picture_and_half_precision_little(kind: str, tmp_path: Path) -> None:
    _, folder = saved_pipeline(kind, tmp_path)
    whole = pictures(decoder(kind, folder, dtype="float32"))
    for offload in ("model", "sequential"):
        assert abs(pictures(decoder(kind, folder, dtype="float32", offload=offload)) - whole).max() <= 1
    half = decoder(kind, folder)  # auto
    assert half.pipeline.dtype == torch.float16
    assert abs(pictures(half) - whole).mean() < 10
    assert abs(pictures(decoder(kind, folder, dtype="bfloat16")) - whole).mean() < 20


def test_a_trained_decoder_draws_from_the_host_memory_too(tmp_path: Path) -> None:
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = DecoderData(CONDITIONS.repeat(4, 1), torch.zeros(DIM), lambda rows: images[rows], 64)
    spec = TrainDecoder(steps=3, batch_size=4, widths=[32, 64], side=64)
    train_decoder(spec, data, tmp_path, 0, "cuda", lambda loss: None)
    whole, offloaded = (
        pictures(decoder("kandinsky22", tmp_path, dtype="float32", offload=offload))
        for offload in ("none", "sequential")
    )
    assert abs(whole - offloaded).max() <= 1
