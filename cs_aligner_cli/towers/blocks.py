"""The blocks of a tower, from its input to its output: partial unfreezing, layer-wise rates, checkpointing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from cs_aligner_cli.common.errors import InputError

# Weights outside of the blocks that stand before them; all others follow them (last norm, pooling, projection).
_BEFORE = re.compile(r"embed|conv1|conv_stem|stem|ln_pre|pre_layernorm|pre_layrnorm|positional|cls_token|patch|wte|wpe")


def blocks_of(module: nn.Module) -> tuple[str, nn.ModuleList | nn.Sequential] | None:
    """Name and members of the tower's list of blocks: of the longest lists the outermost one; None without one."""
    lists = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    same = [(n, m) for n, m in lists if len({type(block) for block in m}) == 1 and list(m.parameters())]
    return max(same, key=lambda entry: len(entry[1]), default=None)


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, parameter, layer) of all parameters: layer 0 before the blocks, 1 to N in them, N + 1 after them."""
    found = blocks_of(module)
    prefix, count = (f"{found[0]}.", len(found[1])) if found else ("", 0)
    for name, parameter in module.named_parameters():
        inside = name.removeprefix(prefix) if found and name.startswith(prefix) else ""
        if inside:
            yield name, parameter, 1 + int(inside.partition(".")[0])
        else:
            yield name, parameter, 0 if _BEFORE.search(name) else count + 1


def freeze_below(module: nn.Module, train_blocks: int, key: str) -> None:
    """Leave only the last ``train_blocks`` blocks and what follows them trainable."""
    found = blocks_of(module)
    if found is None:
        raise InputError(f"{key}: {type(module).__name__} has no list of blocks to count", "Train all of it: null.")
    count = len(found[1])
    if train_blocks > count:
        raise InputError(f"{key}: the tower has {count} blocks, {train_blocks} were asked for")
    for _, parameter, layer in layers(module):
        parameter.requires_grad_(layer > count - train_blocks)


def checkpoint_blocks(backbone: Any, key: str) -> None:
    """Make every block keep only its input and compute the rest again in the backward pass, as the library does it."""
    if hasattr(backbone, "activation_checkpointing_enable"):  # transformers, its newer name
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    elif hasattr(backbone, "gradient_checkpointing_enable"):
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(backbone, "set_grad_checkpointing"):  # open_clip, timm
        backbone.set_grad_checkpointing(True)
    else:
        raise InputError(f"{key}: {type(backbone).__name__} offers no gradient checkpointing")
