"""Towers that read tokens, through the command line: from token features or encoders to aligned stores."""

# ruff: noqa: E501 (a message is easier to read on one line)
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CAPTIONS_PER_IMAGE, features_recipe_content
from token_files import TOKENS, manifest_of, write_tokens
from trained_runs import assert_resumes_bitwise

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.objectives import token_cs_divergence
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.query_encoder import QueryEncoder
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers.weights import load_towers, read_plans

Csalign = Callable[..., Any]
Refused = Callable[..., str]
LINEAR = "{reads: tokens, adapter: {kind: linear}}"


@pytest.fixture
def tokens_recipe(features_root: Path, tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """A recipe over ``features_root`` with token features, which both towers read."""
    write_tokens(features_root)
    manifest = write_yaml("manifest.yaml", **manifest_of(features_root))
    content = features_recipe_content(features_root, tmp_path / "run")
    tower = {"reads": "tokens", "adapter": {"kind": "residual_mlp", "hidden_dim": 32}}
    content["train"] |= {"epochs": 12, "image": tower, "text": tower, "log_steps": 1}
    content["train"]["objective"] = {"tokens": {"weight": 0.5}}
    return write_yaml("tokens.yaml", **content | {"data": {"manifest": str(manifest)}})


def done(csalign: Csalign, command: str, recipe: Path, *options: str) -> Any:
    called = csalign(command, recipe, "--json", "-q", *options)
    assert called.exit_code == 0, called.stderr
    return called.json


def logged(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "terms" in line]


# ---- stored token features


def test_a_run_on_token_features_from_files_to_retrieval(
    csalign: Csalign, tokens_recipe: Path, features_root: Path, tmp_path: Path
) -> None:
    result = done(csalign, "run", tokens_recipe)
    assert result["eval_retrieval"]["aligned"]["i2t"]["R@10"] > 0.5
    folder = tmp_path / "run" / "embeddings" / "tokens"
    assert sorted(path.name for path in folder.iterdir()) == ["dev", "train"]
    table = pd.read_csv(features_root / "images.csv")
    dev = np.flatnonzero(table["split"] == "dev")
    store = TokenStore(folder / "dev")
    assert list(store.keys("image")["image_id"]) == list(table["image"][dev])
    mask = np.load(features_root / "image_mask.npy")[dev]
    np.testing.assert_array_equal(store.array("image").lengths, mask.sum(1))
    tokens = np.load(features_root / "image_tokens.npy")[dev].astype(np.float32)
    powered = np.sign(tokens) * np.abs(tokens) ** 0.5
    kept = store.array("image").take(np.arange(40))
    for i in range(40):
        np.testing.assert_allclose(kept[i, : mask[i].sum()], powered[i][mask[i]], rtol=1e-3, atol=1e-4)
    assert store.identity["text"]["tokens"] == "text_tokens.npy"
    lines = logged(tmp_path / "run" / "train" / "aligned")
    assert all(line["weights"]["tokens"] == 0.5 and line["terms"]["tokens"] > 0 for line in lines)
    assert all(line["grad_norm_ratio"]["tokens"] > 0 for line in lines)
    total = lines[3]["terms"]["infonce"] + lines[3]["terms"]["cs"] + 0.5 * lines[3]["terms"]["tokens"]
    assert lines[3]["loss"] == pytest.approx(total, rel=1e-5)
    assert lines[-1]["terms"]["tokens"] < lines[0]["terms"]["tokens"]
    assert {plan.reads for plan in read_plans(tmp_path / "run/train/aligned/best.safetensors").values()} == {"tokens"}
    again = {stage: done(csalign, stage, tokens_recipe) for stage in ("prepare", "embed", "train")}
    assert {stage["status"] for stage in again.values()} == {"fresh"}
    assert again["embed"]["stores"]["tokens"]["dev"]["image"]["tokens"] == int(mask.sum())


def test_an_aligned_store_is_the_towers_output_and_another_run_can_take_its_weights(
    csalign: Csalign, tokens_recipe: Path, tmp_path: Path
) -> None:
    for command in ("prepare", "embed", "train", "embed"):
        done(csalign, command, tokens_recipe)
    embeddings, weights = tmp_path / "run" / "embeddings", tmp_path / "run/train/aligned/best.safetensors"
    tokens = TokenStore(embeddings / "tokens" / "dev")
    towers = load_towers(weights, {}, {m: dim for m, (_, dim) in TOKENS.items()}).eval()
    for modality in TOKENS:
        array = tokens.array(modality)
        inputs = torch.from_numpy(array.take(np.arange(len(array))))
        with torch.inference_mode():
            pooled, of_tokens = towers.forward_tokens(modality, inputs)
        assert torch.equal(token_mask(of_tokens), token_mask(inputs))
        torch.testing.assert_close(of_tokens[token_mask(of_tokens)].norm(dim=1), torch.ones(int(array.lengths.sum())))
        stored = Store(embeddings / "aligned" / "dev").array(modality).all()
        np.testing.assert_allclose(stored, pooled.numpy(), atol=1e-5)
    other = ("--set", f"run_dir={tmp_path / 'other'}", "--adapter", str(tmp_path / "run"), "--set", "train=null")
    done(csalign, "prepare", tokens_recipe, *other[:2])
    made = done(csalign, "embed", tokens_recipe, *other)
    assert set(made["stores"]) == {"frozen", "tokens", "aligned"} and set(made["stores"]["tokens"]) == {"dev"}
    again = Store(tmp_path / "other" / "embeddings" / "aligned" / "dev").array("text").all()
    np.testing.assert_array_equal(again, Store(embeddings / "aligned" / "dev").array("text").all())


def test_the_loss_in_parts_is_that_of_the_whole_batch(csalign: Csalign, tokens_recipe: Path, tmp_path: Path) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, tokens_recipe)
    levels = ("--set", "train.objective.levels=[{group: 1, divergence: 0.5}, {group: 2, weight: 0.5}]")
    levels += ("--set", "train.objective.token_exchange={partner: nearest}", "--set", "train.objective.tokens=null")
    done(csalign, "train", tokens_recipe, *levels, "--set", "train.epochs=3")
    whole = logged(tmp_path / "run" / "train" / "aligned")
    assert [*whole[0]["terms"]][2:5] == ["level_1", "level_1_cs", "level_2"]
    assert whole[-1]["terms"]["token_exchange"] < whole[0]["terms"]["token_exchange"]
    assert whole[-1]["terms"]["level_1"] < whole[0]["terms"]["level_1"]
    assert whole[0]["weights"]["level_2"] == 0.5 and "level_2_cs" not in whole[0]["weights"]
    settings = (*levels, "--set", "train.epochs=3", "--set", "train.micro_batch_size=8")
    done(csalign, "train", tokens_recipe, "--archive", *settings)
    parts = logged(tmp_path / "run" / "train" / "aligned")
    for one, two in zip(whole, parts, strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
        assert one["terms"] == pytest.approx(two["terms"], rel=1e-3)


def test_a_transformer_with_dropout_over_tokens_resumes_bitwise(
    tokens_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = "{reads: tokens, adapter: {kind: transformer, width: 16, layers: 1, heads: 2, dropout: 0.1%s}}"
    settings = (f"train.image={transformer % ''}", f"train.text={transformer % ', pooling: query'}")
    # A share of the pairs, all captions, a memory: tokens go along with the rest of a step.
    more = ("data.unpaired={paired_fraction: 0.8}", "train.captions=all", "train.objective.memory=50")
    more += ("train.objective.levels=[{group: 2, divergence: 0.1}]", "train.objective.token_exchange={}")
    more += ("train.objective.structure={}", "train.objective.teacher={kind: ridge}")
    assert_resumes_bitwise(tokens_recipe, tmp_path, monkeypatch, *settings, *more, "train.epochs=2")


def test_the_average_of_a_prior_resumes_bitwise(
    tokens_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a state is read into lies in memory as what torch makes does: products differ in their last digits else."""
    prior = "train.text={reads: tokens, adapter: {kind: prior, width: 16, layers: 1, heads: 2}}"
    settings = ("train.captions=all", "train.objective.memory=30", "train.objective.memory_momentum=0.9")
    assert_resumes_bitwise(tokens_recipe, tmp_path, monkeypatch, prior, *settings, "train.epochs=2")


def test_a_frozen_tower_of_tokens_is_their_mean(csalign: Csalign, tokens_recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "train.text={tune: frozen, reads: tokens}", "--set", "train.embed_dim=16")
    for command in ("prepare", "embed", "train", "embed"):
        done(csalign, command, tokens_recipe, *settings, "--set", "train.epochs=1")
    array = TokenStore(tmp_path / "run" / "embeddings" / "tokens" / "dev").array("text")
    means = np.nanmean(array.take(np.arange(len(array))), axis=1)
    stored = Store(tmp_path / "run" / "embeddings" / "aligned" / "dev").array("text").all()
    np.testing.assert_allclose(stored, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)


# ---- encoders' own tokens, cached and live


def test_tokens_of_open_clip_cached_and_live_with_lora(photos_recipe: Path, tmp_path: Path) -> None:
    """Patch tokens from the store, text tokens live under LoRA; queries go through the same towers."""
    live = "{reads: tokens, tune: lora, adapter_on_top: true, lora: {rank: 2}, adapter: {kind: linear}}"
    settings = [f"train.image={LINEAR}", f"train.text={live}", "train.objective.tokens={}", "train.lr=0.01"]
    recipe = load_recipe(str(photos_recipe), [*settings, "embed.token_dtype=float32", "train.val_split=dev"])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    layout = Layout(recipe)
    assert layout.token_modalities == ["image"]
    tokens = TokenStore(layout.tokens("dev").path)
    assert tokens.array("image").lengths.tolist() == [4] * 4  # 32 pixels, patches of 16
    assert tokens.array("image").dim == 32
    with pytest.raises(InputError, match="holds no tokens of modality text"):
        tokens.array("text")
    plans = read_plans(layout.weights("aligned"))
    assert {m: (plan.in_dim, plan.out_dim) for m, plan in plans.items()} == {"image": (32, 32), "text": (32, 32)}
    assert (layout.trained("aligned").path / "peft_text" / "adapter_config.json").is_file()
    store = Store(layout.aligned("aligned", "dev").path)
    texts = pd.read_parquet(layout.prepared.path / "captions.parquet").query("split == 'dev'")["text"].tolist()
    queries = QueryEncoder(recipe, "aligned")
    np.testing.assert_allclose(queries.embed("text", texts).numpy(), store.array("text").all(), atol=1e-5)
    images = pd.read_parquet(layout.prepared.path / "images.parquet").query("split == 'dev'")["locator"]
    root = PreparedData(layout.prepared.path).root
    found = queries.embed("image", [str(root / locator) for locator in images]).numpy()
    np.testing.assert_allclose(found, store.array("image").all(), atol=1e-5)


# ---- what the term is for


def test_it_mends_tokens_that_differ_where_pooled_embeddings_are_perfect(
    csalign: Csalign, features_root: Path, tmp_path: Path, write_yaml: Callable[..., Path]
) -> None:
    """Tokens c +- 0.8 v of images and c +- 0.8 w of texts: equal means, other distributions.

    Pooled InfoNCE and CS are content from the first step on and leave the tokens apart; the token term brings them
    together, and keeps the pooled embeddings where they were.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for modality, axis, repeats in (("image", 8, 1), ("text", 9, CAPTIONS_PER_IMAGE)):
        of_items = np.pad(np.repeat(centres, repeats, axis=0), ((0, 0), (0, 2)))
        spread = 0.8 * np.eye(10)[axis]
        tokens = np.stack([of_items + spread, of_items - spread], axis=1)
        np.save(features_root / f"{modality}_tokens.npy", tokens.astype(np.float32))
        np.save(features_root / f"{modality}_mask.npy", np.ones(tokens.shape[:2], np.uint8))
    manifest = write_yaml("manifest.yaml", **manifest_of(features_root))
    results = {}
    for weight in (0.0, 1.0):
        content = features_recipe_content(features_root, tmp_path / f"run-{weight}") | {
            "data": {"manifest": str(manifest)}
        }
        content["encoders"]["image"] = {"kind": "features"}
        tower = {"reads": "tokens", "adapter": {"kind": "linear"}}
        content["train"] |= {
            "image": tower,
            "text": tower,
            "embed_dim": 10,
            "log_steps": 1,
            "weight_decay": 0.0,
            "lr": 0.02,
            "epochs": 40,
        }
        content["train"]["objective"] = {
            "pairwise": {"logit_scale": {"init": 20, "learn": False}},
            "tokens": {"weight": weight, "bandwidth": 0.5},
        }
        recipe = write_yaml(f"toy-{weight}.yaml", **content)
        for command in ("prepare", "embed", "train", "embed"):
            done(csalign, command, recipe)
        lines = logged(tmp_path / f"run-{weight}" / "train" / "aligned")
        stored = Store(tmp_path / f"run-{weight}" / "embeddings" / "aligned" / "dev")
        image, text = stored.array("image").all(), stored.array("text").all()
        cosine = float((image.repeat(CAPTIONS_PER_IMAGE, axis=0) * text).sum(1).mean())
        results[weight] = lines[0]["terms"]["tokens"], lines[-1]["terms"]["tokens"], lines[0]["terms"]["cs"], cosine
    for first, _, pooled_cs, cosine in results.values():
        assert first > 0.5 and pooled_cs < 1e-5 and cosine > 0.97
    assert results[0.0][1] > 0.9 * results[0.0][0], "nothing else sees the tokens"
    assert results[1.0][1] < 0.1 * results[1.0][0], "the token term mends them"


def test_the_term_on_stored_tokens_equals_a_loop_over_samples(
    tokens_recipe: Path, csalign: Csalign, tmp_path: Path
) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, tokens_recipe)
    store = TokenStore(tmp_path / "run" / "embeddings" / "tokens" / "dev")
    x = torch.from_numpy(store.array("image").take(np.arange(20)))[..., :16]
    y = torch.from_numpy(store.array("text").take(np.arange(0, 100, 5)))
    x, y = x / x.norm(dim=2, keepdim=True), y / y.norm(dim=2, keepdim=True)
    value = float(token_cs_divergence(x, y, 0.7071, token_mask(x), token_mask(y)))
    total = 0.0
    for a, b in zip(x, y, strict=True):
        a, b = a[token_mask(a)].double(), b[token_mask(b)].double()
        logs = [
            torch.exp(-torch.cdist(p, q).square() / (2 * 0.7071**2)).mean().log() for p, q in ((a, a), (b, b), (a, b))
        ]
        total += float(logs[0] + logs[1] - 2 * logs[2])
    assert value == pytest.approx(total / 20, abs=1e-6)


# ---- what is refused


def test_token_files_that_do_not_fit_are_refused(
    refused: Refused, tokens_recipe: Path, features_root: Path, write_yaml: Callable[..., Path]
) -> None:
    without = manifest_of(features_root)
    del without["images"]["tokens"]["mask"]
    write_yaml("manifest.yaml", **without)
    assert "images.tokens.mask: this key is required, and is missing" in refused("prepare", tokens_recipe)
    write_yaml("manifest.yaml", **manifest_of(features_root))
    tokens, mask = (np.load(features_root / f"image_{name}.npy") for name in ("tokens", "mask"))

    def said(tokens: Any = tokens, mask: Any = mask) -> str:
        np.save(features_root / "image_tokens.npy", tokens)
        np.save(features_root / "image_mask.npy", mask)
        return refused("prepare", tokens_recipe)

    no_token = mask.copy()
    no_token[17] = False
    assert "image_mask.npy: row 17 (counted from 0) has no token at all" in said(mask=no_token)
    assert f"expected a mask (200, 7) beside {features_root / 'image_tokens.npy'}, found (200, 6)" in said(
        mask=mask[:, :6]
    )
    assert "expected a mask of bool, or of 0 and 1, found float32" in said(mask=mask.astype(np.float32))
    assert "expected a mask of bool, or of 0 and 1, found int64" in said(mask=mask * 2)
    assert "expected features of shape (rows, tokens, dimensions), found (200, 24)" in said(tokens=tokens[:, 0])
    assert "image_tokens.npy: holds 199 rows, but" in said(tokens=tokens[1:], mask=mask[1:])
    wild = tokens.copy()
    wild[3, 0, 5] = np.inf
    assert "image_tokens.npy: token 0 of row 3 (counted from 0) holds NaN or infinity" in said(tokens=wild)
    (features_root / "image_mask.npy").unlink()
    assert "image_mask.npy: no such file" in refused("prepare", tokens_recipe)


def test_a_token_store_that_is_damaged_is_refused_by_name(
    csalign: Csalign, refused: Refused, tokens_recipe: Path, tmp_path: Path
) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, tokens_recipe)
    lengths = tmp_path / "run" / "embeddings" / "tokens" / "train" / "text" / "lengths-00000.npy"
    content = lengths.read_bytes()
    lengths.unlink()
    assert f"{lengths}: is missing or cut short" in refused("train", tokens_recipe)
    lengths.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "lengths-00000.npy: is damaged" in refused("train", tokens_recipe)
    lengths.write_bytes(content)
    done(csalign, "train", tokens_recipe, "--set", "train.epochs=1")


def test_towers_that_ask_for_tokens_which_nobody_has(csalign: Csalign, refused: Refused, features_recipe: Path) -> None:
    settings = ("--set", f"train.image={LINEAR}")
    assert csalign("prepare", features_recipe, "-q").exit_code == 0
    said = refused("embed", features_recipe, *settings)
    assert "train.image.reads: tokens, but encoders.image (features image_mobilenet_v2.npy) gives none" in said
    said = refused("train", features_recipe, *settings)
    assert "no token store of split train in" in said and "Make it first: csalign embed" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.image={adapter: {kind: transformer}}", "train.image: adapter of kind transformer goes with reads: tokens"),
        ("train.objective.tokens={}", "train: objective.tokens needs image.reads: tokens and text.reads: tokens"),
        ("train.objective.levels=[{}]", "train: objective.levels needs image.reads: tokens and text.reads: tokens"),
        ("train.objective.levels=[{group: 2}, {group: 2, weight: 3}]", "train.objective: levels: two have group: 2; give both weights to one"),
        ("train.objective={token_exchange: {}, pairwise: {kind: align_uniform}}", "token_exchange ranks with the pairwise term's logit scale, and align_uniform has none"),
        ("train.objective.token_exchange={}", "train: objective.token_exchange needs image.reads: tokens and text.reads: tokens"),
        ("train={image: {reads: tokens}, objective: {tokens: {}}}", "train: objective.tokens needs text.reads: tokens"),
        ("train={text: {reads: tokens}, start: cca}", "train: start: cca is computed from pooled embeddings, and goes with reads: pooled"),
        ("train.text={reads: tokens, tune: full}", "train.text: reads: tokens with tune: full needs adapter_on_top: true"),
        ("train.further={audio: {reads: tokens}}", "train: further.audio.reads: tokens is for image and text"),
        ("train.objective.tokens.bandwidth=median", "got \"median\"; expected a number more than 0 (sigma), or a list of them"),
        ("train.image={reads: tokens, adapter: {kind: transformer, heads: 7}}", "heads (7) must divide width (512)"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_meant(setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("flickr8k", [setting, "data.root=."])
    assert message in str(caught.value)


def test_unpaired_items_of_other_manifests_have_no_tokens() -> None:
    unpaired = "data.unpaired={sources: [{manifest: flickr8k, modalities: [text]}]}"
    with pytest.raises(
        InputError, match=r"data.unpaired.sources.0 brings text items, but train.text.reads: tokens needs"
    ):
        load_recipe("flickr8k", [unpaired, f"train.text={LINEAR}"])
    load_recipe("flickr8k", [unpaired, f"train.image={LINEAR}"])
