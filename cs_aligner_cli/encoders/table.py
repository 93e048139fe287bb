"""The encoder kinds behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.torchrun_env import local_rank, world_size
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders.encoder import Encoder
from cs_aligner_cli.encoders.features import load_features
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.recipe.encoders import (
    EncoderSpec,
    FeaturesEncoder,
    OpenClipEncoder,
    SentenceTransformersEncoder,
    TimmEncoder,
)
from cs_aligner_cli.recipe.recipe import Recipe


def load_encoders(
    recipe: Recipe, data: PreparedData, device: torch.device, modalities: Sequence[str]
) -> dict[str, Encoder]:
    """The towers asked for, in eval mode on ``device``; towers of the same open_clip model share one copy of it."""
    for file in weight_files(recipe):
        verify_file(file)  # those of another run's model
    models: dict[str, Any] = {}
    encoders = {}
    for modality in modalities:
        spec = recipe.encoders.of(modality)
        if isinstance(spec, OpenClipEncoder):
            from cs_aligner_cli.encoders.open_clip import OpenClip  # takes seconds to import

            key = spec.model_dump_json(exclude={"background"})
            if key not in models:
                models[key] = OpenClip(spec, recipe.seed)
            encoder = models[key].encoder(modality, data.root, spec.background)
        else:
            encoder = _load(spec, modality, data, recipe.seed)
        encoder.module.eval().to(device)
        encoders[modality] = encoder
    return encoders


def _load(spec: EncoderSpec, modality: str, data: PreparedData, seed: int) -> Encoder:
    """One tower; each library is imported only by those who use it."""
    key = f"encoders.{modality}"
    if isinstance(spec, FeaturesEncoder):
        return load_features(spec, data, modality)
    if isinstance(spec, TimmEncoder):
        from cs_aligner_cli.encoders.timm import load_timm

        return load_timm(spec, data.root, key, seed)
    if isinstance(spec, SentenceTransformersEncoder):
        from cs_aligner_cli.encoders.sentence_transformers import load_sentence_transformers

        return load_sentence_transformers(spec, key)
    from cs_aligner_cli.encoders.transformers import load_transformers

    assert not isinstance(spec, OpenClipEncoder)
    return load_transformers(spec, modality, data.root, key)


def weight_files(recipe: Recipe) -> list[Path]:
    """The files on disk that hold encoder weights, whose change makes embeddings stale."""
    files: list[Path] = []
    for modality in MODALITIES:
        spec = recipe.encoders.of(modality)
        model = getattr(spec, "model", None) or ""
        folder = Path(model.removeprefix("local-dir:"))
        if model.startswith("local-dir:") and folder.is_dir():
            files += [path for path in folder.rglob("*") if path.is_file()]
        for named in (getattr(spec, "pretrained", None), getattr(spec, "checkpoint", None)):
            if named and Path(named).is_file():
                files.append(Path(named))
    return sorted(set(files))


def pick_device(name: str) -> torch.device:
    """The torch device of a recipe's device key; raise InputError if this machine has none of that kind.

    Of several processes on one machine each has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise InputError(f"device: {name} is not available on this machine", "Use device: auto or cpu.")
    return torch.device(name, local_rank()) if name == "cuda" and world_size() > 1 else torch.device(name)
