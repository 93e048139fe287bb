"""open_clip towers: any model that open_clip can build, with its own preprocessing and tokenizer."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import pandas as pd
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.pictures import without_palette_alpha
from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
from cs_aligner_cli.encoders.hub import unreachable, weights_digest
from cs_aligner_cli.encoders.inputs import ImageLoader
from cs_aligner_cli.encoders.tokens import OpenClipImageTokens, OpenClipTextTokens
from cs_aligner_cli.recipe.encoders import OpenClipEncoder

_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
# What open_clip raises, itself or through torch and safetensors, on files that it cannot make sense of.
_NOT_LOADED = (
    *(RuntimeError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError, EOFError),
    *(ArithmeticError, ImportError, StopIteration, struct.error, UnpicklingError, SafetensorError),
)


class OpenClip:
    """One open_clip model: two towers, preprocessing, tokenizer, and how to save it in open_clip's own form.

    The model is built in open_clip's custom-text form, in which both towers are modules of their own.
    """

    def __init__(self, spec: OpenClipEncoder, seed: int) -> None:
        with TemporaryDirectory() as scratch:
            name = _name(spec, Path(scratch))
            _refuse_unknown(name, spec)
            self.model_cfg: dict[str, Any] = _guard(lambda: open_clip.get_model_config(name), spec)
            _refuse_without_text_parts(name, spec, self.model_cfg)
            self.model, self.preprocess = _create(name, spec, seed)
            self.tokenizer: Callable[[list[str]], Tensor] = _guard(lambda: open_clip.get_tokenizer(name), spec)
        if not isinstance(self.model, open_clip.CustomTextCLIP):
            kind = type(self.model).__name__
            raise InputError(f"encoders: {spec.model}: {kind} models have no plain text tower; use a CLIP model")
        self.dim = int(self.model_cfg["embed_dim"])
        self.identity = {
            "kind": "open_clip",
            "model": spec.model,
            "model_cfg": self.model_cfg,
            "pretrained": spec.pretrained,
            "weights": weights_digest(self.model),
            "preprocess": self.model.visual.preprocess_cfg,
            "context_length": self.model.context_length,
        }

    def tower(self, modality: str) -> nn.Module:
        """The module of "image" or "text"; its output is (B, dim), not normalised."""
        return self.model.visual if modality == "image" else self.model.text  # type: ignore[no-any-return]

    def encoder(self, modality: str, root: Path, background: str | None = None) -> Encoder:
        """One of the two towers; both share this model. ``background`` is behind transparent pictures."""
        tower, load = self.tower(modality), self.loader(modality, root, background)
        identity = {**self.identity, "background": background} if modality == "image" else self.identity
        tokens = self._token_reader(modality, tower, load)
        return Encoder(modality, self.dim, tower, load, identity, tower, self, tokens)

    def _token_reader(
        self, modality: str, tower: nn.Module, load: Callable[[pd.DataFrame], Tensor]
    ) -> TokenReader | None:
        if modality == "text":
            return TokenReader(
                OpenClipTextTokens(tower), load, lambda: self.tokenizer(["a"]), "text tokens up to the end of text"
            )
        if not OpenClipImageTokens.reads(tower):
            return None
        blank = Image.new("RGB", (64, 48))
        return TokenReader(OpenClipImageTokens(tower), load, lambda: self.preprocess(blank)[None], "patch tokens")

    def loader(self, modality: str, root: Path, background: str | None = None) -> Callable[[pd.DataFrame], Tensor]:
        """The function from table rows to the tower's input: pixels (B, 3, H, W) or token ids (B, L)."""
        if modality == "text":
            return lambda rows: self.tokenizer(rows["text"].tolist())
        return ImageLoader(lambda image: self.preprocess(without_palette_alpha(image)), root, background)

    def save(
        self,
        folder: Path,
        logit_scale: float,
        logit_bias: float | None = None,
        towers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Write a folder that ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads.

        ``towers`` stand in place of the model's own, with the same names of weights (LoRA merged, for instance).
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {**self.model.state_dict(), "logit_scale": torch.tensor(logit_scale).log()}
        config = {**self.model_cfg, "custom_text": True}
        if logit_bias is not None:
            state["logit_bias"] = torch.tensor(logit_bias)
            config["init_logit_bias"] = logit_bias
        for modality, tower in (towers or {}).items():
            prefix = "visual." if modality == "image" else "text."
            state = {name: value for name, value in state.items() if not name.startswith(prefix)}
            state |= {prefix + name: value for name, value in tower.state_dict().items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        save_config_for_hf(self.model, folder / "open_clip_config.json", config)
        if isinstance(self.tokenizer, open_clip.tokenizer.HFTokenizer):
            self.tokenizer.save_pretrained(folder)


def require_open_clip(spec: OpenClipEncoder) -> None:
    """Raise InputError, without building anything, for a model, weights or a file that cannot be had."""
    with TemporaryDirectory() as scratch:
        name = _name(spec, Path(scratch))
        _refuse_unknown(name, spec)
        if not name.startswith("hf-hub:"):  # asking for its configuration would fetch it
            _refuse_without_text_parts(name, spec, _guard(lambda: open_clip.get_model_config(name), spec))


def _name(spec: OpenClipEncoder, scratch: Path) -> str:
    """The name by which open_clip finds the model; a recipe's config becomes a local-dir without weights."""
    if spec.config is None:
        return spec.model or ""
    (scratch / "open_clip_config.json").write_text(json.dumps({"model_cfg": spec.config.model_dump()}))
    return f"local-dir:{scratch}"


def _refuse_unknown(name: str, spec: OpenClipEncoder) -> None:
    """Raise InputError, before anything is built, for a model, weights or a file that are not there."""
    scheme, _, rest = name.partition(":")
    if spec.config is None and scheme == "local-dir":
        folder = Path(rest)
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                f"encoders: {folder} {'has no open_clip_config.json' if folder.is_dir() else 'is no folder'}",
                "An open_clip folder is written by open_clip, or by a csalign run with tune: full.",
            )
        if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
            raise InputError(f"encoders: {folder} holds a configuration but no weights ({', '.join(_WEIGHTS)})")
    elif scheme == "hf-hub":
        _refuse_unreachable(rest.split("@")[0], spec)
    elif spec.config is None and name not in open_clip.list_models():
        raise InputError(f"encoders: open_clip knows no model {name!r}{did_you_mean(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if spec.pretrained in tags:
        weights = open_clip.get_pretrained_cfg(name, spec.pretrained)
        _refuse_other_activation(name, spec, weights)
        _refuse_unreachable(weights.get("hf_hub", "").rpartition("/")[0], spec)
    elif spec.pretrained and Path(spec.pretrained).suffix:
        if not Path(spec.pretrained).is_file():
            raise InputError(f"encoders: pretrained: {spec.pretrained}: no such file")
    elif spec.pretrained:
        model = spec.model or "a model of your own config"
        raise InputError(f"encoders: {model} has no weights {spec.pretrained!r}{did_you_mean(spec.pretrained, tags)}")


def _refuse_other_activation(name: str, spec: OpenClipEncoder, weights: dict[str, Any]) -> None:
    """Weights that were trained with QuickGELU give wrong features without it; open_clip only warns."""
    if weights.get("quick_gelu") and not open_clip.get_model_config(name).get("quick_gelu"):
        raise InputError(
            f"encoders: the weights {spec.pretrained} were trained with QuickGELU, which {name} has not",
            f"Use model: {name}-quickgelu" if f"{name}-quickgelu" in open_clip.list_models() else "",
        )


def _refuse_without_text_parts(name: str, spec: OpenClipEncoder, model_cfg: dict[str, Any]) -> None:
    """Some text towers and tokenizers come from the hub, whatever the weights."""
    if not name.startswith("local-dir:"):
        for key in ("hf_model_name", "hf_tokenizer_name"):
            _refuse_unreachable(model_cfg.get("text_cfg", {}).get(key, ""), spec)


def _refuse_unreachable(repository: str, spec: OpenClipEncoder) -> None:
    if why := unreachable(repository):
        raise _not_loaded(spec, why)


def _create(name: str, spec: OpenClipEncoder, seed: int) -> tuple[Any, Any]:
    from_config = spec.config is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, preprocess = _guard(
            lambda: open_clip.create_model_and_transforms(
                name,
                pretrained=None if from_config else spec.pretrained,
                force_custom_text=True,
                pretrained_text=False,
                # Without this, weights that cannot be downloaded leave random ones behind, with a log line.
                require_pretrained=not (from_config or spec.random_init),
            ),
            spec,
        )
    if from_config and spec.pretrained:  # open_clip itself reads checkpoint files only for the names it knows
        _guard(lambda: open_clip.load_checkpoint(model, spec.pretrained), spec)
    return model, preprocess


def _guard(call: Callable[[], Any], spec: OpenClipEncoder) -> Any:
    """Run one of open_clip's loading calls; turn its failures into a message with the way out."""
    logging.disable()  # open_clip logs, on the root logger, what it then raises
    try:
        return call()
    except _NOT_LOADED as error:
        raise _not_loaded(spec, str(error) or type(error).__name__) from None
    finally:
        logging.disable(logging.NOTSET)


def _not_loaded(spec: OpenClipEncoder, why: str) -> InputError:
    what = f"{spec.model or 'the model of config'}{f' ({spec.pretrained})' if spec.pretrained else ''}"
    return InputError(
        f"encoders: open_clip cannot load {what}: {why}",
        "Without a network, fetch the model's files elsewhere and name their folder (model: "
        "local-dir:FOLDER) or the checkpoint (pretrained: FILE).",
    )
