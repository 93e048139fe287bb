"""The decoders that csalign trains itself: the patch codec, resumption, and the closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.closed_form import ClosedForm
from cs_aligner_cli.generation.native_decoder import DecoderData, train_decoder
from cs_aligner_cli.generation.patch_codec import PatchCodec
from cs_aligner_cli.recipe.generate import TrainDecoder

PICTURES = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
EMBEDDINGS = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))


def test_a_codec_with_all_components_is_exact_and_with_few_the_best_linear_one():
    whole = PatchCodec.fit(iter([PICTURES]), 2, 12)
    torch.testing.assert_close(whole.decode(whole.encode(PICTURES))["sample"], PICTURES, atol=1e-4, rtol=0)
    flat = PICTURES.mean(dim=(2, 3), keepdim=True).expand_as(PICTURES).contiguous()
    few = PatchCodec.fit(iter([flat[:12], flat[12:]]), 8, 3)  # plain pictures have three values
    torch.testing.assert_close(few.decode(few.encode(flat))["sample"], flat, atol=1e-4, rtol=0)
    assert float(few.encode(flat).square().mean()) < 1.5
    with pytest.raises(InputError, match=r"patch 2, 13 channels: expected a power of two, and 1 to 12 channels"):
        PatchCodec.fit(iter([PICTURES]), 2, 13)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(tmp_path):
    spec = TrainDecoder(steps=6, batch_size=4, widths=[32, 64], checkpoint_steps=2)
    data = DecoderData(EMBEDDINGS, torch.zeros(16), lambda rows: PICTURES[rows], 64)
    steps = iter(range(100))

    def dies(loss: float) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    reached = train_decoder(spec, data, tmp_path / "whole", 0, "cpu", lambda loss: None)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(spec, data, tmp_path / "cut", 0, "cpu", dies)
    assert train_decoder(spec, data, tmp_path / "cut", 0, "cpu", lambda loss: None) == reached
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_the_closed_form_learns_pictures_that_depend_smoothly_on_the_embedding(tmp_path):
    embeddings = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    pictures = torch.tanh(embeddings)[:, :, None, None].expand(-1, -1, 4, 4)
    fitted = ClosedForm.fit(embeddings[:300], lambda rows: pictures[rows], 0, lambda done: None)
    fitted.save(tmp_path)
    left = (ClosedForm.load(tmp_path).pixels(embeddings[300:]) - pictures[300:]).square().mean()
    assert left < 0.05 * pictures.var()
