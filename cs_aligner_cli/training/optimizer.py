"""From the recipe to what drives training: the optimizer, and the learning rate and random seed of a step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import AdamW, Optimizer

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.towers.blocks import layers
from cs_aligner_cli.towers.towers import Towers

_FUSED = ("cpu", "cuda")


def _eager(method: Any) -> Any:
    return getattr(method, "__wrapped__", method)


class EagerAdamW(AdamW):
    """torch's AdamW without its guards against torch.compile, which nothing here is put through.

    The first call of a guard imports the compiler: 2.5 s of every process that trains.
    """

    step = torch.no_grad()(_eager(AdamW.step))
    add_param_group = _eager(AdamW.add_param_group)
    zero_grad = _eager(AdamW.zero_grad)
    state_dict = _eager(AdamW.state_dict)
    load_state_dict = _eager(AdamW.load_state_dict)


def make_optimizer(towers: nn.Module, spec: Train) -> Optimizer:
    """AdamW with decay on matrices only: biases, gains and the logit scale are left alone, as in open_clip.

    A group's ``lr_scale`` times the step's learning rate is its own: layer_decay to the power of the layers above.
    """
    scales = {id(p): scale for p, scale in _layer_scales(towers, spec)} if isinstance(towers, Towers) else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = [p for p in towers.parameters() if p.requires_grad]
    for parameter in sorted(trained, key=lambda p: p.ndim < 2):
        decay = spec.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((decay, scales.get(id(parameter), 1.0)), []).append(parameter)
    return EagerAdamW(
        [{"params": ps, "weight_decay": decay, "lr_scale": scale} for (decay, scale), ps in groups.items()],
        lr=spec.lr,
        betas=(spec.betas[0], spec.betas[1]),
        # One launch a step, not one a layer; on a CPU one pass over the weights, not eight.
        fused=all(p.device.type in _FUSED and p.is_floating_point() for p in trained) or None,
    )


def _layer_scales(towers: Towers, spec: Train) -> Iterator[tuple[nn.Parameter, float]]:
    for modality, tower in {"image": spec.image, "text": spec.text}.items():
        encoder = towers.encoder(modality)
        if encoder is not None and tower.layer_decay < 1:
            placed = list(layers(encoder))
            top = max(layer for _, _, layer in placed)
            for _, parameter, layer in placed:
                yield parameter, tower.layer_decay ** (top - layer)


def loss_scaler(towers: nn.Module, precision: str, device: torch.device) -> GradScaler:
    """The scaler that keeps fp16's small gradients from vanishing; it does nothing in other precisions.

    Raises InputError if weights that are trained are themselves held in float16, whose gradients cannot be unscaled.
    """
    held = next((name for name, p in towers.named_parameters() if p.requires_grad and p.dtype == torch.float16), None)
    if held:
        raise InputError(
            f"{held} is trained, but held in float16, in which updates are lost",
            "Hold it in float32 (dtype of the encoder); train.precision: fp16 computes in it all the same.",
        )
    return GradScaler(device.type, enabled=precision == "fp16")


def learning_rate(spec: Train, step: int, steps: int) -> float:
    """Linear warm-up over ``warmup_fraction`` of the steps, then a cosine to 0."""
    warmup = round(spec.warmup_fraction * steps)
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def step_seed(seed: int, *where: int) -> int:
    """A seed for the random draws at one place of training (step, part), so that resuming needs no generator state."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, (seed, *where))).encode(), digest_size=7).digest())


def seed_draws(seed: int, device: torch.device) -> None:
    """``torch.manual_seed`` for what is drawn on ``device``.

    On a CPU without the generators of other devices, whose seeding costs a tenth of a step over small adapters.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
