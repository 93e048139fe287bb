"""From the recipe to what drives training: the optimizer, and the learning rate and random seed of a step."""

from __future__ import annotations

import hashlib
import math

from torch import nn
from torch.optim import AdamW, Optimizer

from cs_aligner_cli.recipe_train import Train


def make_optimizer(towers: nn.Module, spec: Train) -> Optimizer:
    """AdamW with decay on matrices only: biases, gains and the logit scale are left alone, as in open_clip."""
    trained = [p for p in towers.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=spec.lr, betas=(spec.betas[0], spec.betas[1]))


def learning_rate(spec: Train, step: int, steps: int) -> float:
    """Linear warm-up over ``warmup_fraction`` of the steps, then a cosine to 0."""
    warmup = round(spec.warmup_fraction * steps)
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def step_seed(seed: int, *where: int) -> int:
    """A seed for the random draws at one place of training (step, part), so that resuming needs no generator state."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, (seed, *where))).encode(), digest_size=7).digest())
