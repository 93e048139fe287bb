"""The price of adding CS: one training step of InfoNCE + CS against open_clip's ClipLoss alone, same batch.

python benchmarks/objectives.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from open_clip import ClipLoss
from torch import Tensor

from cs_aligner_cli.objectives import cs_divergence, evaluate_terms, infonce
from cs_aligner_cli.objectives.terms import Term

SIZES = (256, 512, 1024, 2048)
DIM = 512


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> None:
    """open_clip's loss, forward and backward."""
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    ClipLoss()(image, text, scale).backward()


def infonce_and_cs(image: Tensor, text: Tensor, scale: Tensor) -> None:
    """Our two terms with the gradient of each, forward and backward."""

    def cs(x: Tensor, y: Tensor, logit_scale: Tensor, groups: Tensor | None) -> Tensor:
        return cs_divergence(x, y, 0.7071)

    evaluate_terms([Term("infonce", 1.0, infonce), Term("cs", 1.0, cs)], image, text, scale)


def best_of(call: Callable[[Tensor, Tensor, Tensor], None], *arguments: Tensor, repeats: int = 7) -> float:
    """The shortest of several runs, seconds."""
    call(*arguments)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line per batch size."""
    torch.manual_seed(0)
    scale = torch.tensor(14.3)
    for size in SIZES:
        image, text = (torch.nn.functional.normalize(torch.randn(size, DIM), dim=1) for _ in range(2))
        alone, both = best_of(clip_loss, image, text, scale), best_of(infonce_and_cs, image, text, scale)
        print(
            f"batch {size:5d}, d = {DIM}: ClipLoss {alone * 1e3:7.1f} ms, InfoNCE + CS {both * 1e3:7.1f} ms, "
            f"ratio {both / alone:.1f}"
        )


if __name__ == "__main__":
    main()
