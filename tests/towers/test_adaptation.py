"""Towers in training, live: LoRA, partial unfreezing, precision, resuming, and what a run leaves for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import peft
import pytest
import torch
from safetensors.torch import load_file
from trained_runs import QUIET, assert_resumes_bitwise, recipe_of, run_of, stored, trained

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders import load_encoders
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.lora import split_attention
from cs_aligner_cli.towers.towers import Towers, count_parameters, plan_towers
from cs_aligner_cli.towers.weights import read_plans
from cs_aligner_cli.training.optimizer import make_optimizer

Csalign = Callable[..., Any]
Refused = Callable[..., str]
LORA = {"image": ("train.image.tune=lora",), "text": ("train.text.tune=lora",)}
BOTH = (*LORA["image"], *LORA["text"], "train.lr=0.01")


# ---- from recipe to weights, resumed bitwise


def test_lora_on_text_beside_an_adapter_on_images_resumes_bitwise_and_moves_both(
    photos_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*LORA["text"], "train.text.lora={rank: 4, dropout: 0.1}", "train.image.adapter={kind: bottleneck}")
    recipe = assert_resumes_bitwise(photos_recipe, tmp_path, monkeypatch, *settings, "train.epochs=3", "train.lr=0.01")
    names = set(load_file(run_of(recipe) / "best.safetensors"))
    assert {name.partition(".lora_")[0] for name in names if name.startswith("parts.text.")} == {
        f"parts.text.transformer.resblocks.{block}.attn.{part}" for block in (0, 1) for part in ("in_proj", "out_proj")
    }
    assert not any("base_layer" in name for name in names), "frozen weights have no place in the run"
    for modality in ("image", "text"):
        frozen = stored(recipe, modality, "frozen")
        frozen /= np.linalg.norm(frozen, axis=1, keepdims=True)
        assert np.abs(stored(recipe, modality) - frozen).max() > 1e-3
    assert (run_of(recipe) / "peft_text" / "adapter_config.json").is_file()
    assert not (run_of(recipe) / "open_clip").exists()  # an adapter stands on top


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_resumes_bitwise_and_keeps_weights_in_float32(
    precision: str, photos_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = f"train.precision={precision}"
    recipe = assert_resumes_bitwise(photos_recipe, tmp_path, monkeypatch, *BOTH, half, "train.keep_states=1")
    state = json.loads((run_of(recipe) / "last.json").read_text())
    assert ("scale" in state["scaler"]) == (precision == "fp16")
    full = trained(photos_recipe, tmp_path / "full", *BOTH, "train.log_steps=1")
    logs = [
        [json.loads(line) for line in (run_of(r) / "metrics.jsonl").read_text().splitlines()] for r in (recipe, full)
    ]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.01)
    assert all(value.dtype == torch.float32 for value in load_file(run_of(recipe) / "best.safetensors").values())


def test_fp16_gradients_are_unscaled_before_they_are_clipped_and_logged(photos_recipe: Path, tmp_path: Path) -> None:
    """With next to no learning rate both runs see the same gradients at every step that fp16 does not leave out."""
    norms = {}
    for precision in ("fp32", "fp16"):
        settings = (*BOTH, "train.lr=1e-12", "train.epochs=8", "train.log_steps=1", f"train.precision={precision}")
        recipe = trained(photos_recipe, tmp_path / precision, *settings)
        lines = [json.loads(line) for line in (run_of(recipe) / "metrics.jsonl").read_text().splitlines()]
        norms[precision] = [line["grad_norm"] for line in lines if "grad_norm" in line]
    kept = [(half, full) for half, full in zip(norms["fp16"], norms["fp32"], strict=True) if half is not None]
    assert len(kept) >= 8
    for half, full in kept:
        assert half == pytest.approx(full, rel=0.05)


def test_partly_unfrozen_towers_train_and_are_read_back(photos_recipe: Path, tmp_path: Path) -> None:
    settings = (
        "train.image.tune=full",
        "train.text.tune=full",
        "train.image.train_blocks=1",
        "train.image.layer_decay=0.5",
    )
    recipe = trained(photos_recipe, tmp_path / "run", *settings, "train.text.grad_checkpointing=true", "train.lr=0.01")
    names = set(load_file(run_of(recipe) / "best.safetensors"))
    assert not any("visual" in name or "conv1" in name or "image.transformer.resblocks.0." in name for name in names)
    assert any("image.transformer.resblocks.1." in name for name in names)
    assert any("text.transformer.resblocks.0." in name for name in names)
    assert read_plans(run_of(recipe) / "best.safetensors")["image"].train_blocks == 1
    assert np.abs(stored(recipe, "image")).max() > 0


def test_an_adapter_on_top_of_a_live_tower(photos_recipe: Path, tmp_path: Path) -> None:
    settings = (*LORA["text"], "train.text.adapter_on_top=true", "train.embed_dim=12")
    recipe = trained(photos_recipe, tmp_path / "run", *settings)
    assert stored(recipe, "text").shape == (8, 12)
    names = set(load_file(run_of(recipe) / "best.safetensors"))
    assert any("lora_A" in name for name in names) and any(name.startswith("parts.text.1.") for name in names)


def test_layer_decay_gives_every_block_its_rate(photos_recipe: Path, tmp_path: Path) -> None:
    recipe = recipe_of(photos_recipe, tmp_path / "run", "train.image.tune=full", "train.image.layer_decay=0.5")
    run_stage("prepare", recipe, QUIET)
    from cs_aligner_cli.data.prepared import PreparedData

    data = PreparedData(Layout(recipe).prepared.path)
    encoders = load_encoders(recipe, data, torch.device("cpu"), ["image"])
    assert isinstance(recipe.train, Train)
    towers = Towers(plan_towers(recipe.train, {"image": 16, "text": 16}), encoders, 1.0)
    scale = {
        id(p): group["lr_scale"] for group in make_optimizer(towers, recipe.train).param_groups for p in group["params"]
    }
    tower = encoders["image"].module
    assert scale[id(tower.conv1.weight)] == 0.5**3
    assert scale[id(tower.transformer.resblocks[0].attn.in_proj_weight)] == 0.5**2
    assert scale[id(tower.transformer.resblocks[1].ln_1.weight)] == 0.5
    assert scale[id(tower.proj)] == 1.0
    assert scale[id(towers.log_logit_scale)] == 1.0
    assert len(scale) == len(list(towers.parameters()))


def test_layer_decay_acts_in_training(photos_recipe: Path, tmp_path: Path) -> None:
    tuned = ("train.image.tune=full", "train.text.tune=full", "train.lr=0.01", "train.weight_decay=0")
    start = load_file(run_of(trained(photos_recipe, tmp_path / "start", *tuned, "train.lr=1e-12")) / "last.safetensors")
    recipe = trained(photos_recipe, tmp_path / "run", *tuned, "train.image.layer_decay=1e-5")
    moved = {
        name: float((value - start[name]).abs().max())
        for name, value in load_file(run_of(recipe) / "last.safetensors").items()
    }
    assert moved["parts.image.conv1.weight"] < 1e-6 < 1e-4 < moved["parts.image.proj"]
    assert moved["parts.text.token_embedding.weight"] > 1e-4


def test_what_is_trained_is_reported_before_the_first_step(
    csalign: Csalign, photos_recipe: Path, tmp_path: Path
) -> None:
    settings = [
        part for s in (*LORA["text"], "train.image.adapter={kind: linear}", "train.epochs=1") for part in ("--set", s)
    ]
    for command in ("prepare", "embed", "train"):
        called = csalign(command, photos_recipe, "--json", *settings)
        assert called.exit_code == 0, called.stderr
    # Two blocks of width 32: rank 8 times the sides of in_proj (32 + 96) and out_proj (32 + 32).
    lora = 2 * 8 * (128 + 64)
    assert f"aligned: trains {lora:,} of " in called.stderr
    assert "weights of the text encoder by LoRA in 8 tensors" in called.stderr
    assert f"aligned: trains {16 * 16 + 16:,} weights of the image adapter in 2 tensors" in called.stderr
    assert called.json["runs"]["aligned"]["trainable_parameters"] == lora + 16 * 16 + 16 + 1


def test_lora_that_matches_nothing_is_refused_with_its_key(
    refused: Refused, csalign: Csalign, photos_recipe: Path
) -> None:
    settings = [part for s in (*BOTH, "train.text.lora.targets=[q_proj]") for part in ("--set", s)]
    assert csalign("prepare", photos_recipe, "-q").exit_code == 0
    said = refused("train", photos_recipe, "-q", *settings)
    assert "train.text.lora.targets: no linear map of TextTransformer is named 'q_proj'" in said


def test_a_step_that_memory_does_not_hold_is_reported_with_the_remedy(
    csalign: Csalign, refused: Refused, photos_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("prepare", "embed"):
        assert csalign(command, photos_recipe, "-q").exit_code == 0

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Towers, "forward", full)
    said = refused("train", photos_recipe, "-q")
    assert said.startswith(
        "aligned: a step with 4 image items and 4 text items: memory does not hold it\nA smaller train.micro_batch"
    )


def test_idle_settings_are_refused(refused: Refused, photos_recipe: Path) -> None:
    for setting, why in {
        "train.image.adapter_on_top=true": "adapter_on_top: true goes with tune lora or full, not adapter",
        "train.image.train_blocks=1": "train_blocks goes with tune: full, not adapter",
        "train.image.layer_decay=0.5": "layer_decay and grad_checkpointing go with tune lora or full",
    }.items():
        assert why in refused("recipe", "validate", photos_recipe, "--set", setting)


# ---- what a run leaves


def pixels_and_tokens(folder: str, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The dev photos and captions by open_clip's own preprocessing and tokenizer."""
    from PIL import Image

    root = Path(str(recipe.data.root))
    table = pd.read_csv(root / "captions.csv")
    table = table[table["split"] == "dev"]
    _, _, preprocess = open_clip.create_model_and_transforms(folder)
    files = [root / "images" / name for name in table["image"].drop_duplicates()]
    pixels = torch.stack([preprocess(Image.open(file)) for file in files])
    return pixels, open_clip.get_tokenizer(folder)(table["caption"].tolist())


@pytest.mark.parametrize("settings", [BOTH, (*LORA["text"], "train.image.tune=frozen", "train.lr=0.01")])
def test_the_merged_checkpoint_gives_in_open_clip_what_the_aligned_store_holds(
    settings: tuple[str, ...], photos_recipe: Path, tmp_path: Path
) -> None:
    recipe = trained(photos_recipe, tmp_path / "run", *settings)
    folder = f"local-dir:{run_of(recipe) / 'open_clip'}"
    model = open_clip.create_model(folder).eval()
    pixels, tokens = pixels_and_tokens(folder, recipe)
    with torch.inference_mode():
        expected = {"image": model.encode_image(pixels, True), "text": model.encode_text(tokens, True)}
    for modality, values in expected.items():
        np.testing.assert_allclose(stored(recipe, modality), values.numpy(), atol=1e-5)


def test_the_peft_folder_gives_in_peft_what_the_aligned_store_holds(photos_recipe: Path, tmp_path: Path) -> None:
    recipe = trained(photos_recipe, tmp_path / "run", *BOTH)
    frozen = trained(
        photos_recipe, tmp_path / "full", "train.text.tune=full", "train.image.tune=full", "train.lr=1e-12"
    )
    folder = f"local-dir:{run_of(frozen) / 'open_clip'}"  # the untrained weights, in open_clip's own form
    text = open_clip.create_model(folder, force_custom_text=True).text
    split_attention(text)
    loaded = peft.PeftModel.from_pretrained(text, str(run_of(recipe) / "peft_text")).eval()
    with torch.inference_mode():
        values = loaded(pixels_and_tokens(folder, recipe)[1])
    np.testing.assert_allclose(stored(recipe, "text"), torch.nn.functional.normalize(values).numpy(), atol=1e-5)


def test_the_card_names_recipe_metrics_and_encoders(photos_recipe: Path, tmp_path: Path) -> None:
    recipe = trained(photos_recipe, tmp_path / "run", *BOTH)
    card = json.loads((run_of(recipe) / "card.json").read_text())
    assert card["recipe"] == recipe.model_dump(mode="json")
    assert set(card["best"]["val_R@1"]) == {"i2t", "t2i"}
    identity = Store(Layout(recipe).frozen("dev").path).identity
    for modality in ("image", "text"):
        assert card["encoders"][modality]["weights"] == identity[modality]["weights"]
        assert card["towers"][modality]["lora"]["rank"] == 8
    assert {"peft", "transformers", "torch"} <= set(card["versions"])


# ---- embed --adapter on new data


def test_embed_adapter_gives_another_run_the_same_towers(csalign: Csalign, photos_recipe: Path, tmp_path: Path) -> None:
    recipe = trained(photos_recipe, tmp_path / "run", *BOTH)
    other = ["--set", f"run_dir={tmp_path / 'other'}", "-q"]
    assert csalign("prepare", photos_recipe, *other).exit_code == 0
    called = csalign("embed", photos_recipe, "--adapter", tmp_path / "run", "--json", *other)
    assert called.exit_code == 0, called.stderr
    assert set(called.json["stores"]) == {"frozen", "aligned"}
    for modality in ("image", "text"):
        theirs = Store(tmp_path / "other" / "embeddings" / "aligned" / "dev").array(modality).all()
        np.testing.assert_array_equal(theirs, stored(recipe, modality))


@pytest.mark.parametrize("settings", [BOTH, ("train.image.adapter={kind: linear}",)])
def test_an_adapter_made_for_another_encoder_is_refused(
    settings: tuple[str, ...], csalign: Csalign, refused: Refused, photos_recipe: Path, tmp_path: Path
) -> None:
    recipe = trained(photos_recipe, tmp_path / "run", *settings)
    other = ["--set", f"run_dir={tmp_path / 'other'}", "-q", "--set", "seed=5"]  # other random weights
    assert csalign("prepare", photos_recipe, *other).exit_code == 0
    said = refused("embed", photos_recipe, "--adapter", tmp_path / "run", *other)
    assert f"{run_of(recipe) / 'best.safetensors'}: its image tower was trained on open_clip" in said
    assert "weights differs" in said
    assert "card.json" in said


def test_a_folder_without_weights_is_refused(
    csalign: Csalign, refused: Refused, photos_recipe: Path, tmp_path: Path
) -> None:
    assert csalign("prepare", photos_recipe, "-q").exit_code == 0
    said = refused("embed", photos_recipe, "-q", "--adapter", tmp_path)
    assert f"embed.weights: {tmp_path} holds no trained weights" in said


def test_weights_held_in_float16_are_not_trained() -> None:
    towers = Towers(plan_towers(Train(), {"image": 4, "text": 4}), {}, 1.0)
    towers.parts.half()
    from cs_aligner_cli.training.optimizer import loss_scaler

    with pytest.raises(InputError, match="is trained, but held in float16"):
        loss_scaler(towers, "fp16", torch.device("cpu"))


def test_parameters_are_counted_by_part() -> None:
    towers = Towers(plan_towers(Train(embed_dim=3), {"image": 4, "text": 5}), {}, 1.0)
    counts = count_parameters(towers)
    assert counts["the image adapter"][1:] == (3 * 4 + 1024 * 5 + 3 * 1025,) * 2
    assert set(counts) == {"the image adapter", "the text adapter"}


# ---- the shipped recipe: stored image features beside a live sentence-transformers tower


def small_pipeline(folder: Path, captions: list[str]) -> Path:
    """A sentence-transformers folder around a small BERT that knows the words of some captions."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for caption in captions for word in caption.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    wrapped.save_pretrained(folder / "bert")
    parts = [modules.Transformer(str(folder / "bert")), modules.Pooling(32, "mean"), modules.Dense(32, 32)]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "pipeline"))
    return folder / "pipeline"


def test_the_shipped_lora_recipe_runs_learns_and_leaves_a_peft_folder(features_root: Path, tmp_path: Path) -> None:
    captions = pd.read_csv(features_root / "captions.csv")["caption"].tolist()
    model = f"encoders.text.model=local-dir:{small_pipeline(tmp_path / 'model', captions)}"
    settings = [f"data.root={features_root}", model, "train.batch_size=32", "train.lr=0.01", "train.epochs=2"]
    recipe = load_recipe("flickr8k_lora", [*settings, f"run_dir={tmp_path / 'run'}"])
    for stage in ("prepare", "embed", "train", "embed", "eval_retrieval"):
        run_stage(stage, recipe, QUIET)
    lines = [json.loads(line) for line in (run_of(recipe) / "metrics.jsonl").read_text().splitlines()]
    assert {line["epoch"] for line in lines} == {1, 2}
    text = [name for name in load_file(run_of(recipe) / "best.safetensors") if name.startswith("parts.text.")]
    assert all("lora_" in name or name.startswith("parts.text.1.") for name in text), "the pipeline's Dense is frozen"
    saved = load_file(run_of(recipe) / "peft_text" / "adapter_model.safetensors")
    assert len(saved) == 2 * 4 * 2  # A and B of query, key, value and output in both layers
    assert all(name.startswith("base_model.model.encoder.layer.") for name in saved)
    assert any(value.any() for name, value in saved.items() if "lora_B" in name)
