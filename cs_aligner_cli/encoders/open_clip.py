"""open_clip towers: any model that open_clip can build, with its own preprocessing and tokenizer."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import pandas as pd
import torch
from open_clip.convert import convert_state_dict, load_big_vision_weights
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.caption_lengths import by_words
from cs_aligner_cli.data.pictures import without_palette_alpha
from cs_aligner_cli.encoders.checkpoints import (
    WeightsToCome,
    load_state,
    read_state_dict,
    refuse_placeholders,
    weights_in,
    without_prefix,
)
from cs_aligner_cli.encoders.encoder import CaptionLimit, Encoder, TokenReader
from cs_aligner_cli.encoders.hub import refuse_without_tokenizer, unreachable, weights_digest
from cs_aligner_cli.encoders.inputs import ImageLoader
from cs_aligner_cli.encoders.open_clip_text import CaptionIds
from cs_aligner_cli.encoders.tokens import OpenClipImageTokens, OpenClipTextTokens
from cs_aligner_cli.encoders.transforms import parts_of
from cs_aligner_cli.recipe.encoders import OpenClipEncoder

_KEY = "encoders"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
# The names of weights that open_clip saves and looks for in a folder, the first that is there.
_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
_NUMPY = (".npz", ".npy")
# What OpenAI's archives hold beside weights, and a buffer that transformers kept among them until 4.31.
_OF_JIT, _BUFFER = ("input_resolution", "context_length", "vocab_size"), "embeddings.position_ids"
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
            if name.startswith("local-dir:") and self.model_cfg.get("text_cfg", {}).get("hf_tokenizer_name"):
                refuse_without_tokenizer(Path(name.removeprefix("local-dir:")), _KEY)
            file = _own_file(name, spec)
            state = read_state_dict(file, _KEY) if file and file.suffix.lower() not in _NUMPY else None
            bias = _logit_bias(state)
            if bias is not None:
                self.model_cfg = {**self.model_cfg, "init_logit_bias": bias}
            self.model, self.preprocess = _create(name, spec, seed, file, state)
            if file is not None:
                _load(self.model, state, file, spec)
            self.tokenizer: Any = _guard(lambda: open_clip.get_tokenizer(name), spec)
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            self.tokenizer.encode = by_words(self.tokenizer.encode)
        if not isinstance(self.model, open_clip.CustomTextCLIP):
            kind = type(self.model).__name__
            raise InputError(f"encoders: {spec.model}: {kind} models have no plain text tower; use a CLIP model")
        self.caption_ids = CaptionIds(self.model.text, self.tokenizer)
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
        limit = self._caption_limit() if modality == "text" else None
        return Encoder(modality, self.dim, tower, load, identity, tower, self, tokens, limit)

    def _caption_limit(self) -> CaptionLimit | None:
        """How the tokenizer counts, where it is one whose count is known."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
            clean = tokenizer.clean_fn

            def lengths(texts: Sequence[str]) -> list[int]:
                return [len(ids) for ids in tokenizer.tokenizer([clean(text) for text in texts])["input_ids"]]

        elif isinstance(tokenizer, open_clip.SimpleTokenizer):

            def lengths(texts: Sequence[str]) -> list[int]:
                return [len(tokenizer.encode(text)) + 2 for text in texts]

        else:
            return None
        return CaptionLimit(int(tokenizer.context_length), lengths)

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
            return lambda rows: self.caption_ids(rows["text"].tolist())
        parts = parts_of(self.preprocess, rgb_first=False)
        return ImageLoader(lambda image: self.preprocess(without_palette_alpha(image)), root, background, parts)

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


def refuse_unknown_architecture(name: str) -> None:
    """Raise InputError, with the nearest name, for an architecture that open_clip does not know."""
    if name not in open_clip.list_models():
        raise InputError(f"encoders: open_clip knows no model {name!r}{did_you_mean(name, open_clip.list_models())}")


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
        if not weights_in(folder, _WEIGHTS):
            raise InputError(f"encoders: {folder} holds a configuration but no weights ({', '.join(_WEIGHTS)})")
        refuse_placeholders(folder, _KEY)
    elif scheme == "hf-hub":
        _refuse_unreachable(rest.split("@")[0], spec)
    elif spec.config is None:
        refuse_unknown_architecture(name)
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


def _own_file(name: str, spec: OpenClipEncoder) -> Path | None:
    """The weights file on disk that a model is loaded from; None where open_clip fetches it, or there is none."""
    if spec.pretrained and Path(spec.pretrained).suffix:
        return Path(spec.pretrained)
    if spec.config is not None or not name.startswith("local-dir:"):
        return None
    return weights_in(Path(name.removeprefix("local-dir:")), (*_FILES, *_WEIGHTS))[0]


def _logit_bias(state: Mapping[str, Tensor] | None) -> float | None:
    """The bias of a SigLIP-like model by its weights: its configuration may not mention it."""
    found = (value for name, value in (state or {}).items() if name.rpartition(".")[2] == "logit_bias")
    value = next(found, None)
    return None if value is None else float(value.float().mean())


def _create(
    name: str, spec: OpenClipEncoder, seed: int, file: Path | None, state: dict[str, Tensor] | None
) -> tuple[Any, Any]:
    """The model with the weights that open_clip itself fetches, else with random ones, or those to come if there is a
    ``state``; and its preprocessing."""
    own = spec.config is not None or file is not None
    bias = _logit_bias(state)
    options = {} if bias is None else {"init_logit_bias": bias}
    loaded = state is not None or not (own or spec.random_init)
    with torch.random.fork_rng(devices=[]), WeightsToCome() if loaded else nullcontext():
        torch.manual_seed(seed)
        model, _, preprocess = _guard(
            lambda: open_clip.create_model_and_transforms(
                name,
                pretrained=None if own else spec.pretrained,
                load_weights=not own,
                force_custom_text=True,
                pretrained_text=False,
                # Without this, weights that cannot be downloaded leave random ones behind, with a log line.
                require_pretrained=not (own or spec.random_init),
                **options,
            ),
            spec,
        )
    return model, preprocess


def _load(model: Any, state: dict[str, Tensor] | None, file: Path, spec: OpenClipEncoder) -> None:
    """Load a file's weights as ``open_clip.load_checkpoint`` does, wrappers taken off and every misfit named.

    What open_clip would interpolate without a word, the positions of a text tower with another context, is refused.
    """
    if state is None:  # Google's own, which open_clip's load_checkpoint knows by a suffix in small letters only
        with file.open("rb") as stream:  # by a path it would stay open
            _guard(lambda: load_big_vision_weights(model, stream), spec)
        return
    own = model.state_dict()
    plain = [name.removeprefix("text.") for name in own]  # as models before custom_text had it
    found: dict[str, Tensor] = without_prefix(state, {*own, *plain})
    found = _guard(lambda: convert_state_dict(model, found), spec)
    if "positional_embedding" in found:
        found = convert_to_custom_text_state_dict(found)
    found = {name: value for name, value in found.items() if name not in _OF_JIT and not name.endswith(_BUFFER)}
    for name in ("logit_scale", "logit_bias"):
        if name in found and found[name].numel() == 1:
            found[name] = found[name].reshape(own[name].shape)
    if "logit_bias" in own:
        found.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
    _refuse_other_context(own, found, file)
    _guard(lambda: resize_pos_embed(found, model), spec)
    load_state(model, found, file, _KEY)


def _refuse_other_context(own: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
    name = "text.positional_embedding"
    if name in own and name in found and len(own[name]) != len(found[name]):
        raise InputError(
            f"{_KEY}: the weights in {file} were trained with a context of {len(found[name])} tokens, but the "
            f"configuration says {len(own[name])}",
            f"text_cfg: context_length must be {len(found[name])}.",
        )


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
