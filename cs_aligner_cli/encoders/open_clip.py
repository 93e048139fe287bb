"""open_clip towers: any model that open_clip can build, with its own preprocessing and tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import pandas as pd
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cs_aligner_cli.errors import InputError, did_you_mean
from cs_aligner_cli.recipe import OpenClipEncoder


class OpenClip:
    """One open_clip model: two towers, preprocessing, tokenizer, and how to save it in open_clip's own form.

    The model is built in open_clip's custom-text form, in which both towers are modules of their own.
    """

    def __init__(self, spec: OpenClipEncoder, seed: int) -> None:
        with TemporaryDirectory() as scratch:
            name = _name(spec, Path(scratch))
            self.model_cfg: dict[str, Any] = _model_config(name, spec)
            self.model, self.preprocess = _create(name, spec, seed)
            self.tokenizer: Callable[[list[str]], Tensor] = _guard(lambda: open_clip.get_tokenizer(name), spec)
        if not isinstance(self.model, open_clip.CustomTextCLIP):
            raise InputError(f"{spec.model}: {type(self.model).__name__} models have no plain text tower; use a CLIP model")
        self.dim = int(self.model_cfg["embed_dim"])
        self.identity = {
            "kind": "open_clip",
            "model": spec.model,
            "model_cfg": self.model_cfg,
            "pretrained": spec.pretrained,
            "weights": _weights_digest(self.model),
            "preprocess": self.model.visual.preprocess_cfg,
            "context_length": self.model.context_length,
        }

    def tower(self, modality: str) -> nn.Module:
        """The module of "image" or "text"; its output is (B, dim), not normalised."""
        return self.model.visual if modality == "image" else self.model.text  # type: ignore[no-any-return]

    def loader(self, modality: str, root: Path) -> Callable[[pd.DataFrame], Tensor]:
        """The function from table rows to the tower's input: pixels (B, 3, H, W) or token ids (B, L)."""
        if modality == "text":
            return lambda rows: self.tokenizer(rows["text"].tolist())
        pool = ThreadPoolExecutor()  # PIL decodes without the interpreter lock

        def read(path: Path) -> Tensor:
            try:
                with Image.open(path) as image:
                    return self.preprocess(image.convert("RGB"))  # type: ignore[no-any-return]
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{path}: could be decoded by prepare, but not now: {error}") from None

        return lambda rows: torch.stack(list(pool.map(read, [root / locator for locator in rows["locator"]])))

    def save(self, folder: Path, logit_scale: float) -> None:
        """Write an open_clip folder: ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it."""
        folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            self.model.logit_scale.fill_(torch.tensor(logit_scale).log())
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        save_config_for_hf(self.model, folder / "open_clip_config.json", {**self.model_cfg, "custom_text": True})


def _name(spec: OpenClipEncoder, scratch: Path) -> str:
    """The name under which open_clip finds the model; a config of the recipe becomes a local-dir without weights."""
    if spec.config is None:
        return spec.model or ""
    (scratch / "open_clip_config.json").write_text(json.dumps({"model_cfg": spec.config.model_dump()}))
    return f"local-dir:{scratch}"


def _model_config(name: str, spec: OpenClipEncoder) -> dict[str, Any]:
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                f"encoders: {folder} holds no open_clip_config.json",
                "An open_clip folder is written by open_clip, or by a csalign run with tune: full.",
            )
        if spec.config is None and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise InputError(f"encoders: {folder} holds a configuration but no weights")
    elif not name.startswith("hf-hub:") and name not in open_clip.list_models():
        raise InputError(f"encoders: open_clip knows no model {name!r}{did_you_mean(name, open_clip.list_models())}")
    config: dict[str, Any] = _guard(lambda: open_clip.get_model_config(name), spec)
    return config


def _create(name: str, spec: OpenClipEncoder, seed: int) -> tuple[Any, Any]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    pretrained = spec.pretrained
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise InputError(f"encoders: {spec.model or 'config'} has no weights {pretrained!r}{did_you_mean(pretrained, tags)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, preprocess = _guard(
            lambda: open_clip.create_model_and_transforms(
                name, pretrained=pretrained, force_custom_text=True, pretrained_text=False
            ),
            spec,
        )
    if spec.config and pretrained:  # open_clip itself reads checkpoint files only for the names it knows
        _guard(lambda: open_clip.load_checkpoint(model, pretrained), spec)
    return model, preprocess


def _guard(call: Callable[[], Any], spec: OpenClipEncoder) -> Any:
    """Run one of open_clip's loading calls; turn its failures into a message with the way out."""
    logging.disable()  # open_clip logs, on the root logger, what it then raises
    try:
        return call()
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        what = f"{spec.model or 'the model of config'}{f' ({spec.pretrained})' if spec.pretrained else ''}"
        raise InputError(
            f"encoders: open_clip cannot load {what}: {error}",
            "Without a network, fetch the model's files elsewhere and name their folder (model: local-dir:FOLDER) or the "
            "checkpoint (pretrained: FILE).",
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
