"""Towers from transformers: text models, decoder LLMs, vision models, and both halves of CLIP and SigLIP."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.pictures import as_rgb
from cs_aligner_cli.encoders.checkpoints import not_plain
from cs_aligner_cli.encoders.encoder import CaptionLimit, Encoder, TokenReader
from cs_aligner_cli.encoders.hub import (
    LOCAL,
    how_to_fetch,
    refuse_absent,
    refuse_without_preprocessor,
    refuse_without_tokenizer,
    source_of,
    weights_digest,
)
from cs_aligner_cli.encoders.inputs import (
    ImageLoader,
    ids_and_mask,
    in_chunks_of_like_length,
    pad_on_the_right,
    padded_ids,
    refuse_foreign_tokenizer,
    tokenizer_identity,
)
from cs_aligner_cli.encoders.tokens import TransformersImageTokens, TransformersTextTokens, pool_tokens
from cs_aligner_cli.recipe.encoders import TransformersEncoder

# What the library raises, itself or through torch and safetensors, on files that it cannot make sense of.
NOT_LOADED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, EOFError),
    *(struct.error, SafetensorError),
)
# Of a model with two towers, what the one tower does not use.
_NOT_TEXT = ("vision_model", "visual_projection", "logit_scale", "logit_bias")
_NOT_IMAGE = ("text_model", "text_projection", "logit_scale", "logit_bias")
# Of a message that lists weights, what is repeated.
_LINES = 8
_FEATURES = {"text": "get_text_features", "image": "get_image_features"}


class _Tower(nn.Module):
    """A model of the library and how its output becomes one vector per item."""

    def __init__(self, model: Any, modality: str, pooling: str, pad_id: int = 0) -> None:
        super().__init__()
        self.model, self.modality, self.pooling, self.pad_id = model, modality, pooling, pad_id

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) or padded token ids (B, L) to (B, dim)."""
        if self.modality == "text":
            return in_chunks_of_like_length(self._embedded, inputs)
        return self._embedded(inputs)

    def _embedded(self, inputs: Tensor) -> Tensor:
        return self.pooled(*self.output(inputs))

    def output(self, inputs: Tensor, **options: Any) -> tuple[Any, Tensor | None]:
        """What the library gives for pixels or padded token ids, and the mask (B, L) of the latter."""
        given, mask = {"pixel_values": inputs}, None
        if self.modality == "text":
            ids, mask = ids_and_mask(inputs, self.pad_id)
            given = {"input_ids": ids, "attention_mask": mask}
        run = getattr(self.model, _FEATURES[self.modality]) if self.pooling == "features" else self.model
        return run(**given, **options), mask

    def pooled(self, output: Any, mask: Tensor | None) -> Tensor:
        """One vector per item (B, dim) from ``output``."""
        if self.pooling == "features":
            return output if isinstance(output, Tensor) else output.pooler_output
        return pool(output, self.pooling, mask)


def pool(output: Any, pooling: str, mask: Tensor | None) -> Tensor:
    """One vector per item (B, dim) of a model's output: its own pooled output (pooler), or ``pool_tokens``."""
    if pooling == "pooler":
        return output.pooler_output.flatten(1)  # type: ignore[no-any-return]
    return pool_tokens(output.last_hidden_state, pooling, mask)


def load_transformers(spec: TransformersEncoder, modality: str, root: Path, key: str) -> Encoder:
    """A tower from a local folder or the hub.

    Raises InputError if the model is not there, does not load, lacks weights, has another's tokenizer or takes
    pictures of another size than its preprocessor makes.
    """
    refuse_absent(spec.model, key)
    source = source_of(spec.model)
    if spec.model.startswith(LOCAL):
        (refuse_without_tokenizer if modality == "text" else refuse_without_preprocessor)(Path(source), key)
    with loading(spec.model, key):
        model, missing = _load_model(spec, source, modality)
    _refuse_missing(model, missing, spec.pooling, key)
    pooling = spec.pooling if spec.pooling != "auto" else _own_pooling(model, modality)
    identity: dict[str, Any] = {
        "kind": "transformers",
        "model": spec.model,
        "architecture": type(model).__name__,
        "weights": weights_digest(model),
        "dtype": spec.dtype,
        "pooling": pooling,
    }
    load: Callable[[pd.DataFrame], Tensor]
    token_module: nn.Module
    if modality == "image":
        with loading(spec.model, key):
            processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        tower = _Tower(model, modality, pooling)
        load = ImageLoader(_preprocess(processor), root, spec.background)
        identity["preprocess"] = processor.to_dict()
        # The library's own conversion puts transparent pictures on white.
        converts = getattr(processor, "do_convert_rgb", None)
        identity["background"] = spec.background or ("white" if converts else None)
        example = load.preprocess(Image.new("RGB", (64, 48)))[None]
        token_module, about = TransformersImageTokens(model), "patch tokens"
    else:
        with loading(spec.model, key):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        table = getattr(model, "text_model", model).get_input_embeddings()
        refuse_foreign_tokenizer(len(tokenizer), table.num_embeddings, key)
        load = _TextLoader(tokenizer, model, spec, key)
        tower = _Tower(model, modality, pooling, load.pad_id)
        identity |= {"tokenizer": tokenizer_identity(tokenizer), "prompt": spec.prompt, "max_length": load.max_length}
        example = load(pd.DataFrame({"text": ["a"]}))
        token_module, about = TransformersTextTokens(model, load.pad_id, load.masked), "text tokens"
    dim = dim_of(tower, example, modality, key)
    tokens = TokenReader(token_module, load, lambda: example, about)
    limit = CaptionLimit(load.max_length, load.lengths) if isinstance(load, _TextLoader) else None
    return Encoder(modality, dim, tower, load, identity, model, tokens=tokens, caption_limit=limit)


def _preprocess(processor: Any) -> Callable[[Image.Image], Tensor]:
    """The processor's own way with one picture; where it converts none to RGB, the library's ``load_image`` has."""
    converts = getattr(processor, "do_convert_rgb", None)

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image if converts else as_rgb(image), return_tensors="pt")["pixel_values"][0]
        return pixels

    return preprocess


class _TextLoader:
    """Rows of the captions' table to padded token ids (B, L), by the model's own tokenizer."""

    def __init__(self, tokenizer: Any, model: Any, spec: TransformersEncoder, key: str) -> None:
        self.tokenizer, self.prompt = tokenizer, spec.prompt
        pad_on_the_right(tokenizer, key)
        self.pad_id = tokenizer.pad_token_id or 0
        config = getattr(model.config, "text_config", model.config)
        learned = learned_positions(model)
        positions = learned or getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.max_length = spec.max_length or min(positions, tokenizer.model_max_length)
        refuse_too_long(self.max_length, learned, f"{key}.max_length")
        # SigLIP was trained without a mask, every caption padded to full length.
        self.masked = not model.config.model_type.startswith("siglip")

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens captions have, prompt and special tokens included."""
        prompted = [self.prompt.replace("{text}", text) for text in texts]
        return [len(ids) for ids in self.tokenizer(prompted, verbose=False)["input_ids"]]

    def __call__(self, rows: pd.DataFrame) -> Tensor:
        texts = [self.prompt.replace("{text}", text) for text in rows["text"]]
        encoding = self.tokenizer(
            texts,
            padding=True if self.masked else "max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            return_attention_mask=self.masked,
        )
        return padded_ids(encoding)


def learned_positions(model: nn.Module) -> int | None:
    """The tokens for which a model has learned positions, None where it has no such table (rotary positions).

    RoBERTa and its kin count from behind their padding id: 514 rows are 512 tokens.
    """
    for name, part in model.named_modules():
        end = name.rpartition(".")[2]
        known = end in ("position_embeddings", "position_embedding", "wpe") and "vision" not in name
        if known and isinstance(part, nn.Embedding):
            before = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - before
    return None


def refuse_too_long(wanted: int, positions: int | None, key: str) -> None:
    """Raise InputError for more tokens per caption than a model has learned positions."""
    if positions is not None and wanted > positions:
        raise InputError(f"{key}: {wanted} tokens, but the model's weights have positions for {positions}")


def _load_model(spec: TransformersEncoder, source: str, modality: str) -> tuple[Any, list[str]]:
    """The tower's model, and the names of the weights that its files do not hold."""
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    kind = transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel
    options = {"trust_remote_code": False, "dtype": getattr(torch, spec.dtype), "output_loading_info": True}
    model, info = kind.from_pretrained(source, config=config, **options)
    for name in _NOT_TEXT if modality == "text" else _NOT_IMAGE:
        if hasattr(model, name):
            setattr(model, name, None)
    return model, sorted(key for key in info["missing_keys"] if key in model.state_dict())


def _refuse_missing(model: Any, missing: list[str], pooling: str, key: str) -> None:
    """Weights that are not there would be random ones; only a pooler that is not used may be absent."""
    others = [name for name in missing if not name.startswith("pooler.")]
    if others or (missing and pooling == "pooler"):
        raise InputError(
            f"{key}: the files hold no weights for {len(missing)} tensors of {type(model).__name__}, "
            f"the first being {(others or missing)[0]}",
            "" if others else "Its checkpoint was trained without a pooler: use pooling: mean or cls.",
        )
    if missing:
        model.pooler = None


def _own_pooling(model: Any, modality: str) -> str:
    """The pooling that a model was made for."""
    if hasattr(model, _FEATURES[modality]):
        return "features"
    if modality == "image" or type(model).__name__.endswith("TextModel"):
        return "cls" if getattr(model, "pooler", ...) is None else "pooler"
    name = model.config.model_type
    decodes = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "last" if decodes else "mean"


def dim_of(tower: nn.Module, example: Tensor, modality: str, key: str) -> int:
    """The dimension of a tower's output; InputError if it does not take what its own preprocessing makes."""
    try:
        with torch.inference_mode():
            return int(tower.eval()(example).shape[1])
    except (ValueError, RuntimeError, AttributeError, AssertionError) as error:
        what = f"pictures of {tuple(example.shape[2:])} pixels" if modality == "image" else "its tokenizer's tokens"
        raise InputError(
            f"{key}: the model does not take {what}: {str(error).splitlines()[0] if str(error) else error!r}",
            "Preprocessing and model must be of one image size and one kind; name the files it was trained with.",
        ) from None


def _not_plain(model: str, key: str) -> InputError:
    """The refusal of a pickle; which one, torch does not say: the first weights file that is one."""
    folder = Path(source_of(model))
    files = sorted(file for suffix in (".bin", ".pth", ".pt") for file in folder.rglob(f"*{suffix}"))
    if files:
        return not_plain(files[0], key)
    return InputError(f"{key}: {model} holds Python objects; csalign reads plain weights only")


def _why(error: Exception) -> str:
    """The first line of a library's message; of one about weights that do not fit, all lines, which name them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:_LINES]) if "state_dict" in lines[0] else lines[0]


@contextmanager
def loading(model: str, key: str) -> Iterator[None]:
    """Turn the library's loading failures into one message with the way out, and keep its bars off the screen."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    logging.disable()
    try:
        yield
    except UnpicklingError:
        raise _not_plain(model, key) from None
    except NOT_LOADED as error:
        if "weights_only" in str(error):
            raise _not_plain(model, key) from None
        why = _why(error)
        hint = "" if model.startswith(LOCAL) else how_to_fetch(source_of(model))
        raise InputError(f"{key}: cannot load {model}: {why}", hint) from None
    finally:
        logging.disable(logging.NOTSET)
        if bars:
            transformers.utils.logging.enable_progress_bar()
