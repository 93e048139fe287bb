"""Part of benchmarks/gpu.py: one training step of an adapter of a recipe, beside the same with open_clip's loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cs_aligner_cli.objectives import Clouds, Logits, Term, evaluate_terms, on_clouds, on_pairs
from cs_aligner_cli.objectives.divergences import cs_divergence, gram_divergence
from cs_aligner_cli.objectives.pairwise import infonce

DEVICE, DIM, SCALE, SIGMA = "cuda", 512, 14.3, 0.7071


def training(steps: int = 100) -> Iterator[dict[str, Any]]:
    """Milliseconds a step: a linear adapter for each modality, features on the device, AdamW as a recipe has it."""
    for batch in (512, 2048, 8192):
        for name, gradients in {"csalign, InfoNCE + CS": _ours, "open_clip's ClipLoss": _clip}.items():
            torch.manual_seed(0)
            features = [torch.randn(4 * batch, DIM, device=DEVICE) for _ in range(2)]
            towers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2)).to(DEVICE)
            optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-4, fused=True)
            generator = torch.Generator(DEVICE).manual_seed(0)
            for step in range(steps + 10):
                if step == 10:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                drawn = torch.randint(len(features[0]), (batch,), device=DEVICE, generator=generator)
                rows = [
                    nn.functional.normalize(tower(part[drawn]), dim=1)
                    for tower, part in zip(towers, features, strict=True)
                ]
                optimizer.zero_grad()
                gradients(rows)
                optimizer.step()
            torch.cuda.synchronize()
            yield {"batch": batch, "what": name, "ms a step": round((time.perf_counter() - began) / steps * 1e3, 3)}


def _ours(rows: list[torch.Tensor]) -> None:
    scale = torch.tensor(SCALE, device=DEVICE)
    clouds = Clouds.of_pairs(rows[0].detach(), rows[1].detach())
    found = evaluate_terms(_TERMS, clouds, Logits(scale, scale), separate=False)
    torch.autograd.backward(rows, list(found.grads.values()))


def _clip(rows: list[torch.Tensor]) -> None:
    from open_clip import ClipLoss

    ClipLoss()(rows[0], rows[1], torch.tensor(SCALE, device=DEVICE)).backward()


_TERMS = [
    Term("infonce", 1.0, on_pairs(lambda i, t, logits, groups: infonce(i, t, logits.scale, groups)), sums="infonce"),
    Term("cs", 1.0, on_clouds(lambda i, t: cs_divergence(i, t, SIGMA)), sums=gram_divergence("cs", (SIGMA,), "v")),
]
