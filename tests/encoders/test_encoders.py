"""The frozen towers give what open_clip itself gives, and say what is wrong when they cannot."""

from __future__ import annotations

import json
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_calls import DRAWING, Calls

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.features import SignedPower
from cs_aligner_cli.encoders.open_clip import OpenClip
from cs_aligner_cli.recipe.encoders import OpenClipEncoder
from cs_aligner_cli.stores.embeddings import StoredArray
from cs_aligner_cli.towers.embedder import under

Csalign = Callable[..., Any]
Refused = Callable[..., str]
CAPTIONS = ["a red square", "two dogs, playing", "Naïve 图片!", "", "word " * 40]
# Unlike open_clip's defaults, so that a preprocessing of our own would be seen.
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "resize_mode": "squash"}


def spec(**content: Any) -> OpenClipEncoder:
    return OpenClipEncoder.model_validate({"kind": "open_clip", **content})


@pytest.fixture
def saved(tmp_path: Path, tiny_clip_config: dict[str, Any]) -> Path:
    """A folder as open_clip saves models: a plain CLIP with random weights and preprocessing of its own."""
    folder = tmp_path / "saved"
    folder.mkdir()
    config = {"model_cfg": tiny_clip_config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(f"local-dir:{folder}")
    assert isinstance(model, open_clip.CLIP)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def own_name(tmp_path: Path, tiny_clip_config: dict[str, Any]) -> str:
    """A model that open_clip knows by name: tiny-test-clip."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-test-clip.json").write_text(json.dumps(tiny_clip_config))
    open_clip.add_model_config(tmp_path / "configs")
    return "tiny-test-clip"


@pytest.fixture
def photos(tmp_path: Path) -> pd.DataFrame:
    """Four pictures of several sizes, with their locators below tmp_path."""
    rng = np.random.default_rng(0)
    for i, size in enumerate(((40, 50, 3), (64, 32, 3), (33, 33, 3), (20, 90, 4))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f"{i}.png")
    return pd.DataFrame({"locator": [f"{i}.png" for i in range(4)]})


@torch.inference_mode()
def of_open_clip(name: str, photos: pd.DataFrame, root: Path, **options: Any) -> tuple[Tensor, Tensor]:
    """Image and text features by open_clip's own public functions."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    model.eval()
    images = torch.stack([preprocess(Image.open(root / locator)) for locator in photos["locator"]])
    return model.encode_image(images), model.encode_text(open_clip.get_tokenizer(name)(CAPTIONS))


def of_ours(clip: OpenClip, photos: pd.DataFrame, root: Path, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    clip.model.eval()
    rows = {"image": photos, "text": pd.DataFrame({"text": CAPTIONS})}
    with torch.inference_mode(), under(precision, torch.device("cpu")):
        image, text = (clip.tower(m)(clip.loader(m, root)(rows[m])).float() for m in rows)
    return image, text


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float = 1e-6) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        assert a.std() > 0.01  # and no two rows alike
        assert torch.cdist(a, a).fill_diagonal_(1).min() > 1e-4


def test_a_saved_folder_gives_open_clips_own_features(saved: Path, photos: pd.DataFrame, tmp_path: Path) -> None:
    with Calls(*DRAWING) as draws:
        clip = OpenClip(spec(model=f"local-dir:{saved}"), 0)
    assert clip.dim == 16 and draws.count == 0
    assert clip.identity["preprocess"]["mean"] == PREPROCESS["mean"]
    assert_same(of_ours(clip, photos, tmp_path), of_open_clip(f"local-dir:{saved}", photos, tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "state_dict.pt"])
def test_a_checkpoint_file_gives_open_clips_own_features(
    suffix: str, saved: Path, own_name: str, tiny_clip_config: dict[str, Any], photos: pd.DataFrame, tmp_path: Path
) -> None:
    model = open_clip.create_model(f"local-dir:{saved}")
    file = tmp_path / f"checkpoint.{suffix}"
    state = model.state_dict()
    if suffix == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    else:  # as open_clip's own training leaves it, and as a bare state dict
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}} if suffix == "pt" else state, file
        )
    expected = of_open_clip(own_name, photos, tmp_path, pretrained=str(file))
    assert_same(of_ours(OpenClip(spec(model=own_name, pretrained=str(file)), 0), photos, tmp_path), expected)
    own_config = OpenClip(spec(config=tiny_clip_config, pretrained=str(file)), 0)
    assert_same(of_ours(own_config, photos, tmp_path), expected)


def test_what_we_save_open_clip_loads(saved: Path, photos: pd.DataFrame, tmp_path: Path) -> None:
    clip = OpenClip(spec(model=f"local-dir:{saved}"), 0)
    clip.save(tmp_path / "out", logit_scale=42.0)
    name = f"local-dir:{tmp_path / 'out'}"
    expected = of_open_clip(f"local-dir:{saved}", photos, tmp_path)
    assert_same(of_open_clip(name, photos, tmp_path), expected)
    assert_same(of_ours(OpenClip(spec(model=name), 0), photos, tmp_path), expected)
    assert open_clip.create_model(name).logit_scale.exp().item() == pytest.approx(42, rel=1e-5)


def test_random_weights_follow_the_seed_and_leave_other_randomness_alone(
    tiny_clip_config: dict[str, Any], own_name: str
) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    one, same, other = (OpenClip(spec(config=tiny_clip_config, random_init=True), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert one.identity == same.identity
    assert one.identity["weights"] != other.identity["weights"]
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, same.model.state_dict()[name])
    named = OpenClip(spec(model=own_name, random_init=True), 1)
    assert named.identity["weights"] == one.identity["weights"]


def test_bf16_is_close_to_fp32_and_not_equal(saved: Path, photos: pd.DataFrame, tmp_path: Path) -> None:
    clip = OpenClip(spec(model=f"local-dir:{saved}"), 0)
    full, half = (of_ours(clip, photos, tmp_path, precision) for precision in ("fp32", "bf16"))
    assert_same(full, half, tolerance=0.05)
    assert not torch.equal(full[0], half[0])
    assert half[0].dtype == torch.float32


def test_the_command_embeds_photos_and_captions_in_table_order(
    csalign: Csalign, photos_recipe: Path, photos_root: Path, saved: Path, tmp_path: Path
) -> None:
    photos_recipe.write_text(
        photos_recipe.read_text() + f"encoders: {{image: {{kind: open_clip, model: 'local-dir:{saved}'}}}}\n"
        if "encoders:" not in photos_recipe.read_text()
        else photos_recipe.read_text()
    )
    settings = ["encoders.image.model=local-dir:" + str(saved), "encoders.image.config=null"]
    settings += ["encoders.image.random_init=false", "train=null", "embed.batch_size=3", "embed.shard_rows=2"]
    options = [part for setting in settings for part in ("--set", setting)]
    assert csalign("prepare", photos_recipe, "-q", *options).exit_code == 0
    with Calls(torch.conv2d) as passes:
        called = csalign("embed", photos_recipe, "-q", *options)
    assert called.exit_code == 0, called.stderr
    table = pd.read_csv(photos_root / "captions.csv")
    table = table[table["split"] == "dev"]
    photos = pd.DataFrame({"locator": [f"images/{name}" for name in table["image"].drop_duplicates()]})
    image, _ = of_open_clip(f"local-dir:{saved}", photos, photos_root)
    store = tmp_path / "run" / "embeddings" / "frozen" / "dev"
    np.testing.assert_allclose(StoredArray(store / "image").all(), image.numpy(), atol=1e-5)
    model = open_clip.create_model(f"local-dir:{saved}").eval()
    with torch.inference_mode():
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{saved}")(table["caption"].tolist()))
    np.testing.assert_allclose(StoredArray(store / "text").all(), text.numpy(), atol=1e-5)

    # Weights that change in place make the store stale, and prepare has not tried them.
    other = open_clip.create_model(f"local-dir:{saved}")
    torch.nn.init.normal_(other.text_projection)
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, saved / "open_clip_model.safetensors")
    with Calls(torch.conv2d) as again:
        assert csalign("embed", photos_recipe, "-q", "--json", *options).json["status"] == "done"
    assert again.count == passes.count + 1


def test_both_towers_share_one_model(csalign: Csalign, photos_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    create = open_clip.create_model_and_transforms
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *a, **k: built.append(a) or create(*a, **k))
    assert csalign("prepare", photos_recipe, "-q").exit_code == 0
    called = csalign("embed", photos_recipe, "-q", "--set", "train=null")
    assert called.exit_code == 0, called.stderr
    assert len(built) == 1


def test_the_signed_power_is_its_closed_form() -> None:
    x = torch.tensor([[-4.0, 0.0, 9.0], [0.25, -1.0, 2.0]])
    torch.testing.assert_close(SignedPower(0.5)(x), torch.tensor([[-2.0, 0.0, 3.0], [0.5, -1.0, 2**0.5]]))
    torch.testing.assert_close(SignedPower(1 / 3)(x), x.sign() * x.abs() ** (1 / 3))
    assert torch.equal(SignedPower(1.0)(x), x)


def test_stored_features_need_a_manifest_that_has_them(
    csalign: Csalign, refused: Refused, photos_recipe: Path, write_yaml: Callable[..., Path], photos_root: Path
) -> None:
    data = {"manifest": "flickr8k_images", "root": str(photos_root)}
    recipe = write_yaml("f.yaml", name="f", run_dir="run", data=data, encoders={"image": {"kind": "features"}})
    message = refused("run", recipe, "-q")
    assert "encoders.image: kind features needs a manifest of kind embeddings" in message
    assert "of kind table" in message


# ---- what cannot be loaded


def message_of(**content: Any) -> str:
    with pytest.raises(InputError) as error:
        OpenClip(spec(**content), 0)
    return str(error.value)


def test_names_that_open_clip_does_not_know() -> None:
    assert "open_clip knows no model 'ViT-B-23'; did you mean ViT-B-" in message_of(model="ViT-B-23", random_init=True)
    message = message_of(model="ViT-B-32", pretrained="laion2b_s34b_b79")
    assert "ViT-B-32 has no weights 'laion2b_s34b_b79'; did you mean laion2b_s34b_b79k?" in message


def test_a_config_has_no_tags(tiny_clip_config: dict[str, Any]) -> None:
    message = message_of(config=tiny_clip_config, pretrained="openai")
    assert "a model of your own config has no weights 'openai'" in message


def test_weights_of_another_activation_are_refused_and_the_right_model_named() -> None:
    message = message_of(model="ViT-B-32", pretrained="openai")
    assert "the weights openai were trained with QuickGELU, which ViT-B-32 has not" in message
    assert message.endswith("Use model: ViT-B-32-quickgelu")


def test_folders_that_are_no_models(saved: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is no folder" in message_of(model=f"local-dir:{tmp_path / 'none'}")
    assert "has no open_clip_config.json" in message_of(model=f"local-dir:{tmp_path}")
    weights = saved / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    for damaged, why in ((whole[:1000], "damaged"), (b"", "is empty"), (whole[:-100], "damaged")):
        weights.write_bytes(damaged)
        found = message_of(model=f"local-dir:{saved}")
        assert str(weights) in found and why in found
    weights.unlink()
    assert "holds a configuration but no weights" in message_of(model=f"local-dir:{saved}")
    (saved / "open_clip_config.json").write_text("{")
    weights.write_bytes(whole)
    assert f"open_clip cannot load local-dir:{saved}" in message_of(model=f"local-dir:{saved}")


def test_weights_count_in_any_case(saved: Path, tiny_clip_config: dict[str, Any], tmp_path: Path) -> None:
    weights = saved / "open_clip_model.safetensors"
    whole = load_file(weights)
    weights.rename(saved / "Weights.SafeTensors")
    state = OpenClip(spec(model=f"local-dir:{saved}"), 0).model.state_dict()
    torch.testing.assert_close(state["visual.proj"], whole["visual.proj"], rtol=0, atol=0)
    np.savez(tmp_path / "none.npz", rows=np.zeros(3))
    said = message_of(config=tiny_clip_config, pretrained=str(tmp_path / "none.npz"))
    (tmp_path / "none.npz").rename(tmp_path / "none.NPZ")
    assert message_of(config=tiny_clip_config, pretrained=str(tmp_path / "none.NPZ")) == said.replace(".npz", ".NPZ")


class Planted:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.trace,)


def test_checkpoints_that_are_none(saved: Path, tiny_clip_config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"

    def message() -> str:
        found = message_of(config=tiny_clip_config, pretrained=str(file))
        assert str(file) in found
        return found

    assert message() == f"encoders: pretrained: {file}: no such file"
    planted = pickle.dumps(Planted(tmp_path / "trace"), 2)
    contents = {b"": "is empty", b"junk": "no checkpoint of torch", planted: "holds Python objects"}
    for content, why in {**contents, pickle.dumps([1, 2], 2): "checkpoint.pt"}.items():
        file.write_bytes(content)
        assert why in message()
    values = [({}, "holds no weights"), ([1], "holds a list"), ({"logit_scale": torch.zeros(())}, "it lacks")]
    for value, why in [*values, ({"state_dict": Planted(tmp_path / "trace")}, "holds Python objects")]:
        torch.save(value, file)
        assert why in message()
    assert not (tmp_path / "trace").exists()
    wider = {**tiny_clip_config, "embed_dim": 8}
    torch.save(open_clip.create_model(f"local-dir:{saved}").state_dict(), file)
    found = message_of(config=wider, pretrained=str(file))
    assert "it has other shapes: text.text_projection" in found or "it has other shapes: visual.proj" in found


def test_models_without_a_plain_text_tower() -> None:
    assert "CoCa models have no plain text tower" in message_of(model="coca_ViT-B-32", random_init=True)


# ---- the hub, with and without a network


@pytest.mark.parametrize(
    "content",
    [
        {"model": "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"},
        {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
        {"model": "ViT-B-16-SigLIP", "pretrained": "webli"},
        {"model": "ViT-B-16-SigLIP", "random_init": True},  # its tokenizer is on the hub
    ],
)
def test_a_hub_out_of_reach_is_reported_at_once_with_the_way_out(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    message = message_of(**content)
    assert time.monotonic() - started < 5
    assert "is not cached, and http://127.0.0.1:9 cannot be reached" in message
    assert "local-dir:FOLDER" in message
    assert "pretrained: FILE" in message


@pytest.fixture
def cached(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The saved model in a hub cache as nobody/tiny, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--nobody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    saved.rename(repository / "snapshots" / "abc")
    return repository / "snapshots" / "abc"


def test_a_cached_hub_model_needs_no_network(cached: Path, photos: pd.DataFrame, tmp_path: Path) -> None:
    expected = of_open_clip(f"local-dir:{cached}", photos, tmp_path)
    assert_same(of_ours(OpenClip(spec(model="hf-hub:nobody/tiny"), 0), photos, tmp_path), expected)


def test_weights_that_are_not_there_are_never_replaced_by_random_ones(cached: Path) -> None:
    (cached / "open_clip_model.safetensors").unlink()
    message = message_of(model="hf-hub:nobody/tiny")
    assert "open_clip cannot load hf-hub:nobody/tiny" in message
    assert "could not be loaded" in message
