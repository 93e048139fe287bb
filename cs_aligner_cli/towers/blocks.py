"""The blocks of a tower, from its input to its output: partial unfreezing, layer-wise rates, checkpointing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from cs_aligner_cli.common.errors import InputError

# Weights outside of the blocks that stand before them, wherever they are registered.
_BEFORE = re.compile(
    r"embed|conv1|conv_stem|stem|ln_pre|pre_layernorm|pre_layrnorm|positional|(cls|dist|reg|mask)_token|patch|wte|wpe"
)


def blocks_of(module: nn.Module) -> list[str]:
    """The names of a tower's blocks, from its input to its output; none where it has no list of them.

    They are the members of its longest list of modules of one type, of the longest lists the outermost one, and with
    them all others of that type: networks of several stages have a list for each.
    """
    lists = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    same = [(n, m) for n, m in lists if len({type(block) for block in m}) == 1 and list(m.parameters())]
    if not same:
        return []
    name, members = max(same, key=lambda entry: len(entry[1]))
    kind = type(members[0])
    if kind in (nn.Sequential, nn.ModuleList):  # stages without a type of their own
        return [f"{name}.{i}".lstrip(".") for i in range(len(members))]
    alike = [n for n, m in module.named_modules() if type(m) is kind]
    return [n for n in alike if not any(parent in alike for parent in _parents(n))]


def _parents(name: str) -> list[str]:
    """The names of the modules around one, the outermost first, without the whole."""
    return [name[:i] for i, character in enumerate(name) if character == "."]


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, parameter, layer) of all parameters: layer 0 before the blocks, 1 to N in them, N + 1 after them.

    What stands between two blocks, as the downsampling between stages, is of the layer of the second. Modules are
    registered in the order in which they are used; single weights beside them (a projection) are not, and come last.
    """
    blocks = blocks_of(module)
    number_of = {name: number for number, name in enumerate(blocks, start=1)}
    count, begun = len(blocks), 0
    around = {"", *_parents(blocks[0])} if blocks else {""}
    for name, parameter in module.named_parameters():
        inside = next((number_of[parent] for parent in _parents(name) if parent in number_of), 0)
        begun = inside or begun
        if inside:
            yield name, parameter, inside
        elif _BEFORE.search(name):
            yield name, parameter, 0
        elif name.rpartition(".")[0] in around or begun == count:
            yield name, parameter, count + 1
        else:
            yield name, parameter, begun + 1 if begun else 0


def freeze_below(module: nn.Module, train_blocks: int, key: str) -> None:
    """Leave only the last ``train_blocks`` blocks and what follows them trainable."""
    count = len(blocks_of(module))
    if not count:
        raise InputError(f"{key}: {type(module).__name__} has no list of blocks to count", "Train all of it: null.")
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
