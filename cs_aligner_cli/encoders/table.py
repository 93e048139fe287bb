"""The encoder kinds behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.torchrun_env import local_rank, world_size
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders.availability import weight_files
from cs_aligner_cli.encoders.encoder import Encoder
from cs_aligner_cli.encoders.features import load_features
from cs_aligner_cli.encoders.layers import with_layers
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.recipe.encoders import (
    EncoderSpec,
    FeaturesEncoder,
    OpenClipEncoder,
    SentenceTransformersEncoder,
    TimmEncoder,
)
from cs_aligner_cli.recipe.recipe import Recipe


@torch.inference_mode(False)  # weights made in that mode have no gradients, neither for training nor for layers
def load_encoders(
    recipe: Recipe, data: PreparedData | None, device: torch.device, modalities: Sequence[str]
) -> dict[str, Encoder]:
    """The towers asked for, in eval mode on ``device``; towers of the same open_clip model share one copy of it.

    Without ``data`` (only towers that read items, not stored features) a tower can be tried, but finds no picture.
    """
    for file in weight_files(recipe):
        verify_file(file)  # those of another run's model
    models: dict[str, Any] = {}
    encoders = {}
    for modality in modalities:
        spec = recipe.encoders.of(modality)
        if isinstance(spec, OpenClipEncoder):
            from cs_aligner_cli.encoders.open_clip import OpenClip  # takes seconds to import

            key = spec.model_dump_json(exclude={"background", "layers"})
            if key not in models:
                models[key] = OpenClip(spec, recipe.seed)
            encoder = models[key].encoder(modality, _root(data), spec.background)
        else:
            encoder = _load(spec, modality, data, recipe.seed)
        if not isinstance(spec, FeaturesEncoder) and spec.layers is not None:
            encoder = with_layers(encoder, spec.layers, f"encoders.{modality}.layers")
        encoder.module.eval().to(device)
        encoders[modality] = encoder
    return encoders


def _root(data: PreparedData | None) -> Path:
    return Path() if data is None else data.root


def _load(spec: EncoderSpec, modality: str, data: PreparedData | None, seed: int) -> Encoder:
    """One tower; each library is imported only by those who use it."""
    key = f"encoders.{modality}"
    if isinstance(spec, FeaturesEncoder):
        assert data is not None
        return load_features(spec, data, modality)
    if isinstance(spec, TimmEncoder):
        from cs_aligner_cli.encoders.timm import load_timm

        return load_timm(spec, _root(data), key, seed)
    if isinstance(spec, SentenceTransformersEncoder):
        from cs_aligner_cli.encoders.sentence_transformers import load_sentence_transformers

        return load_sentence_transformers(spec, key)
    from cs_aligner_cli.encoders.transformers import load_transformers

    assert not isinstance(spec, OpenClipEncoder)
    return load_transformers(spec, modality, _root(data), key)


def pick_device(name: str) -> torch.device:
    """The torch device of a recipe's device key; raise InputError if this machine has none of that kind.

    Of several processes on one machine each has a GPU of its own, while there are enough.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise InputError(f"device: {name} is not available on this machine", "Use device: auto or cpu.")
    if name == "cuda" and world_size() > 1:
        return torch.device(name, local_rank() % torch.cuda.device_count())
    return torch.device(name)
