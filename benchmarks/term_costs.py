"""What a step of every term costs beside one of InfoNCE: value and gradient, at batch 512 and 4,096, d = 512.

python benchmarks/term_costs.py [--threads 1]

Prints a table of ratios and of InfoNCE's own milliseconds, in seconds of the processor. Rows are drawn: pairs around
common points, a gap between the modalities, features from which a random map made the rows. Half of the rows are
unpaired where a term sees such. The shortest of three runs (at 4,096 rows: one).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cs_aligner_cli.objectives import (
    cs_divergence,
    direction_agreement,
    infonce,
    infonce_with_negatives,
    plan_divergence,
    pseudo_pairs,
    sinkhorn,
    structure,
)
from cs_aligner_cli.objectives.pseudo_pairs import Side

DIM, SCALE = 512, 14.3
Loss = Callable[[Tensor, Tensor], Tensor]


def drawn(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and texts (rows, 512), and the features (rows, 512) of both."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    common, offset = normal(rows, DIM), normal(DIM)
    features = [common + 0.7 * normal(rows, DIM) for _ in "xy"]
    mapped = [z @ normal(DIM, DIM) / DIM**0.5 + common for z in features]
    image, text = (normalize(z + sign * 0.3 * offset, dim=1) for z, sign in zip(mapped, (1, -1), strict=True))
    return image, text, *features


def losses(rows: int, features: tuple[Tensor, Tensor]) -> dict[str, Loss]:
    """Every term by its key in a recipe."""
    paired, unpaired = slice(0, rows // 2), slice(rows // 2, rows)
    scale = torch.tensor(SCALE)

    def side(cloud: Tensor, of: Tensor) -> Side:
        return Side(cloud[paired], cloud[unpaired], of[paired], of[unpaired])

    return {
        "`infonce`": lambda x, y: infonce(x, y, scale),
        "`cs`": lambda x, y: cs_divergence(x, y, 0.7071),
        "`sinkhorn`": sinkhorn,
        "`structure`, js": lambda x, y: structure(features[0], x) + structure(features[1], y),
        "`structure`, cka": lambda x, y: structure(features[0], x, "cka") + structure(features[1], y, "cka"),
        "`teacher`": lambda x, y: plan_divergence(x, y, *features),
        "`pseudo_pairs`, half unpaired": lambda x, y: pseudo_pairs(side(x, features[0]), side(y, features[1]), scale),
        "`agreement`": lambda x, y: direction_agreement(x, y, scale),
        "`unpaired_negatives`, half unpaired": lambda x, y: infonce_with_negatives(
            x[paired], y[paired], scale, None, x[unpaired], y[unpaired]
        ),
    }


def seconds(loss: Loss, image: Tensor, text: Tensor, repeats: int) -> float:
    """The shortest of some steps."""
    times = []
    for _ in range(repeats):
        x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
        start = time.process_time()
        torch.autograd.grad(loss(x, y), (x, y))
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    found: dict[str, list[float]] = {}
    for rows, repeats in ((512, 3), (4096, 1)):
        image, text, *features = drawn(rows)
        for name, loss in losses(rows, (features[0], features[1])).items():
            found.setdefault(name, []).append(seconds(loss, image, text, repeats))
    base = found.pop("`infonce`")
    print("| term | batch 512 | batch 4,096 |\n|---|---|---|")
    print(f"| `infonce` | {base[0] * 1e3:.0f} ms | {base[1] * 1e3:,.0f} ms |")
    for name, times in found.items():
        print(f"| {name} | {' | '.join(f'{took / own:.1f}' for took, own in zip(times, base, strict=True))} |")


if __name__ == "__main__":
    main()
