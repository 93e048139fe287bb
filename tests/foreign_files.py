"""Models as other programs save them, and what csalign makes of each: the table in docs/encoders.md.

python tests/foreign_files.py     # writes the table (make docs does, too)
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders import load_encoders
from cs_aligner_cli.encoders.preflight import check_tower
from cs_aligner_cli.recipe.recipe import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "encoders.md"
BEGIN, END = "<!-- foreign files: begin (python tests/foreign_files.py) -->", "<!-- foreign files: end -->"
TOLERANCE = 1e-5
CAPTIONS = ["a red square", "two dogs playing in the snow near a tall tree", "snow", "tall red dogs"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {"image_size": 32, "patch_size": 16, **SMALL}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(mark + c for c in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##"))]
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 2},
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")

# Embeddings of the captions, or of pictures at these paths, by the library itself.
Reference = Callable[[list[Path]], Tensor]


@dataclass(frozen=True)
class Foreign:
    """A model on disk: the recipe's words for its tower, and the library's own output."""

    name: str
    modality: str
    spec: dict[str, Any]
    reference: Reference
    folder: Path
    tokenizer: bool = False
    preprocessor: bool = False


def _tokenizer(folder: Path) -> Any:
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.post_processor = template  # type: ignore[assignment]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "eos_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **special)
    fast.save_pretrained(folder)
    return fast


# ---- transformers


def _text_models() -> dict[str, tuple[Any, str]]:
    """A small model of each kind, and how its states become one row."""
    vocabulary = {"vocab_size": len(PIECES), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    long = {**vocabulary, "max_position_embeddings": 64, **SMALL}
    gpt = {**vocabulary, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    distil = {**vocabulary, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64}
    modern = {**long, "cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2, "local_attention": 8}
    return {
        "BERT": (transformers.BertModel(transformers.BertConfig(**long)), "mean"),
        "RoBERTa": (transformers.RobertaModel(transformers.RobertaConfig(**long)), "mean"),
        "DistilBERT": (transformers.DistilBertModel(transformers.DistilBertConfig(**distil)), "mean"),
        "ModernBERT": (transformers.ModernBertModel(transformers.ModernBertConfig(**modern)), "mean"),
        "GPT-2": (transformers.GPT2Model(transformers.GPT2Config(**gpt)), "last"),
        "Llama": (transformers.LlamaForCausalLM(transformers.LlamaConfig(**long)), "last"),
    }


def _one_by_one(folder: Path, pooling: str) -> Reference:
    def reference(_: list[Path]) -> Tensor:
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        states = [model(**_ids(tokenizer, text)).last_hidden_state[0] for text in CAPTIONS]
        return torch.stack([state[-1] if pooling == "last" else state.mean(0) for state in states])

    return reference


def _ids(tokenizer: Any, text: str, **options: Any) -> dict[str, Tensor]:
    found = tokenizer(text, return_tensors="pt", **options)
    return {name: found[name] for name in ("input_ids", "attention_mask") if name in found}


def _features(folder: Path, modality: str, padded: bool) -> Reference:
    def reference(pictures: list[Path]) -> Tensor:
        model = transformers.AutoModel.from_pretrained(folder).eval()
        if modality == "image":
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            found = model.get_image_features(**processor(images=[Image.open(p) for p in pictures], return_tensors="pt"))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            options = {"padding": "max_length", "max_length": 48, "return_attention_mask": False} if padded else {}
            each = [model.get_text_features(**_ids(tokenizer, text, **options)) for text in CAPTIONS]
            found = [row if isinstance(row, Tensor) else row.pooler_output for row in each]
            return torch.cat(found)
        return found if isinstance(found, Tensor) else found.pooler_output

    return reference


def of_transformers(root: Path) -> list[Foreign]:
    """Text models, both towers of CLIP and SigLIP, and DINOv2."""
    found = []
    for name, (model, pooling) in _text_models().items():
        folder = root / name
        model.save_pretrained(folder)
        _tokenizer(folder)
        spec = {"kind": "transformers", "model": f"local-dir:{folder}"}
        found.append(
            Foreign(f"transformers {name}", "text", spec, _one_by_one(folder, pooling), folder, tokenizer=True)
        )
    text = {"vocab_size": len(PIECES), "max_position_embeddings": 48, "eos_token_id": 3, "pad_token_id": 0, **SMALL}
    pairs: dict[str, tuple[Any, Any]] = {
        "CLIP": (
            transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)),
            transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        ),
        "SigLIP": (
            transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)),
            transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        ),
    }
    for name, (model, processor) in pairs.items():
        for modality in ("text", "image"):
            folder = root / f"{name}-{modality}"
            model.save_pretrained(folder)
            _tokenizer(folder)
            processor.save_pretrained(folder)
            spec = {"kind": "transformers", "model": f"local-dir:{folder}"}
            reference = _features(folder, modality, name == "SigLIP")
            kinds = {"tokenizer": modality == "text", "preprocessor": modality == "image"}
            found.append(Foreign(f"transformers {name}, {modality}", modality, spec, reference, folder, **kinds))
    return [*found, _dinov2(root / "DINOv2")]


def _dinov2(folder: Path) -> Foreign:
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    transformers.BitImageProcessor(**sizes).save_pretrained(folder)

    def reference(pictures: list[Path]) -> Tensor:
        model = transformers.AutoModel.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        pixels = processor(images=[Image.open(path) for path in pictures], return_tensors="pt")
        return model(**pixels).pooler_output  # type: ignore[no-any-return]

    spec = {"kind": "transformers", "model": f"local-dir:{folder}"}
    return Foreign("transformers DINOv2", "image", spec, reference, folder, preprocessor=True)


def of_sentence_transformers(root: Path) -> list[Foreign]:
    """A pipeline of transformer, pooling and normalisation."""
    base, folder = root / "base", root / "sentence"
    _text_models()["BERT"][0].save_pretrained(base)
    _tokenizer(base)
    SentenceTransformer(modules=[modules.Transformer(str(base)), modules.Pooling(16), modules.Normalize()]).save(
        str(folder)
    )
    spec = {"kind": "sentence_transformers", "model": f"local-dir:{folder}"}

    def reference(_: list[Path]) -> Tensor:
        pipeline = SentenceTransformer(str(folder), device="cpu")
        return torch.stack([torch.from_numpy(pipeline.encode(text)) for text in CAPTIONS])

    return [Foreign("sentence-transformers", "text", spec, reference, folder, tokenizer=True)]


# ---- open_clip


def of_open_clip(root: Path) -> list[Foreign]:
    """Folders of every layout, each with the same random weights."""
    empty = root / "empty"
    empty.mkdir(parents=True)
    (empty / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    plain = open_clip.create_model(f"local-dir:{empty}", load_weights=False).eval()
    state = plain.state_dict()
    biased = {**state, "logit_bias": torch.tensor(-10.0)}
    custom = open_clip.create_model(f"local-dir:{empty}", load_weights=False, force_custom_text=True).eval()
    layouts: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "open_clip_model.safetensors": ("open_clip_model.safetensors", state, {}),
        "open_clip_pytorch_model.bin, as the hub had it": ("open_clip_pytorch_model.bin", state, {}),
        "custom_text": ("open_clip_model.safetensors", custom.state_dict(), {"custom_text": True}),
        "a training checkpoint, nested and prefixed": (
            "model.pth",
            {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}},
            {},
        ),
        "bf16": ("open_clip_model.safetensors", {name: value.bfloat16() for name, value in state.items()}, {}),
        "a logit bias, configured": ("open_clip_model.safetensors", biased, {"init_logit_bias": -10.0}),
        "a logit bias, not configured": ("open_clip_model.safetensors", biased, {}),
    }
    found = []
    for name, (file, content, config) in layouts.items():
        folder = root / name.replace(",", "").replace(" ", "_")
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CLIP, **config}}))
        if file.endswith(".safetensors"):
            save_file({key: value.contiguous() for key, value in content.items()}, folder / file)
        else:
            torch.save(content, folder / file)
        for modality in ("image", "text"):
            spec = {"kind": "open_clip", "model": f"local-dir:{folder}"}
            reference = _clip_reference(custom if name == "custom_text" else plain, modality, name == "bf16")
            found.append(Foreign(f"open_clip {name}, {modality}", modality, spec, reference, folder))
    return [*found, _with_hf_tokenizer(root / "hf_tokenizer")]


def _clip_reference(model: Any, modality: str, rounded: bool) -> Reference:
    def reference(pictures: list[Path]) -> Tensor:
        own = {name: value.clone() for name, value in model.state_dict().items()}
        if rounded:
            model.load_state_dict({name: value.bfloat16() for name, value in own.items()})
        if modality == "text":
            rows = model.encode_text(open_clip.SimpleTokenizer(context_length=24)(CAPTIONS))
        else:
            preprocess = open_clip.image_transform(32, is_train=False)
            rows = model.encode_image(torch.stack([preprocess(Image.open(path)) for path in pictures]))
        model.load_state_dict(own)
        return rows  # type: ignore[no-any-return]

    return reference


def _with_hf_tokenizer(folder: Path) -> Foreign:
    folder.mkdir()
    text = {**CLIP["text_cfg"], "vocab_size": len(PIECES), "hf_tokenizer_name": "org/name"}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CLIP, "text_cfg": text}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    _tokenizer(folder)

    def reference(_: list[Path]) -> Tensor:
        return model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS))  # type: ignore[no-any-return]

    spec = {"kind": "open_clip", "model": f"local-dir:{folder}"}
    return Foreign("open_clip with a tokenizer of transformers, text", "text", spec, reference, folder, tokenizer=True)


# ---- timm


def of_timm(root: Path) -> list[Foreign]:
    """A folder as timm saves it for the hub, and checkpoints of its training."""
    model = timm.create_model("test_vit").eval()
    timm.models.save_for_hf(model, root / "hub", model_config={"num_classes": 1000})
    state = model.state_dict()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def reference(pictures: list[Path]) -> Tensor:
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
        return model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[no-any-return]

    found = [
        Foreign("timm as for the hub", "image", {"model": f"local-dir:{root / 'hub'}"}, reference, root / "hub"),
    ]
    checkpoints: dict[str, Any] = {
        "timm checkpoint with its head": state,
        "timm checkpoint, nested and prefixed": {"state_dict_ema": {f"module.{k}": v for k, v in state.items()}},
    }
    for name, content in checkpoints.items():
        file = root / f"{len(found)}.pth"
        torch.save(content, file)
        found.append(Foreign(name, "image", {"model": "test_vit", "checkpoint": str(file)}, reference, root))
    return [Foreign(f.name, f.modality, {"kind": "timm", **f.spec}, f.reference, f.folder) for f in found]


# ---- the table


def outcome(foreign: Foreign, pictures: list[Path], without: tuple[str, ...] = ()) -> str:
    """``loads`` where csalign's output equals the library's, else csalign's message; AssertionError if they differ."""
    expected = None if without else foreign.reference(pictures)
    for name in without:
        for file in foreign.folder.rglob(name):
            file.unlink()
    other = {"kind": "open_clip", "random_init": True, "config": {}}
    recipe = Recipe.model_validate(
        {"name": "x", "encoders": {"image": other, "text": other, foreign.modality: foreign.spec}}
    )
    try:
        encoder = load_encoders(recipe, None, torch.device("cpu"), [foreign.modality])[foreign.modality]
        check_tower(encoder, f"encoders.{foreign.modality}")
    except InputError as error:
        message = str(error).splitlines()[0].replace(f"{foreign.folder}/", "").replace(str(foreign.folder), "FOLDER")
        return message.partition(": ")[2]
    assert expected is not None, f"{foreign.name} loads without {without}"
    table = pd.DataFrame({"text": CAPTIONS} if foreign.modality == "text" else {"locator": [str(p) for p in pictures]})
    difference = float((encoder.module(encoder.load(table)) - expected).abs().max())
    assert difference <= TOLERANCE, f"{foreign.name} differs from its library by {difference:.1e}"
    return "loads"


@torch.inference_mode()
def table() -> str:
    """The table in Markdown; AssertionError for a model that loads otherwise than in its own library."""
    torch.manual_seed(0)
    lines = ["| model | as saved | without tokenizer | without preprocessor |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        root = Path(name)
        pictures = [root / f"{i}.png" for i in range(3)]
        rng = np.random.default_rng(0)
        for path, size in zip(pictures, ((40, 50), (64, 32), (33, 90)), strict=True):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
        made = {"open_clip": of_open_clip, "transformers": of_transformers, "st": of_sentence_transformers}
        for kind, make in {**made, "timm": of_timm}.items():
            for foreign in make(root / kind):
                saved = outcome(foreign, pictures)
                tokenizer = outcome(foreign, pictures, _TOKENIZER) if foreign.tokenizer else ""
                preprocessor = outcome(foreign, pictures, _PREPROCESSOR) if foreign.preprocessor else ""
                lines.append(f"| {foreign.name} | {saved} | {tokenizer} | {preprocessor} |")
    return "\n".join(lines)


def on_page() -> str:
    """The table that stands in docs/encoders.md."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.stdout.write(f"{PAGE.name} written\n")
