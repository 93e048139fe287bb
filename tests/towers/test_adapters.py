"""Adapters begin as what they say, compute their formulas, and are read back only where they fit."""

from __future__ import annotations

import json
from math import erf
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.recipe import recipe_schema
from cs_aligner_cli.recipe.towers import LinearAdapter, ResidualMlpAdapter
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.towers.adapters import ADAPTERS, Linear, ResidualMlp, make_adapter
from cs_aligner_cli.towers.towers import Towers, plan_towers
from cs_aligner_cli.towers.weights import load_towers, read_plans, save_weights


def linear(in_dim: int, out_dim: int, bias: bool = True) -> Linear:
    adapter = make_adapter(LinearAdapter(kind="linear", bias=bias), in_dim, out_dim)
    assert isinstance(adapter, Linear)
    return adapter


def residual_mlp(in_dim: int, out_dim: int, dropout: float = 0.0, hidden_dim: int = 20) -> ResidualMlp:
    spec = ResidualMlpAdapter(kind="residual_mlp", hidden_dim=hidden_dim, dropout=dropout)
    adapter = make_adapter(spec, in_dim, out_dim)
    assert isinstance(adapter, ResidualMlp)
    return adapter.eval()


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) * 3


def test_the_kinds_are_those_of_the_schema() -> None:
    tagged = recipe_schema()["$defs"]["Tower"]["properties"]["adapter"]
    assert {Path(ref["$ref"]).name for ref in tagged["oneOf"]} == {
        "LinearAdapter",
        "ResidualMlpAdapter",
        "BottleneckAdapter",
        "TransformerAdapter",
        "PriorAdapter",
    }
    assert set(ADAPTERS) == {"linear", "residual_mlp", "bottleneck", "transformer", "prior"}


@pytest.mark.parametrize("make", [linear, residual_mlp])
def test_at_the_start_an_adapter_of_equal_dimensions_only_normalises(make: type[nn.Module], x: Tensor) -> None:
    torch.testing.assert_close(make(12, 12)(x), unit(x))


@pytest.mark.parametrize("make", [linear, residual_mlp])
@pytest.mark.parametrize("out_dim", [5, 30])
def test_at_the_start_an_adapter_of_other_dimensions_is_semi_orthogonal(
    make: type[nn.Module], out_dim: int, x: Tensor
) -> None:
    adapter = make(12, out_dim)
    weight = adapter.map.weight if isinstance(adapter, Linear) else adapter.skip.weight
    assert isinstance(weight, Tensor)
    assert weight.shape == (out_dim, 12)
    small = weight @ weight.T if out_dim < 12 else weight.T @ weight
    torch.testing.assert_close(small, torch.eye(min(12, out_dim)), atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter(x), unit(x) @ weight.T)
    if out_dim > 12:  # lengths and angles are kept
        torch.testing.assert_close(adapter(x) @ adapter(x).T, unit(x) @ unit(x).T, atol=1e-5, rtol=0)


def shaken(adapter: nn.Module) -> nn.Module:
    """The adapter with all its weights away from their start."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return adapter


@pytest.mark.parametrize("make", [linear, residual_mlp])
def test_the_length_of_an_input_row_does_not_matter(make: type[nn.Module], x: Tensor) -> None:
    adapter = shaken(make(12, 6))
    scales = torch.tensor([1e-3, 0.1, 1.0, 2.0, 50.0, 1e3, 7.0])
    torch.testing.assert_close(adapter(x * scales[:, None]), adapter(x), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(adapter(torch.zeros(2, 12))).all()


def gelu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def test_the_forward_pass_is_its_formula(x: Tensor) -> None:
    rows = x.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    map_ = shaken(linear(12, 6))
    w = {name: value.double().numpy() for name, value in map_.state_dict().items()}
    np.testing.assert_allclose(map_(x).detach(), rows @ w["map.weight"].T + w["map.bias"], atol=1e-5)
    assert set(linear(12, 6, bias=False).state_dict()) == {"map.weight"}

    mlp = shaken(residual_mlp(12, 6, dropout=0.9))  # in eval mode dropout does nothing
    w = {name: value.double().numpy() for name, value in mlp.state_dict().items()}
    hidden = gelu(rows * np.sqrt(12) @ w["expand.weight"].T + w["expand.bias"])
    expected = rows @ w["skip.weight"].T + hidden @ w["project.weight"].T + w["project.bias"]
    np.testing.assert_allclose(mlp(x).detach(), expected, atol=1e-5)


def test_dropout_acts_on_the_hidden_units_in_training_only(x: Tensor) -> None:
    mlp = residual_mlp(12, 12, dropout=0.5).train()
    torch.testing.assert_close(mlp(x), unit(x))  # at the start the MLP adds nothing, whatever is dropped
    shaken(mlp)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


def test_every_weight_gets_a_gradient_after_one_step(x: Tensor) -> None:
    mlp = residual_mlp(12, 6)
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        mlp(x).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mlp.parameters())


# ---- the weights file


@pytest.fixture
def towers() -> Towers:
    train = Train.model_validate(
        {"embed_dim": 6, "image": {"adapter": {"kind": "linear"}}, "text": {"adapter": {"hidden_dim": 9}}}
    )
    towers = Towers(plan_towers(train, {"image": 12, "text": 8}), {}, logit_scale=20.0)
    shaken(towers.parts)
    return towers


def test_a_weights_file_describes_itself(towers: Towers, x: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, towers)
    assert read_plans(file) == towers.plans
    again = load_towers(file, {}, {"image": 12, "text": 8})
    again.eval()
    torch.testing.assert_close(again("image", x), towers.eval()("image", x), rtol=0, atol=0)
    assert float(again.log_logit_scale.detach().exp()) == pytest.approx(20)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(("dims", "message"), [
    ({"image": 13, "text": 8}, "its image tower takes 12 dimensions, but the image embeddings have 13"),
    ({"image": 12, "text": 16}, "its text tower takes 8 dimensions, but the text embeddings have 16"),
])  # fmt: skip
def test_weights_for_other_dimensions_are_refused(
    dims: dict[str, int], message: str, towers: Towers, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, towers)
    with pytest.raises(InputError, match=message) as error:
        load_towers(file, {}, dims)
    assert str(error.value).startswith(f"{file}: ")


def test_files_that_are_no_weights_are_refused(towers: Towers, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, towers)
    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    plans = json.loads(metadata["csalign_towers"])
    assert plans.pop("format") == 1

    def refused(tensors: dict[str, Tensor], described: str | None) -> str:
        save_file(tensors, file, {"csalign_towers": described} if described is not None else None)
        with pytest.raises(InputError) as error:
            load_towers(file, {}, {"image": 12, "text": 8})
        return str(error.value).removeprefix(f"{file}: ")

    plain = "is no weights file of this csalign (it does not describe both towers)"
    later = {modality: {**plan, "rank": 8} for modality, plan in plans.items()}
    for described in (None, "", "[]", "{}", "[1]", json.dumps({"image": plans["image"]}), json.dumps(later)):
        assert refused(tensors, described) == plain
    described = json.dumps(plans)
    less = {name: value for name, value in tensors.items() if not name.endswith("map.weight")}
    assert "do not fit the towers" in refused(less, described)
    assert "do not fit the towers" in refused({**tensors, "parts.image.map.weight": torch.ones(6, 11)}, described)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_plans(file)
    file.unlink()
    with pytest.raises(InputError, match="no such weights file"):
        read_plans(file)
