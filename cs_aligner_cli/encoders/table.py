"""The encoder kinds behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders.features import load_features
from cs_aligner_cli.encoders.open_clip import OpenClip
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import MODALITIES
from cs_aligner_cli.recipe import Recipe
from cs_aligner_cli.recipe_encoders import FeaturesEncoder, OpenClipEncoder


@dataclass
class Encoder:
    """One tower.

    ``load(rows)`` turns rows of the modality's table into a model input (a CPU tensor, first axis the
    items); ``module`` maps that input to (B, dim) embeddings, not normalised; ``identity`` says exactly
    what this tower is; ``clip`` is the whole open_clip model that the tower belongs to, None for stored
    features.
    """

    modality: str
    dim: int
    module: nn.Module
    load: Callable[[pd.DataFrame], Tensor]
    identity: dict[str, Any]
    clip: OpenClip | None = field(default=None, repr=False)


def load_encoders(recipe: Recipe, data: PreparedData, device: torch.device) -> dict[str, Encoder]:
    """Both towers in eval mode on ``device``; towers of the same open_clip model share one copy of it."""
    models: dict[str, OpenClip] = {}
    encoders = {}
    for modality in MODALITIES:
        spec = recipe.encoders.of(modality)
        if isinstance(spec, FeaturesEncoder):
            module, load, dim, identity = load_features(spec, data, modality)
            encoder = Encoder(modality, dim, module, load, identity)
        else:
            key = spec.model_dump_json()
            if key not in models:
                models[key] = OpenClip(spec, recipe.seed)
            clip = models[key]
            encoder = Encoder(
                modality,
                clip.dim,
                clip.tower(modality),
                clip.loader(modality, data.root),
                clip.identity,
                clip,
            )
        encoder.module.eval().to(device)
        encoders[modality] = encoder
    return encoders


def weight_files(recipe: Recipe) -> list[Path]:
    """The files on disk that hold encoder weights, whose change makes embeddings stale."""
    files: list[Path] = []
    for modality in MODALITIES:
        spec = recipe.encoders.of(modality)
        if isinstance(spec, OpenClipEncoder):
            folder = Path((spec.model or "").removeprefix("local-dir:"))
            if (spec.model or "").startswith("local-dir:") and folder.is_dir():
                files += [path for path in folder.iterdir() if path.is_file()]
            if spec.pretrained and Path(spec.pretrained).is_file():
                files.append(Path(spec.pretrained))
    return sorted(set(files))


def embed_rows(
    module: nn.Module, inputs: Tensor, device: torch.device, precision: str = "fp32"
) -> npt.NDArray[np.float32]:
    """Embeddings (B, dim) of one batch as float32 numpy, without gradients, under autocast where asked."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return module(inputs.to(device)).float().cpu().numpy()  # type: ignore[no-any-return]


def pick_device(name: str) -> torch.device:
    """The torch device of a recipe's device key; raise InputError if this machine has none of that kind."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise InputError(f"device: {name} is not available on this machine", "Use device: auto or cpu.")
    return torch.device(name)
