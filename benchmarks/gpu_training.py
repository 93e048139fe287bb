"""Part of benchmarks/gpu.py: one training step of an adapter of a recipe, beside the same with open_clip's loss."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from cs_aligner_cli.objectives import Clouds, Logits, Term, evaluate_terms, on_sums
from cs_aligner_cli.objectives.divergences import gram_divergence

DIM, SCALE, SIGMA = 512, 14.3, 0.7071


def training(device: str, batches: Sequence[int] = (512, 2048, 8192), steps: int = 100) -> Iterator[dict[str, Any]]:
    """Milliseconds a step: a linear adapter for each modality, features on the device, AdamW as a recipe has it."""
    for batch in batches:
        for name, gradients in {"csalign, InfoNCE + CS": _ours, "open_clip's ClipLoss": _clip}.items():
            torch.manual_seed(0)
            features = [torch.randn(4 * batch, DIM, device=device) for _ in range(2)]
            towers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2)).to(device)
            optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-4, fused=True)
            generator = torch.Generator(device).manual_seed(0)
            for step in range(steps + 10):
                if step == 10:
                    _synchronize(device)
                    began = time.perf_counter()
                drawn = torch.randint(len(features[0]), (batch,), device=device, generator=generator)
                rows = [
                    nn.functional.normalize(tower(part[drawn]), dim=1)
                    for tower, part in zip(towers, features, strict=True)
                ]
                optimizer.zero_grad()
                gradients(rows)
                optimizer.step()
            _synchronize(device)
            yield {"batch": batch, "what": name, "ms a step": round((time.perf_counter() - began) / steps * 1e3, 3)}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _ours(rows: list[torch.Tensor]) -> None:
    scale = torch.tensor(SCALE, device=rows[0].device)
    clouds = Clouds.of_pairs(rows[0].detach(), rows[1].detach())
    found = evaluate_terms(_TERMS, clouds, Logits(scale, scale), separate=False)
    torch.autograd.backward(rows, list(found.grads.values()))


def _clip(rows: list[torch.Tensor]) -> None:
    from open_clip import ClipLoss

    ClipLoss()(rows[0], rows[1], torch.tensor(SCALE, device=rows[0].device)).backward()


_CS = gram_divergence("cs", (SIGMA,))
_TERMS = [
    Term("infonce", 1.0, on_sums("infonce"), sums="infonce"),
    Term("cs", 1.0, on_sums(_CS), sums=_CS),
]
