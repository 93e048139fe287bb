"""What a step of every term costs beside one of InfoNCE: value and gradient, at batch 512 and 4,096, d = 512.

python benchmarks/term_costs.py [--threads 1]     # prints a table, and writes docs/results/term_costs.json
python benchmarks/results.py tables               # puts it into docs/objectives.md

Ratios, and InfoNCE's own milliseconds, in seconds of the processor. Rows are drawn: pairs around common points, a gap
between the modalities, features from which a random map made the rows; the tokens of an item lie around its row. Half
of the rows are unpaired where a term sees such. The shortest of three runs (at 4,096 rows: one).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import results
import torch
from table_cells import costs
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
from cs_aligner_cli.objectives.levels import late_interaction_infonce
from cs_aligner_cli.objectives.matching import hard_negatives
from cs_aligner_cli.objectives.pseudo_pairs import Side
from cs_aligner_cli.objectives.token_exchange import token_exchange
from cs_aligner_cli.towers.matching_head import Items, MatchingHead
from cs_aligner_cli.training.matching import add_gradients
from cs_aligner_cli.training.memory_bank import Memory

DIM, SCALE = 512, 14.3
# Groups of an item's tokens on a level, its tokens elsewhere, and rows of the queue.
GROUPS, TOKENS, QUEUE = 4, 16, 4096
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
        f"`levels`, {GROUPS} groups an item": lambda x, y: late_interaction_infonce(
            tokens_of(x, GROUPS), tokens_of(y, GROUPS), scale
        ),
        f"`token_exchange`, {TOKENS} tokens an item": lambda x, y: exchanged(x, y) + exchanged(y, x),
        f"`cs`, `memory: {QUEUE}`": partial(remembered, momentum=None),
        f"`cs`, `memory: {QUEUE}`, `memory_momentum`": partial(remembered, momentum=0.99),
        f"`matching`, {TOKENS} tokens an item": matched,
    }


def tokens_of(rows: Tensor, number: int) -> Tensor:
    """(N, number, 512) unit tokens around every row."""
    generator = torch.Generator().manual_seed(1)
    return normalize(rows.unsqueeze(1) + torch.randn(number, DIM, generator=generator) / DIM**0.5, dim=2)


def exchanged(x: Tensor, y: Tensor) -> Tensor:
    """The exchange one way, of a fifth of the tokens."""
    chosen = torch.rand(len(x), TOKENS, generator=torch.Generator().manual_seed(2)) < 0.2
    return token_exchange(tokens_of(x, TOKENS), tokens_of(y, TOKENS), x, chosen, SCALE)


def remembered(x: Tensor, y: Tensor, momentum: float | None) -> Tensor:
    """CS over the rows and a full queue; with a momentum, linear towers are averaged, and map the rows once more."""
    memory, weight = Memory(QUEUE, momentum), torch.eye(DIM)
    past = normalize(torch.randn(QUEUE, DIM, generator=torch.Generator().manual_seed(3)), dim=1)
    memory.add({"image": past, "text": past.flip(0)})
    loss = cs_divergence(*(torch.cat([z, memory.rows[m]]) for z, m in ((x, "image"), (y, "text"))), 0.7071)
    if momentum is not None:
        memory.average({"image": weight, "text": weight})
        memory.average({"image": weight, "text": weight})
    kept = {m: z.detach() @ memory.averages[m] if momentum else z for m, z in (("image", x), ("text", y))}
    memory.add(kept)
    return loss


def matched(x: Tensor, y: Tensor) -> Tensor:
    """A step of a matching head of the default width, 256 pairs at a time; towers stand still, and have no gradient."""
    items = {m: Items(z.detach(), tokens_of(z.detach(), TOKENS)) for m, z in (("image", x), ("text", y))}
    negatives = hard_negatives(items["image"].rows, items["text"].rows, 1, 0.05)
    add_gradients(MatchingHead(DIM, 64), items, negatives, 256)
    return 0 * (x[:1].sum() + y[:1].sum())


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
    content = {"name": "term_costs", "command": "python benchmarks/term_costs.py", **results._where()}
    content |= {"seeds": [0], "terms": [{"label": name, "seconds": times} for name, times in found.items()]}
    (results.RESULTS / "term_costs.json").write_text(json.dumps(content, indent=1) + "\n")
    print(costs(content))


if __name__ == "__main__":
    main()
