"""LoRA reaches attention, begins as the frozen tower, merges to what it computed, and is read by peft and open_clip."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.towers import Lora
from cs_aligner_cli.towers.blocks import blocks_of, checkpoint_blocks, freeze_below, layers
from cs_aligner_cli.towers.lora import add_lora, join_attention, linear_maps, merged, save_peft, split_attention

WIDTH, BLOCKS = 32, 3


@pytest.fixture
def clip(tiny_clip_config: dict[str, Any], tmp_path: Path) -> open_clip.CustomTextCLIP:
    """A small open_clip model of the built-in transformer towers, random weights."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_clip_config)
    for part in ("vision_cfg", "text_cfg"):
        config[part]["layers"] = BLOCKS
    config["vision_cfg"] = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    config["text_cfg"] = open_clip.CLIPTextCfg(**config["text_cfg"])
    return open_clip.CustomTextCLIP(**config).eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a red dog", "two cats, on a mat", "snow"], context_length=16)
    return {"visual": torch.randn(3, 3, 32, 32, generator=generator), "text": tokens}


def small_llama() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, intermediate_size=48
    )
    return transformers.LlamaModel(config).eval(), torch.randint(0, 50, (3, 7))


def small_bert() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, intermediate_size=48
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval(), torch.randint(0, 50, (3, 7))


def shake(model: nn.Module) -> None:
    """Move every B away from zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


def output(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.last_hidden_state


# ---- open_clip, whose attention is nn.MultiheadAttention


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_split_attention_is_bitwise_torchs_own_and_is_joined_again(
    tower: str, clip: open_clip.CustomTextCLIP, inputs: dict[str, Tensor]
) -> None:
    plain: nn.Module = getattr(clip, tower)
    split = copy.deepcopy(plain)
    split_attention(split)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in split.modules())
    assert torch.equal(split(inputs[tower]), plain(inputs[tower]))  # with gradients: torch's Python path
    with torch.inference_mode():  # without them torch takes a fused kernel, which rounds otherwise
        torch.testing.assert_close(split(inputs[tower]), plain(inputs[tower]), atol=1e-5, rtol=1e-5)
    join_attention(split)
    assert split.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in split.state_dict().items())


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_lora_in_open_clip_begins_frozen_and_reaches_every_attention(
    tower: str, clip: open_clip.CustomTextCLIP, inputs: dict[str, Tensor]
) -> None:
    model: nn.Module = getattr(clip, tower)
    before, weights = model(inputs[tower]), copy.deepcopy(model.state_dict())
    targets = add_lora(model, Lora(rank=4), "train.text.lora")
    assert len(targets) == 2 * BLOCKS
    after = model(inputs[tower])
    assert torch.equal(after, before), "B = 0 must leave the tower what it was"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # in_proj: d to 3d, out_proj: d to d; rank times the sum of both sides.
    assert sum(p.numel() for p in trained.values()) == BLOCKS * 4 * ((WIDTH + 3 * WIDTH) + (WIDTH + WIDTH))
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):  # after the first step B is no longer zero, and A gets its gradient
        optimizer.zero_grad()
        model(inputs[tower]).square().sum().backward()
        optimizer.step()
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not torch.equal(model(inputs[tower]), before)
    frozen = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if not p.requires_grad}
    renamed = {n.replace("in_proj_", "in_proj."): value for n, value in weights.items()}
    assert all(torch.equal(p, renamed[n]) for n, p in frozen.items()), "the frozen weights have moved"


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_merged_equals_unmerged_and_has_open_clips_own_names(
    tower: str, clip: open_clip.CustomTextCLIP, inputs: dict[str, Tensor]
) -> None:
    model: nn.Module = getattr(clip, tower)
    names, before = list(model.state_dict()), model(inputs[tower])
    add_lora(model, Lora(rank=4, alpha=12, targets=["in_proj", "mlp.c_fc"]), "train.text.lora")
    shake(model)
    ours = model(inputs[tower])
    one = merged(model)
    torch.testing.assert_close(one(inputs[tower]), ours, atol=1e-5, rtol=1e-5)
    assert (ours - before).abs().max() > 0.1
    assert list(one.state_dict()) == names
    torch.testing.assert_close(model(inputs[tower]), ours, atol=0, rtol=0)  # the model itself stays unmerged
    a, b = (getattr(model.transformer.resblocks[1].attn.in_proj, f"lora_{m}")["default"].weight for m in "AB")
    update = one.transformer.resblocks[1].attn.in_proj_weight - model.transformer.resblocks[1].attn.in_proj.weight
    torch.testing.assert_close(update, 12 / 4 * b @ a, atol=1e-5, rtol=1e-5)


def test_a_peft_folder_of_an_open_clip_tower_is_loaded_by_peft(
    clip: open_clip.CustomTextCLIP, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    plain = copy.deepcopy(clip.text)
    add_lora(clip.text, Lora(rank=2), "train.text.lora")
    shake(clip.text)
    save_peft(clip.text, Lora(rank=2), tmp_path / "peft")
    split_attention(plain)
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval()
    torch.testing.assert_close(loaded(inputs["text"]), clip.text(inputs["text"]), atol=1e-6, rtol=1e-6)


def test_pefts_own_multihead_attention_is_not_usable() -> None:
    """Why SplitAttention exists. Should this fail, peft has mended itself and the module could go."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2, batch_first=True)})
    expected = nn.MultiheadAttention(16, 2, batch_first=True)
    expected.load_state_dict(holder["attn"].state_dict())
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["attn"]), holder)
    shake(holder)
    state, x = dict(holder.named_parameters()), torch.randn(2, 5, 16)
    with torch.no_grad():
        lora = "lora_{}.default.weight"
        expected.in_proj_weight += state[f"attn.{lora.format('B')}"] @ state[f"attn.{lora.format('A')}"]
        out = f"attn.base_layer.out_proj.{lora}"
        expected.out_proj.weight += state[out.format("B")] @ state[out.format("A")]
    assert (holder["attn"](x, x, x)[0] - expected(x, x, x)[0]).abs().max() > 1e-3


# ---- transformers


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
@pytest.mark.parametrize(("make", "maps"), [(small_llama, 4), (small_bert, 4)])
def test_lora_in_transformers_models_begins_frozen_reaches_all_layers_and_merges(
    make: Callable[[], tuple[nn.Module, Tensor]], maps: int, tmp_path: Path
) -> None:
    model, tokens = make()
    plain, before = copy.deepcopy(model), output(model, tokens)
    targets = add_lora(model, Lora(rank=4), "train.text.lora")
    assert len(targets) == maps * BLOCKS
    assert torch.equal(output(model, tokens), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == BLOCKS * maps * 4 * 2 * WIDTH
    shake(model)
    output(model, tokens).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert without == []
    torch.testing.assert_close(output(merged(model), tokens), output(model, tokens), atol=1e-5, rtol=1e-5)
    save_peft(model, Lora(rank=4), tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval()
    torch.testing.assert_close(output(loaded, tokens), output(model, tokens), atol=1e-6, rtol=1e-6)


def test_targets_that_match_nothing_are_refused_before_anything_is_changed(clip: open_clip.CustomTextCLIP) -> None:
    before = copy.deepcopy(clip.text)
    with pytest.raises(InputError) as caught:
        add_lora(clip.text, Lora(targets=["in_proj", "q_prj"]), "train.text.lora")
    assert "train.text.lora.targets: no linear map of TextTransformer is named 'q_prj'" in str(caught.value)
    assert "attn.in_proj, attn.out_proj, mlp.c_fc, mlp.c_proj" in str(caught.value)
    with pytest.raises(InputError, match=r"did you mean c_proj\?"):
        add_lora(clip.text, Lora(targets=["c_prj"]), "train.text.lora")
    assert [type(m) for m in clip.text.modules()] == [type(m) for m in before.modules()]
    assert all(p.requires_grad for p in clip.text.parameters() if p.is_floating_point())
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"Sequential has no linear maps of attention\nName some .*: 2"):
        add_lora(convolutions, Lora(), "train.image.lora")


def test_the_linear_maps_are_all_of_them(clip: open_clip.CustomTextCLIP) -> None:
    ends = {name.split(".", 3)[3] for name in linear_maps(clip.text) if "resblocks" in name}
    assert ends == {"attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"}


# ---- blocks


def test_layers_are_numbered_from_the_input_to_the_output(clip: open_clip.CustomTextCLIP) -> None:
    for model in (clip.text, clip.visual, small_llama()[0], small_bert()[0]):
        assert len(blocks_of(model)) == BLOCKS
        for name, _, layer in layers(model):
            inside = re.search(r"(?:resblocks|layers?)\.(\d+)\.", name)
            before = re.search(r"embed|conv1|ln_pre", name)
            assert layer == (int(inside[1]) + 1 if inside else 0 if before else BLOCKS + 1), name


@pytest.mark.parametrize(
    ("name", "count", "last", "between"),
    [
        ("resnet26", 8, r"layer4\.1\.", {"layer3.0.downsample.0.weight": 5}),
        ("convnext_atto", 12, r"stages\.3\.blocks\.1\.|head\.norm", {"stages.1.downsample.1.weight": 3}),
        ("swin_tiny_patch4_window7_224", 12, r"layers\.3\.blocks\.1\.|^norm", {"layers.3.downsample.norm.weight": 11}),
        ("efficientnet_b0", 7, r"^blocks\.6\.|^conv_head|^bn2", {"bn1.weight": 0}),
        ("deit_tiny_distilled_patch16_224", 12, r"blocks\.11\.|^norm", {"dist_token": 0}),
    ],
)
def test_stages_are_unfrozen_from_the_last_on(name: str, count: int, last: str, between: dict[str, int]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert len(blocks_of(model)) == count
    layer_of = {parameter: layer for parameter, _, layer in layers(model)}
    assert {parameter: layer_of[parameter] for parameter in between} == between
    freeze_below(model, 1, "train.image.train_blocks")
    trained = {parameter for parameter, p in model.named_parameters() if p.requires_grad}
    assert trained == {parameter for parameter in layer_of if re.search(last, parameter)}


def test_partial_unfreezing_trains_the_last_blocks_and_what_follows(clip: open_clip.CustomTextCLIP) -> None:
    freeze_below(clip.text, 1, "train.text.train_blocks")
    trained = {name for name, p in clip.text.named_parameters() if p.requires_grad}
    last = {name for name, _ in clip.text.named_parameters() if "resblocks.2." in name}
    assert trained == {*last, "ln_final.weight", "ln_final.bias", "text_projection"}
    with pytest.raises(InputError, match="the tower has 3 blocks, 4 were asked for"):
        freeze_below(clip.text, 4, "train.text.train_blocks")


def test_checkpointing_changes_no_gradient_under_lora(
    clip: open_clip.CustomTextCLIP, inputs: dict[str, Tensor]
) -> None:
    llama, tokens = small_llama()
    for model, x in ((clip.text, inputs["text"]), (clip.visual, inputs["visual"]), (llama, tokens)):
        add_lora(model, Lora(rank=2), "train.text.lora")
        shake(model)
        gradients = []
        for saving in (False, True):
            if saving:
                checkpoint_blocks(model, "train.text.grad_checkpointing")
            model.train()
            model.zero_grad()
            output(model, x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert gradients[0]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
