"""The three unCLIP pipelines, built tiny from their own configs, saved, and loaded offline through csalign."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import BUILT, DIM, saved_pipeline
from torch.overrides import TorchFunctionMode

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.decoders import Decoder, decoder_source, load_decoder, refuse_other_dimension
from cs_aligner_cli.generation.native_decoder import build_pipeline
from cs_aligner_cli.generation.patch_codec import PatchCodec
from cs_aligner_cli.generation.pipelines import FORMS, DiffusersDecoder, encode_with, image_encoder_of
from cs_aligner_cli.recipe.generate import Generate, TrainDecoder


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """The pipelines before they were saved, filled by ``folders``."""
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Any]) -> dict[str, Path]:
    """The tiny pipelines as save_pretrained writes them."""
    found = {}
    for kind in BUILT:
        built[kind], found[kind] = saved_pipeline(kind, tmp_path_factory.mktemp(kind))
    # As the hub's Karlo: an index that names a module which diffusers no longer has.
    index = json.loads((found["karlo"] / "model_index.json").read_text())
    index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
    (found["karlo"] / "model_index.json").write_text(json.dumps(index))
    return found


def spec_of(kind: str, folder: Path, **changes: Any) -> Generate:
    given = {"decoder": {"kind": kind, "model": f"local-dir:{folder}"}, "steps": 2, **changes}
    return Generate.model_validate(given)


def loaded(kind: str, folder: Path, negative: torch.Tensor | None = None, **changes: Any) -> Any:
    spec = spec_of(kind, folder, **changes)
    return load_decoder(spec, decoder_source(spec, Path("decoder")), negative, "cpu")


def drawn(decoder: Decoder, conditions: torch.Tensor, seeds: list[int]) -> np.ndarray:
    pictures = decoder.draw(conditions, ["a cat"] * len(seeds), seeds)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


@pytest.fixture
def conditions() -> torch.Tensor:
    return torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", BUILT)
def test_a_batch_draws_what_singles_draw_and_the_embedding_counts(kind, folders, conditions):
    decoder = loaded(kind, folders[kind])
    assert decoder.dim == DIM
    with torch.inference_mode():
        pixels = decoder.pixels(conditions, ["a cat"] * 4, [1, 2, 3, 4])
        singles = [decoder.pixels(conditions[i : i + 1], ["a cat"], [i + 1]) for i in range(4)]
    assert pixels.shape[0] == 4 and pixels.min() >= 0 and pixels.max() <= 1
    np.testing.assert_allclose(pixels, np.concatenate(singles), rtol=0, atol=1e-4)
    together = drawn(decoder, conditions, [1, 2, 3, 4])
    assert (together == (pixels * 255).round()).all()
    swapped = drawn(decoder, conditions.flip(0), [1, 2, 3, 4])
    assert all(abs(a - b).max() > 1 for a, b in zip(swapped, together, strict=True))
    other_seeds = drawn(decoder, conditions, [5, 6, 7, 8])
    assert all(abs(a - b).max() > 1 for a, b in zip(other_seeds, together, strict=True))


@pytest.mark.parametrize("kind", BUILT)
def test_a_saved_and_loaded_pipeline_draws_what_it_drew(kind, folders, built, conditions):
    dim, call = FORMS[kind](built[kind], spec_of(kind, folders[kind]), None)
    before = drawn(DiffusersDecoder(built[kind], dim, call, "cpu"), conditions[:1], [3])
    assert (drawn(loaded(kind, folders[kind]), conditions[:1], [3]) == before).all()


def test_the_negative_embedding_steers_kandinsky(folders, conditions):
    with_zeros, with_other = (
        drawn(loaded("kandinsky22", folders["kandinsky22"], negative), conditions[:1], [1])
        for negative in (None, torch.ones(DIM))
    )
    assert abs(with_zeros - with_other).max() > 1
    unguided = [
        drawn(loaded("kandinsky22", folders["kandinsky22"], negative, guidance=1), conditions[:1], [1])
        for negative in (None, torch.ones(DIM))
    ]
    assert (unguided[0] == unguided[1]).all()


def test_stable_unclip_reads_captions_where_asked(folders, conditions):
    empty, caption = (
        drawn(loaded("stable_unclip", folders["stable_unclip"], decoder_prompt=kind), conditions[:2], [1, 2])
        for kind in ("empty", "caption")
    )
    assert abs(empty - caption).max() > 1


def test_height_is_that_of_the_pictures(folders, conditions):
    assert drawn(loaded("kandinsky22", folders["kandinsky22"], height=32), conditions[:1], [1]).shape[1:3] == (32, 32)


def test_a_height_of_no_whole_latents_is_refused(tmp_path):
    build_pipeline(TrainDecoder(widths=[32], side=48), PatchCodec(patch=16), DIM, 48, 0).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"generate\.height: 40 is no multiple of 16.*\nGive 32\."):
        loaded("kandinsky22", tmp_path, height=40)


@pytest.mark.parametrize("kind", BUILT)
def test_a_picture_that_is_not_finite_is_refused_and_not_drawn_black(kind, folders, conditions):
    decoder = loaded(kind, folders[kind])
    conditions[1] = torch.nan
    with pytest.raises(InputError, match=r"1 of 2 pictures .* not finite .* weights of float32\n.*generate\.dtype"):
        drawn(decoder, conditions[:2], [1, 2])


def test_a_scheduler_that_kandinsky_cannot_run_is_refused_when_it_is_loaded(folders, tmp_path):
    folder = shutil.copytree(folders["kandinsky22"], tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("EulerDiscreteScheduler", "PNDMScheduler"):
        index["scheduler"] = ["diffusers", name]
        (folder / "model_index.json").write_text(json.dumps(index))
        if name != "PNDMScheduler":
            loaded("kandinsky22", folder)
    with pytest.raises(InputError, match=r"scheduler is PNDMScheduler, which takes no generator.*\n.*DDPMScheduler"):
        loaded("kandinsky22", folder)


def test_slices_of_attention_draw_nearly_the_same(folders, conditions):
    whole = drawn(loaded("kandinsky22", folders["kandinsky22"]), conditions[:1], [1])
    sliced = loaded("kandinsky22", folders["kandinsky22"], attention_slicing=True)
    names = {type(processor).__name__ for processor in sliced.pipeline.unet.attn_processors.values()}
    assert names == {"SlicedAttnAddedKVProcessor"}
    assert abs(drawn(sliced, conditions[:1], [1]) - whole).max() <= 1


class DrawnTypes(TorchFunctionMode):
    """The types in which torch.randn draws at last; and bicubic interpolation of halves, which the CPU lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.dtype | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.randn:
            self.found.append(kwargs.get("dtype"))
        if func is torch.nn.functional.interpolate:
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)


# Latents; latents and noise of the embedding; latents and the noise of a step, of the decoder and of super-resolution.
@pytest.mark.parametrize(("kind", "draws"), [("kandinsky22", 1), ("stable_unclip", 2), ("karlo", 4)])
def test_a_seed_is_one_picture_in_every_precision(kind, draws, folders, conditions):
    whole = drawn(loaded(kind, folders[kind]), conditions[:1], [1])
    half = loaded(kind, folders[kind], dtype="bfloat16")
    with DrawnTypes() as types:
        difference = abs(drawn(half, conditions[:1], [1]) - whole)
    assert set(types.found) == {torch.float32} and len(types.found) >= draws
    assert half.pipeline.dtype == torch.bfloat16
    assert 0 < difference.mean() < 20


@pytest.mark.parametrize("kind", ["stable_unclip", "karlo"])
def test_a_pipelines_own_image_encoder_can_be_asked(kind, folders):
    from PIL import Image

    model, prepare = image_encoder_of(loaded(kind, folders[kind]))
    assert encode_with(model, prepare, [Image.new("RGB", (40, 40))] * 3).shape == (3, DIM)
    assert image_encoder_of(loaded("kandinsky22", folders["kandinsky22"])) is None


def test_another_dimension_another_kind_and_no_folder_are_refused(folders, tmp_path):
    decoder = loaded("karlo", folders["karlo"])
    spec = spec_of("karlo", folders["karlo"])
    with pytest.raises(InputError, match=r"takes image embeddings of 32 dimensions, but the store's have 512"):
        refuse_other_dimension(decoder, spec, 512)
    with pytest.raises(InputError, match=r"diffusers cannot load .* as karlo"):
        loaded("karlo", folders["kandinsky22"])
    with pytest.raises(InputError, match=r"generate.decoder.model: .* is no folder"):
        decoder_source(spec_of("karlo", tmp_path / "gone"), Path("decoder"))
    spec = Generate.model_validate({"decoder": {"kind": "kandinsky22", "model": "run:gone"}})
    with pytest.raises(InputError, match=r"run:gone: .*runs/gone/decoder holds no trained decoder"):
        decoder_source(spec, tmp_path / "decoder")
    with pytest.raises(InputError, match=r"generate.offload: model needs a CUDA device"):
        loaded("kandinsky22", folders["kandinsky22"], offload="model")
