"""The three unCLIP pipelines of diffusers, fed with image embeddings and without a prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.deprecated.unclip.pipeline_unclip_image_variation import UnCLIPImageVariationPipeline
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats32
from cs_aligner_cli.encoders.hub import how_to_fetch
from cs_aligner_cli.recipe.generate import Generate

_KARLO = {
    "decoder": diffusers.UNet2DConditionModel,
    "text_encoder": transformers.CLIPTextModelWithProjection,
    "tokenizer": transformers.CLIPTokenizer,
    "text_proj": UnCLIPTextProjModel,
    "feature_extractor": transformers.CLIPImageProcessor,
    "image_encoder": transformers.CLIPVisionModelWithProjection,
    "super_res_first": diffusers.UNet2DModel,
    "super_res_last": diffusers.UNet2DModel,
    "decoder_scheduler": diffusers.UnCLIPScheduler,
    "super_res_scheduler": diffusers.UnCLIPScheduler,
}
# What diffusers raises, itself or through torch and safetensors, on folders that it cannot make sense of.
_NOT_LOADED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
_OWN_CODEC = "cs_aligner_cli.generation.patch_codec"


class DiffusersDecoder:
    """One pipeline: ``call(conditions, prompts, generators)`` gives pixels (B, height, width, 3) in [0, 1]."""

    def __init__(self, pipeline: Any, dim: int, call: Callable[..., Floats32], device: str) -> None:
        self.pipeline, self.dim, self._call, self._device = pipeline, dim, call, device

    def draw(self, conditions: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each of conditions (B, dim), drawn with its own seed, whatever the batch.

        Raises InputError where a picture is not finite, which would be black.
        """
        pixels = self.pixels(conditions, prompts, seeds)
        bad = int((~np.isfinite(pixels)).any(axis=(1, 2, 3)).sum())
        if bad:
            raise InputError(
                f"generate.decoder: {bad} of {len(pixels)} pictures drawn at once are not finite (NaN or infinity), "
                f"with weights of {str(self.pipeline.dtype).removeprefix('torch.')}",
                "Where half precision overflows, --set generate.dtype=float32 draws them; in float32 look at the "
                "decoder's files and at the store's embeddings.",
            )
        return [Image.fromarray(picture) for picture in (pixels * 255).round().astype(np.uint8)]

    def pixels(self, conditions: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Floats32:
        """The pictures (B, height, width, 3) in [0, 1] before they are rounded."""
        # Generators of the CPU, so that a seed means the same noise on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = conditions.to(self._device, self.pipeline.dtype)
        with Float32Noise():
            return self._call(rows, list(prompts), generators)


class Float32Noise(TorchFunctionMode):
    """Inside, ``torch.randn`` draws half precision as float32 and rounds it, so that a seed is one picture in all.

    Pipelines and their schedulers draw in the precision of the weights (diffusers issue 11056). In torch 2.11, but not
    in 2.14, generators of the CPU give another stream there, and one without tails (torch issue 166853).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if func is torch.randn and dtype in (torch.float16, torch.bfloat16):
            return func(*args, **{**kwargs, "dtype": torch.float32}).to(dtype)
        return func(*args, **kwargs)


def load_pipeline(spec: Generate, source: str, negative: Tensor | None, device: str) -> DiffusersDecoder:
    """The pipeline of a folder or of the hub, on ``device``.

    Raises InputError where diffusers cannot load it, or it is a pipeline of another kind, or it would not draw.
    """
    kind = spec.decoder.kind
    dtype = getattr(torch, spec.dtype) if spec.dtype != "auto" else torch.float16 if "cuda" in device else torch.float32
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside diffusers that its users cannot mend
            pipeline = _LOADERS[kind](source, dtype)
    except _NOT_LOADED as error:
        raise InputError(
            f"generate.decoder.model: diffusers cannot load {source} as {kind}: {str(error) or type(error).__name__}",
            how_to_fetch(spec.decoder.model or source),
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    _place(pipeline, spec, device)
    dim, call = FORMS[kind](pipeline, spec, negative)
    return DiffusersDecoder(pipeline, dim, call, device)


def image_encoder_of(decoder: object) -> tuple[Any, Any] | None:
    """The image encoder and its preprocessor that a pipeline carries, None where it has none (Kandinsky's decoder)."""
    pipeline = getattr(decoder, "pipeline", None)
    model, prepare = getattr(pipeline, "image_encoder", None), getattr(pipeline, "feature_extractor", None)
    return None if model is None or prepare is None else (model, prepare)


def encode_with(model: Any, prepare: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """(B, dim) what a pipeline's own image encoder makes of pictures."""
    pixels = prepare(images=list(pictures), return_tensors="pt").pixel_values
    with torch.inference_mode():
        embeddings: Tensor = model(pixels.to(model.device, model.dtype)).image_embeds
    return embeddings.float().cpu()


def _place(pipeline: Any, spec: Generate, device: str) -> None:
    if spec.offload != "none" and "cuda" not in device:
        raise InputError(f"generate.offload: {spec.offload} needs a CUDA device, and this is {device}")
    if spec.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif spec.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if spec.attention_slicing:
        pipeline.enable_attention_slicing()


def _load_kandinsky(source: str, dtype: torch.dtype) -> Any:
    given = {}
    config = diffusers.KandinskyV22Pipeline.load_config(source)
    if config.get("movq", [None])[0] == _OWN_CODEC:
        from cs_aligner_cli.generation.patch_codec import PatchCodec

        given["movq"] = PatchCodec.from_pretrained(source, subfolder="movq", torch_dtype=dtype)
    return diffusers.KandinskyV22Pipeline.from_pretrained(source, torch_dtype=dtype, **given)


def _load_stable_unclip(source: str, dtype: torch.dtype) -> Any:
    return diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(source, torch_dtype=dtype)


def _load_karlo(source: str, dtype: torch.dtype) -> Any:
    # The index of the published folder names classes by modules that diffusers no longer has; its parts load.
    parts = {}
    for name, kind in _KARLO.items():
        model = {"torch_dtype": dtype} if issubclass(kind, torch.nn.Module) else {}
        parts[name] = kind.from_pretrained(source, subfolder=name, **model)
    return UnCLIPImageVariationPipeline(**parts)


_LOADERS: dict[str, Callable[[str, torch.dtype], Any]] = {
    "kandinsky22": _load_kandinsky,
    "stable_unclip": _load_stable_unclip,
    "karlo": _load_karlo,
}


def _kandinsky(pipeline: Any, spec: Generate, negative: Tensor | None) -> tuple[int, Callable[..., Any]]:
    if "generator" not in signature(pipeline.scheduler.step).parameters:
        raise InputError(
            f"generate.decoder.model: its scheduler is {type(pipeline.scheduler).__name__}, which takes no generator, "
            "and Kandinsky's pipeline hands it one",
            "Name another in scheduler/scheduler_config.json and model_index.json: DDPMScheduler, as the published "
            "decoder, or DDIMScheduler.",
        )
    dim = int(pipeline.unet.config.encoder_hid_dim)
    # Our own codec makes many pixels of what the pipeline takes for one.
    pixels = pipeline.movq.config.get("patch", pipeline.movq_scale_factor) // pipeline.movq_scale_factor
    if spec.height and spec.height % pixels:
        raise InputError(
            f"generate.height: {spec.height} is no multiple of {pixels}, the pixels that this decoder makes at once",
            f"Give {max(pixels, round(spec.height / pixels) * pixels)}.",
        )
    side = spec.height // pixels if spec.height else pipeline.unet.config.sample_size * pipeline.movq_scale_factor
    options = {"height": side, "width": side, **_stated(num_inference_steps=spec.steps, guidance_scale=spec.guidance)}

    def call(rows: Tensor, prompts: list[str], generators: list[torch.Generator]) -> Floats32:
        negatives = torch.zeros_like(rows) if negative is None else negative.to(rows).expand_as(rows)
        pixels: Floats32 = pipeline(rows, negatives, generator=generators, output_type="np", **options).images
        return pixels

    return dim, call


def _stable_unclip(pipeline: Any, spec: Generate, negative: Tensor | None) -> tuple[int, Callable[..., Any]]:
    # The UNet's class embedding is the image embedding with that of the noise level beside it.
    dim = int(pipeline.unet.config.projection_class_embeddings_input_dim) // 2
    sides = {"height": spec.height, "width": spec.height} if spec.height else {}
    options = {**sides, **_stated(num_inference_steps=spec.steps, guidance_scale=spec.guidance)}

    def call(rows: Tensor, prompts: list[str], generators: list[torch.Generator]) -> Floats32:
        read = prompts if spec.decoder_prompt == "caption" else [""] * len(rows)
        found = pipeline(
            prompt=read,
            image_embeds=rows,
            noise_level=spec.noise_level,
            generator=generators,
            output_type="np",
            **options,
        )
        pixels: Floats32 = found.images
        return pixels

    return dim, call


def _karlo(pipeline: Any, spec: Generate, negative: Tensor | None) -> tuple[int, Callable[..., Any]]:
    dim = int(pipeline.text_proj.config.clip_embeddings_dim)
    options = _stated(decoder_num_inference_steps=spec.steps, decoder_guidance_scale=spec.guidance)

    def call(rows: Tensor, prompts: list[str], generators: list[torch.Generator]) -> Floats32:
        pixels: Floats32 = pipeline(image_embeddings=rows, generator=generators, output_type="np", **options).images
        return pixels

    return dim, call


def _stated(**options: Any) -> dict[str, Any]:
    """The options that the recipe states; the pipeline's own hold for the others."""
    return {name: value for name, value in options.items() if value is not None}


FORMS: dict[str, Callable[[Any, Generate, Tensor | None], tuple[int, Callable[..., Any]]]] = {
    "kandinsky22": _kandinsky,
    "stable_unclip": _stable_unclip,
    "karlo": _karlo,
}
