"""Several layers of an encoder at once: the library's own hidden states, pooled as the tower pools, side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from test_encoder_kinds import (
    BERT_SPECIAL,
    CAPTIONS,
    bert,
    clip,
    embedded,
    encoder,
    llama,
    of,
    photos,
    siglip,
    word_tokenizer,
)
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.hub import same_encoder
from cs_aligner_cli.experiments.plan import experiment_id
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout

__all__ = ["bert", "clip", "llama", "photos", "siglip"]  # fixtures


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def assert_laid_out(make: Any, pictures: list[Path] | None, count: int) -> None:
    """The last layer is the tower's embedding, and several are those that stores of one layer each would hold."""
    plain, first, both = make(), make(layers=[1]), make(layers=[-1, 1])
    assert both.identity["layers"] == [count, 1] and both.identity["widths"] == [plain.dim, first.dim]
    apart = [embedded(plain, pictures), embedded(first, pictures)]
    joined = embedded(both, pictures)
    torch.testing.assert_close(joined, torch.cat([*map(unit, apart)], 1) / 2**0.5, atol=1e-6, rtol=1e-5)
    mean = sum(unit(block) @ unit(block).T for block in apart) / 2
    torch.testing.assert_close(joined @ joined.T, mean, atol=1e-5, rtol=0)


def test_the_last_layer_is_the_embedding_and_a_layer_that_is_none_is_named(bert: Path, tmp_path: Path) -> None:
    def make(**more: Any) -> Encoder:
        return encoder("text", tmp_path, kind="transformers", model=of(bert), **more)

    plain, last = make(), make(layers=[-1])
    assert torch.equal(embedded(last), embedded(plain))
    assert last.identity["layers"] == [2] and not same_encoder(last.identity, plain.identity)
    with pytest.raises(InputError, match=r"text\.layers: the model has 2 layers, and -3 is none of them"):
        make(layers=[-3])
    with pytest.raises(InputError, match=r"text\.layers: -1 and 2 are one layer of 2"):
        make(layers=[-1, 2])


@pytest.mark.parametrize("name", ["llama", "clip", "siglip"])
def test_text_models_of_transformers(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = of(request.getfixturevalue(name))

    def make(**more: Any) -> Encoder:
        return encoder("text", tmp_path, kind="transformers", model=model, **more)

    assert_laid_out(make, None, 2)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "pooler"])
def test_an_inner_layer_is_the_librarys_hidden_state_under_the_towers_pooling(
    bert: Path, tmp_path: Path, pooling: str
) -> None:
    model, tokenizer = transformers.BertModel.from_pretrained(bert).eval(), word_tokenizer(**BERT_SPECIAL)
    states = [
        model(**tokenizer(c, return_tensors="pt", truncation=True, max_length=16), output_hidden_states=True)
        for c in CAPTIONS
    ]
    at = {"mean": lambda h: h.mean(0), "last": lambda h: h[-1], "cls": lambda h: h[0], "pooler": lambda h: h[0]}
    expected = torch.stack([at[pooling](state.hidden_states[1][0]) for state in states])
    found = encoder("text", tmp_path, kind="transformers", model=of(bert), pooling=pooling, layers=[1])
    torch.testing.assert_close(embedded(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_vision_models_of_transformers(
    name: str, photos: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)

    def make(**more: Any) -> Encoder:
        return encoder("image", tmp_path, kind="transformers", model=of(folder), **more)

    assert_laid_out(make, photos, 2)
    with torch.inference_mode():
        found = make(layers=[1])
        model: Any = transformers.AutoModel.from_pretrained(folder).eval().vision_model
        pixels = found.load(pd.DataFrame({"locator": [path.name for path in photos]}))
        hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
        # CLIP pools by its class token; SigLIP has none.
        expected = hidden[:, 0] if name == "clip" else hidden.mean(1)
        torch.testing.assert_close(embedded(found, photos), expected, atol=1e-5, rtol=1e-5)


def test_a_sentence_transformer_pools_inner_layers_by_its_own_module(bert: Path, tmp_path: Path) -> None:
    parts = [modules.Transformer(str(bert)), modules.Pooling(32, pooling_mode="mean"), modules.Dense(32, 24)]
    SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(str(tmp_path / "sentences"))

    def make(**more: Any) -> Encoder:
        return encoder("text", tmp_path, kind="sentence_transformers", model=of(tmp_path / "sentences"), **more)

    assert_laid_out(make, None, 2)
    plain = encoder("text", tmp_path, kind="transformers", model=of(bert), pooling="mean", layers=[1])
    torch.testing.assert_close(embedded(make(layers=[1])), embedded(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("test_vit", 6), ("test_efficientnet", 5)])
def test_timm(name: str, count: int, photos: list[Path], tmp_path: Path) -> None:
    def make(**more: Any) -> Encoder:
        return encoder("image", tmp_path, kind="timm", model=name, random_init=True, **more)

    assert_laid_out(make, photos, count)


CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 3},
}
RESNET = {**CONFIG, "vision_cfg": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1], "head_width": 16}}


@pytest.mark.parametrize(
    ("modality", "config", "count"), [("image", CONFIG, 2), ("text", CONFIG, 3), ("image", RESNET, 5)]
)
def test_open_clip(modality: str, config: dict[str, Any], count: int, photos: list[Path], tmp_path: Path) -> None:
    def make(**more: Any) -> Encoder:
        return encoder(modality, tmp_path, kind="open_clip", random_init=True, config=config, **more)

    assert_laid_out(make, photos if modality == "image" else None, count)


def test_layers_of_the_image_are_not_those_of_its_models_text_tower_and_keys_that_are_refused() -> None:
    def recipe(**more: Any) -> Recipe:
        content = {"kind": "open_clip", "random_init": True, "config": CONFIG, "layers": [-1, 1]}
        return Recipe.model_validate({"name": "x", "encoders": {"image": content}, **more})

    encoders = recipe(train={"text": {"tune": "lora"}}).encoders
    assert encoders.of("text") == encoders.image.model_copy(update={"layers": None}) != encoders.of("image")
    with pytest.raises(ValidationError, match=r"train\.image\.tune: lora trains the encoder"):
        recipe(train={"image": {"tune": "lora"}})
    for layers, why in (
        ([0], "expected a list of layers"),
        ([2, 2], "named twice"),
        ([], "a list of layers"),
        (-1, "a list of"),
    ):
        with pytest.raises(ValidationError, match=why):
            Recipe.model_validate(
                {"name": "x", "encoders": {"image": {"kind": "timm", "model": "m", "layers": layers}}}
            )


def test_outputs_of_before_the_key_was_there_are_fresh(tmp_path: Path) -> None:
    def recipe(**more: Any) -> Recipe:
        content = {"kind": "open_clip", "random_init": True, "config": CONFIG, **more}
        return Recipe.model_validate({"name": "x", "run_dir": tmp_path, "encoders": {"image": content}, "train": {}})

    def outputs(of: Recipe) -> list[Artifact]:
        layout = Layout(of)
        return [layout.tower_check(["image", "text"]), layout.frozen("train"), layout.trained("aligned")]

    plain = recipe(layers=None)
    for now, named in zip(outputs(plain), outputs(recipe(layers=[-1])), strict=True):
        then = json.loads(json.dumps(now.recipe, default=str))
        for tower in filter(None, then["encoders"].values()):
            tower.pop("layers", None)
        with replace(now, recipe=then).building():
            pass
        record = now.fresh()
        assert record is not None, now.name
        assert "encoders.image.layers was not set and is now [-1]" in named.changes(record)
    then = plain.model_dump(mode="json")
    then["encoders"]["image"].pop("layers", None)
    assert (
        experiment_id(then)
        == experiment_id(plain.model_dump(mode="json"))
        == experiment_id(recipe().model_dump(mode="json"))
        != experiment_id(recipe(layers=[-1]).model_dump(mode="json"))
    )


@torch.inference_mode()
def test_inner_layers_are_pooled_by_the_tokens_that_the_towers_head_reads(photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    picture = {"image_size": 32, "patch_size": 16}
    chinese = transformers.ChineseCLIPConfig(
        text_config={"vocab_size": 64, "max_position_embeddings": 16, **size},
        vision_config={**picture, **size},
        projection_dim=24,
    )
    transformers.ChineseCLIPModel(chinese).save_pretrained(tmp_path / "chinese")
    word_tokenizer(**BERT_SPECIAL).save_pretrained(tmp_path / "chinese")
    found = encoder("text", tmp_path, kind="transformers", model=of(tmp_path / "chinese"), layers=[1])
    model: Any = transformers.AutoModel.from_pretrained(tmp_path / "chinese").eval().text_model
    given = word_tokenizer(**BERT_SPECIAL)(CAPTIONS, return_tensors="pt", padding=True, truncation=True, max_length=16)
    expected = model(**given, output_hidden_states=True).hidden_states[1][:, 0]
    torch.testing.assert_close(embedded(found), expected, atol=1e-5, rtol=1e-5)
    assert found.identity["inner_pooling"] == "cls", "it projects the first token, where CLIP does the last"

    beit = transformers.BeitModel(transformers.BeitConfig(use_mean_pooling=True, **picture, **size)).eval()
    beit.save_pretrained(tmp_path / "beit")
    transformers.BeitImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(
        tmp_path / "beit"
    )
    found = encoder("image", tmp_path, kind="transformers", model=of(tmp_path / "beit"), layers=[1])
    pixels = found.load(pd.DataFrame({"locator": [path.name for path in photos]}))
    expected = beit(pixel_values=pixels, output_hidden_states=True).hidden_states[1][:, 1:].mean(1)
    torch.testing.assert_close(embedded(found, photos), expected, atol=1e-5, rtol=1e-5)
    assert found.identity["inner_pooling"] == "mean from token 1", "its pooler leaves the class token out"
