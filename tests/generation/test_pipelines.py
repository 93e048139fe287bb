"""The three unCLIP pipelines, built tiny from their own configs, saved, and loaded offline through csalign."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.deprecated.unclip.pipeline_unclip_image_variation import UnCLIPImageVariationPipeline
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.generation.decoders import Decoder, decoder_source, load_decoder, refuse_other_dimension
from cs_aligner_cli.generation.pipelines import FORMS, DiffusersDecoder, encode_with, image_encoder_of
from cs_aligner_cli.recipe.generate import Generate

DIM = 32
WORDS = [
    "<|startoftext|>",
    "<|endoftext|>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
]


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def text_config() -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=DIM,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def image_encoder() -> transformers.CLIPVisionModelWithProjection:
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            projection_dim=DIM,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=32,
            intermediate_size=37,
            patch_size=16,
        )
    )


def image_processor() -> transformers.CLIPImageProcessor:
    return transformers.CLIPImageProcessor(crop_size=32, size=32)


def kandinsky22(scratch: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=DIM,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=DIM,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="epsilon")
    return diffusers.KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)


def stable_unclip(scratch: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * DIM,
        cross_attention_dim=32,
        layers_per_block=1,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
    )
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=image_encoder(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=DIM),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer(scratch / "tokenizer"),
        text_encoder=transformers.CLIPTextModel(text_config()),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        vae=vae,
    )


def super_resolution() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(32, 64),
        in_channels=6,
        out_channels=3,
    )


def karlo(scratch: Path) -> Any:
    decoder = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    schedule = {"prediction_type": "epsilon", "num_train_timesteps": 1000}
    return UnCLIPImageVariationPipeline(
        decoder=decoder,
        text_encoder=transformers.CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(scratch / "tokenizer"),
        text_proj=UnCLIPTextProjModel(clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=64),
        feature_extractor=image_processor(),
        image_encoder=image_encoder(),
        super_res_first=super_resolution(),
        super_res_last=super_resolution(),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range", **schedule),
        super_res_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", **schedule),
    )


BUILT: dict[str, Callable[[Path], Any]] = {"kandinsky22": kandinsky22, "stable_unclip": stable_unclip, "karlo": karlo}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """The pipelines before they were saved, filled by ``folders``."""
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Any]) -> dict[str, Path]:
    """The tiny pipelines as save_pretrained writes them."""
    found = {}
    for kind, build in BUILT.items():
        scratch = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built[kind] = build(scratch)
            built[kind].save_pretrained(scratch / "model")
        found[kind] = scratch / "model"
    # As the hub's Karlo: an index that names a module which diffusers no longer has.
    index = json.loads((found["karlo"] / "model_index.json").read_text())
    index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
    (found["karlo"] / "model_index.json").write_text(json.dumps(index))
    return found


def spec_of(kind: str, folder: Path, **changes: Any) -> Generate:
    given = {"decoder": {"kind": kind, "model": f"local-dir:{folder}"}, "steps": 2, **changes}
    return Generate.model_validate(given)


def loaded(kind: str, folder: Path, negative: torch.Tensor | None = None, **changes: Any) -> Decoder:
    spec = spec_of(kind, folder, **changes)
    return load_decoder(spec, decoder_source(spec, Path("decoder"), Path("runs")), negative, "cpu")


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
    together = drawn(decoder, conditions, [1, 2, 3, 4])
    assert together.shape[0] == 4
    singles = np.concatenate([drawn(decoder, conditions[i : i + 1], [i + 1]) for i in range(4)])
    assert abs(together - singles).max() <= 1  # one step of 255, where rounding tips
    assert (drawn(decoder, conditions, [1, 2, 3, 4]) == together).all()
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
        decoder_source(spec_of("karlo", tmp_path / "gone"), Path("decoder"), Path("runs"))
    spec = Generate.model_validate({"decoder": {"kind": "kandinsky22", "model": "run:gone"}})
    with pytest.raises(InputError, match=r"run:gone: .*gone/decoder holds no trained decoder"):
        decoder_source(spec, tmp_path / "decoder", tmp_path)
    with pytest.raises(InputError, match=r"generate.offload: model needs a CUDA device"):
        loaded("kandinsky22", folders["kandinsky22"], offload="model")
