"""Image towers from timm: any of its models, headless, with the model's own preprocessing."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.pictures import as_rgb
from cs_aligner_cli.encoders.checkpoints import (
    WeightsToCome,
    in_order,
    load_state,
    read_state_dict,
    refuse_placeholder,
    weights_in,
    without_prefix,
)
from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
from cs_aligner_cli.encoders.hub import HUB, LOCAL, refuse_absent, unreachable, weights_digest
from cs_aligner_cli.encoders.inputs import ImageLoader
from cs_aligner_cli.encoders.tokens import TimmTokens
from cs_aligner_cli.encoders.transformers import dim_of, loading
from cs_aligner_cli.encoders.transforms import parts_of
from cs_aligner_cli.recipe.encoders import TimmEncoder

# The weights in a folder, in the order in which timm takes them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "*.safetensors", "*.bin", "*.pth")
_NUMPY = (".npz", ".npy")


def load_timm(spec: TimmEncoder, root: Path, key: str, seed: int) -> Encoder:
    """An image tower; its output is the pooled, headless feature (B, dim)."""
    pretrained = require_timm(spec, key)
    with loading(spec.model, key), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _created(spec, key, pretrained)
    if spec.checkpoint is not None:
        _load_checkpoint(model, spec.checkpoint, f"{key}.checkpoint")
    preprocess = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**preprocess, is_training=False)
    # timm's own data sets hand RGB to its transforms.
    parts = parts_of(transform, rgb_first=True)
    load = ImageLoader(lambda image: transform(as_rgb(image)), root, spec.background, parts)
    identity = {
        "kind": "timm",
        "model": spec.model,
        "weights": weights_digest(model),
        "background": spec.background,
        "preprocess": {name: list(value) if isinstance(value, tuple) else value for name, value in preprocess.items()},
    }
    example = load.preprocess(Image.new("RGB", (64, 48)))[None]
    dim = dim_of(model, example, "image", key)
    tokens = TokenReader(TimmTokens(model), load, lambda: example, "patch tokens")
    return Encoder("image", dim, model, load, identity, model, tokens=tokens)


def _created(spec: TimmEncoder, key: str, pretrained: bool) -> Any:
    """The headless model with its weights, those of a folder key by key: timm itself passes over what does not fit."""
    if not pretrained or not spec.model.startswith(LOCAL):
        to_come = spec.checkpoint is not None and spec.checkpoint.suffix.lower() not in _NUMPY
        with WeightsToCome() if to_come else nullcontext():
            return timm.create_model(spec.model, pretrained=pretrained, num_classes=0)
    folder = Path(spec.model.removeprefix(LOCAL))
    with WeightsToCome():
        model = timm.create_model(spec.model, pretrained=False, num_classes=0)
    file = weights_in(folder, _WEIGHTS)[0]  # require_timm has seen that there are some
    _load_checkpoint(model, file, f"{key}.model")
    return model


def _load_checkpoint(model: Any, file: Path, key: str) -> None:
    """The weights of a file without their classifier, which timm leaves out of a headless model, too."""
    if file.suffix.lower() in _NUMPY:  # Google's own, which timm knows how to read
        refuse_placeholder(file, key)
        with loading(str(file), key):
            timm.models.load_checkpoint(model, str(file))
        return
    own = model.state_dict()
    state = without_prefix(read_state_dict(file, key), own)
    state = in_order(state, own) or state
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    state = {name: value for name, value in state.items() if name in own or not name.startswith(heads)}
    if {*state} != {*own}:
        state = _renamed(model, state)
    load_state(model, state, file, key)


def _renamed(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Weights under older names, or the names of their first publisher, as timm itself knows to read them."""
    renaming = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        renamed = renaming(dict(state), model) if renaming else {}
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError):  # of weights that are none of this model's
        return state
    return renamed if {*renamed} == {*model.state_dict()} else state


def refuse_unknown_architecture(model: str, key: str) -> None:
    """Raise InputError, with the nearest name, for an architecture that timm does not know."""
    if model.partition(".")[0] not in timm.list_models():
        raise InputError(f"{key}: timm knows no model {model!r}{did_you_mean(model, timm.list_models())}")


def require_timm(spec: TimmEncoder, key: str) -> bool:
    """Whether timm is to fetch weights; raise InputError if the model or its weights cannot be had."""
    if spec.model.startswith(LOCAL):
        refuse_absent(spec.model, key, any_case=True)
        return True
    if spec.model.startswith(HUB):
        refuse_absent(spec.model, key)
    else:
        refuse_unknown_architecture(spec.model, key)
    if spec.checkpoint is not None and not spec.checkpoint.is_file():
        raise InputError(f"{key}.checkpoint: {spec.checkpoint}: no such file")
    if spec.checkpoint is not None or spec.random_init:
        return False
    weights = timm.get_pretrained_cfg(spec.model)
    if weights is None or not weights.has_weights:
        named = [name for name in timm.list_pretrained() if name.startswith(spec.model.partition(".")[0] + ".")]
        raise InputError(f"{key}: timm has no weights for {spec.model!r}{did_you_mean(spec.model, named)}")
    if why := unreachable(weights.hf_hub_id or ""):
        raise InputError(
            f"{key}: {why}",
            "On a machine with a network: timm.create_model(NAME, pretrained=True) and timm.models.save_for_hf(model, "
            f"FOLDER); copy FOLDER here and name it: model: {LOCAL}FOLDER (or checkpoint: FILE).",
        )
    return True
