"""The decoders that csalign trains itself: the patch codec, resumption, and the closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.scenes import draw, make_scenes
from cs_aligner_cli.generation.closed_form import ClosedForm, to_picture, to_pixels
from cs_aligner_cli.generation.native_decoder import DecoderData, build_pipeline, read_whitened, train_decoder
from cs_aligner_cli.generation.patch_codec import PatchCodec
from cs_aligner_cli.generation.scene_attributes import attribute_accuracy, read_attributes, scene_attributes
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
    with pytest.raises(InputError, match=r"13 channels: a patch of side 2 has only 12 values"):
        PatchCodec.fit(iter([PICTURES]), 2, 13)


def test_latents_have_a_mean_variance_of_1_and_flattened_ones_are_closer_to_each_other():
    ramp = torch.linspace(-1, 1, 64)
    smooth = PICTURES * 0.05 + 0.9 * (PICTURES.mean(dim=(1, 2, 3), keepdim=True) * 20 + ramp).clamp(-1, 1)
    spreads = []
    for flattening in (0.0, 0.5, 1.0):
        codec = PatchCodec.fit(iter([smooth]), 8, 12, flattening)
        latents = codec.encode(smooth)
        variances = latents.var(dim=(0, 2, 3), unbiased=False)
        assert float(variances.mean()) == pytest.approx(1, rel=1e-3)
        spreads.append(float(variances.max() / variances.min()))
        again = codec.decode(latents)["sample"]
        torch.testing.assert_close(codec.encode(again), latents, atol=1e-3, rtol=1e-3)
    assert spreads[0] > 1.9 * spreads[1] > 1.9 and spreads[2] == pytest.approx(1, rel=1e-3)


def test_the_layers_that_read_embeddings_begin_with_all_directions_alike():
    spec = TrainDecoder(widths=[32, 64], side=64)
    unet = build_pipeline(spec, PatchCodec(), 16, 64, 0).unet
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(3)) * torch.logspace(0, -1.2, 16) + 5
    read_whitened(unet, rows)
    for layer in (unet.encoder_hid_proj.image_embeds, unet.add_embedding.image_proj):
        read = layer(rows).detach()
        assert float(read.mean()) == pytest.approx(0, abs=1e-3)
        assert float(read.var()) == pytest.approx(1, rel=0.1)
        loads = torch.linalg.svdvals(read[:500] - read[:500].mean(dim=0))[:16]
        # The least of the variances, a 250th of the first, is hardly less than the others any more.
        assert float(loads[0] / loads[15]) < 4


def test_96_components_keep_what_a_picture_of_scenes_shows_and_24_lose_its_shape():
    scenes = make_scenes({"train": 300, "test": 100}, 0, (1,), ("medium", "large"))
    train, test = (
        torch.stack([to_pixels(draw(scene, 64), 48) for scene in scenes[split]]) for split in ("train", "test")
    )
    truths = [scene_attributes(scene) for scene in scenes["test"]]
    found = {}
    for channels in (24, 96):
        codec = PatchCodec.fit(iter([train]), 16, channels)
        again = codec.decode(codec.encode(test))["sample"]
        found[channels] = attribute_accuracy([read_attributes(to_picture(picture)) for picture in again], truths)
    assert found[24]["shape"] < 0.6, found
    assert min(found[96][name] for name in ("background", "colour", "cell")) > 0.97, found
    assert found[96]["shape"] > 0.9, found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(tmp_path):
    spec = TrainDecoder(steps=6, batch_size=4, widths=[32], checkpoint_steps=2, side=64)
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
