"""LoRA through peft, in every kind of tower; open_clip's attention is first laid open so that peft reaches it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cs_aligner_cli.common.errors import InputError, did_you_mean, listed
from cs_aligner_cli.recipe.towers import Lora

_ATTENTION = ("attn", "attention")


class SplitAttention(nn.Module):
    """nn.MultiheadAttention (self-attention, batch first) whose two maps are nn.Linear, so that LoRA can be put in.

    peft can wrap nn.MultiheadAttention itself, by adding the update to the weight before each forward pass and taking
    it off again. That drifts the frozen weights by rounding, knows no dropout, and in peft 0.21 adds the update of
    out_proj twice; hence this module. The operations are those of torch's own Python path, bit for bit.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = attention.embed_dim, attention.num_heads, attention.dropout
        self.batch_first = attention.batch_first
        self.in_proj = nn.Linear(self.embed_dim, 3 * self.embed_dim, bias=attention.in_proj_bias is not None)
        self.in_proj.weight = attention.in_proj_weight
        if attention.in_proj_bias is not None:
            self.in_proj.bias = attention.in_proj_bias
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, bias=attention.out_proj.bias is not None)
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias
        self.train(attention.training)

    def joined(self) -> nn.MultiheadAttention:
        """The nn.MultiheadAttention with these weights."""
        attention = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, self.in_proj.bias is not None, batch_first=self.batch_first
        )
        attention.in_proj_weight = self.in_proj.weight  # type: ignore[assignment]
        attention.in_proj_bias = self.in_proj.bias
        attention.out_proj.weight, attention.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return attention.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, L, d) to (B, L, d), or with the first two axes exchanged where not batch first."""
        assert query is key is value and not need_weights, "open_clip's blocks use self-attention without weights"
        x = query if self.batch_first else query.transpose(0, 1)
        batch, length, _ = x.shape
        parts = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(batch, self.num_heads, length, length)
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def split_attention(model: nn.Module) -> None:
    """Replace every self-attention nn.MultiheadAttention inside ``model``, in place; weights stay where they are."""
    for name, attention in list(_multihead(model)):
        model.set_submodule(name, SplitAttention(attention))


def join_attention(model: nn.Module) -> None:
    """The inverse of ``split_attention``."""
    for name, attention in [(n, m) for n, m in model.named_modules() if isinstance(m, SplitAttention)]:
        model.set_submodule(name, attention.joined())


def _multihead(model: nn.Module) -> Iterator[tuple[str, nn.MultiheadAttention]]:
    for name, module in model.named_modules():
        # Those with kdim are cross-attention (attention poolers); they are left alone.
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None and name:
            yield name, module


def linear_maps(model: nn.Module) -> list[str]:
    """The names of all linear maps that LoRA could be put into, as they are once attention is split."""
    attentions = {name for name, _ in _multihead(model)}
    found = [f"{name}.{part}" for name in sorted(attentions) for part in ("in_proj", "out_proj")]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[0] not in attentions:
            found.append(name)
    return sorted(found)


def lora_targets(model: nn.Module, spec: Lora, key: str) -> list[str]:
    """The full names of the linear maps meant by ``spec.targets``, of all attention maps where it is None.

    Raises InputError, naming the maps that there are, if a target matches none.
    """
    maps = linear_maps(model)
    if spec.targets is None:
        found = [name for name in maps if any(part in name.lower() for part in _ATTENTION)]
        if not found:
            raise InputError(
                f"{key}: {type(model).__name__} has no linear maps of attention",
                f"Name some of its maps in {key}.targets: {_kinds(maps)}",
            )
        return found
    chosen: set[str] = set()
    for target in spec.targets:
        found = [name for name in maps if name == target or name.endswith(f".{target}")]
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in maps})
            raise InputError(
                f"{key}.targets: no linear map of {type(model).__name__} is named {target!r}"
                f"{did_you_mean(target, [*ends, *maps])}",
                f"Its maps end in: {_kinds(maps)}",
            )
        chosen |= {*found}
    return sorted(chosen)


def _kinds(maps: list[str]) -> str:
    return listed(sorted({".".join(name.split(".")[-2:]) for name in maps}) or ["(none)"])


def add_lora(model: nn.Module, spec: Lora, key: str) -> list[str]:
    """Freeze ``model`` and put LoRA into its target maps, in place; return the targets' names.

    A starts random (from torch's global generator) and B zero, so that the model computes what it did. Raises
    InputError before anything is changed if a target matches nothing.
    """
    targets = lora_targets(model, spec, key)
    model.requires_grad_(False)
    split_attention(model)
    inject_adapter_in_model(_config(spec, targets), model)
    for module in model.modules():
        if isinstance(module, LoraLayer):  # what is trained is held in float32, whatever the tower is held in
            module.lora_A.float()
            module.lora_B.float()
    return targets


def _config(spec: Lora, targets: list[str]) -> LoraConfig:
    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=targets)


def merged(model: nn.Module) -> nn.Module:
    """A copy of a model with LoRA in which W + alpha/rank B A stands in place of W, and attention is joined again."""
    model = copy.deepcopy(model)
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    join_attention(model)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def save_peft(model: nn.Module, spec: Lora, folder: Path) -> None:
    """Write the LoRA weights of ``model`` as a folder that ``peft.PeftModel.from_pretrained(model, folder)`` loads.

    For open_clip towers that model has to go through ``split_attention`` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = get_peft_model_state_dict(model)
    tensors = {f"base_model.model.{n}": v.detach().cpu().contiguous().to(torch.float32) for n, v in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    config = _config(spec, sorted(targets))
    config.inference_mode = True
    config.save_pretrained(str(folder))
