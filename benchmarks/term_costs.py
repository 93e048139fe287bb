"""What a step of every term costs beside one of InfoNCE: value and gradient, at batch 512 and 4,096, d = 512.

python benchmarks/term_costs.py [--threads 1]     # prints a table, and writes docs/results/term_costs.json
python benchmarks/results.py tables               # puts it into docs/objectives.md

Ratios, and InfoNCE's own milliseconds, in seconds of the processor. Rows are drawn: pairs around common points, a gap
between the modalities, features from which a random map made the rows; the tokens of an item lie around its row. Half
of the rows are unpaired where a term sees such. Rows, tokens and a full queue are there before a step begins. The
shortest of three runs after one that does not count (at 4,096 rows: one run).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
Loss = Callable[..., Tensor]


class Term(NamedTuple):
    """A term's loss, and what it is a function of: rows, or tokens."""

    loss: Loss
    inputs: tuple[Tensor, ...]


def drawn(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and texts (rows, 512), and the features (rows, 512) of both."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    common, offset = normal(rows, DIM), normal(DIM)
    features = [common + 0.7 * normal(rows, DIM) for _ in "xy"]
    mapped = [z @ normal(DIM, DIM) / DIM**0.5 + common for z in features]
    image, text = (normalize(z + sign * 0.3 * offset, dim=1) for z, sign in zip(mapped, (1, -1), strict=True))
    return image, text, *features


def terms(rows: int) -> dict[str, Term]:
    """Every term by its key in a recipe."""
    image, text, *both = drawn(rows)
    features = both[0], both[1]
    paired, unpaired = slice(0, rows // 2), slice(rows // 2, rows)
    scale = torch.tensor(SCALE)

    def side(cloud: Tensor, of: Tensor) -> Side:
        return Side(cloud[paired], cloud[unpaired], of[paired], of[unpaired])

    groups = tokens_of(image, GROUPS), tokens_of(text, GROUPS)
    tokens = tokens_of(image, TOKENS), tokens_of(text, TOKENS)
    items = {"image": Items(image, tokens[0]), "text": Items(text, tokens[1])}
    of_rows: dict[str, Loss] = {
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
        f"`cs`, `memory: {QUEUE}`": partial(remembered, full_queue(None)),
        f"`cs`, `memory: {QUEUE}`, `memory_momentum`": partial(remembered, full_queue(0.99)),
        f"`matching`, {TOKENS} tokens an item": partial(matched, MatchingHead(DIM, 64), items),
    }
    found = {name: Term(loss, (image, text)) for name, loss in of_rows.items()}
    found[f"`levels`, {GROUPS} groups an item"] = Term(lambda u, v: late_interaction_infonce(u, v, scale), groups)
    found[f"`token_exchange`, {TOKENS} tokens an item"] = Term(exchanged, (image, text, *tokens))
    return found


def tokens_of(rows: Tensor, number: int) -> Tensor:
    """(N, number, 512) unit tokens around every row."""
    generator = torch.Generator().manual_seed(1)
    return normalize(rows.unsqueeze(1) + torch.randn(number, DIM, generator=generator) / DIM**0.5, dim=2)


def exchanged(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The exchange both ways, of a fifth of the tokens, which a step draws."""
    chosen = torch.rand(len(x), TOKENS) < 0.2
    return token_exchange(of_x, of_y, x, chosen, SCALE) + token_exchange(of_y, of_x, y, chosen, SCALE)


def full_queue(momentum: float | None) -> Memory:
    """A queue with all of its rows and, with a momentum, the average of linear towers."""
    memory = Memory(QUEUE, momentum)
    past = normalize(torch.randn(QUEUE, DIM, generator=torch.Generator().manual_seed(3)), dim=1)
    memory.add({"image": past, "text": past.flip(0)})
    if momentum is not None:
        memory.average(_towers())
    return memory


def _towers() -> dict[str, Tensor]:
    return {"image": torch.eye(DIM), "text": torch.eye(DIM)}


def remembered(memory: Memory, x: Tensor, y: Tensor) -> Tensor:
    """CS over the rows and a full queue; with a momentum, linear towers are averaged, and map the rows once more."""
    loss = cs_divergence(*(torch.cat([z, memory.rows[m]]) for z, m in ((x, "image"), (y, "text"))), 0.7071)
    if memory.momentum is not None:
        memory.average(_towers())
    kept = {m: z.detach() @ memory.averages[m] if memory.momentum else z for m, z in (("image", x), ("text", y))}
    memory.add(kept)
    return loss


def matched(head: MatchingHead, items: dict[str, Items], x: Tensor, y: Tensor) -> Tensor:
    """A step of a matching head of the default width, 256 pairs at a time; towers stand still, and have no gradient."""
    add_gradients(head, items, hard_negatives(items["image"].rows, items["text"].rows, 1, 0.05), 256)
    return 0 * (x[:1].sum() + y[:1].sum())


def seconds(term: Term, warm: int, repeats: int) -> float:
    """The shortest of some steps, the first ``warm`` ones left out."""
    times = []
    for _ in range(warm + repeats):
        inputs = [z.clone().requires_grad_() for z in term.inputs]
        start = time.process_time()
        torch.autograd.grad(term.loss(*inputs), inputs)
        times.append(time.process_time() - start)
    return min(times[warm:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {}
    for rows, warm, repeats in ((512, 1, 3), (4096, 0, 1)):
        for name, term in terms(rows).items():
            found.setdefault(name, []).append(seconds(term, warm, repeats))
    command = f"python benchmarks/term_costs.py --threads {threads}"
    content = {"name": "term_costs", "command": command, **results._where()}
    content |= {"seeds": [0], "terms": [{"label": name, "seconds": times} for name, times in found.items()]}
    (results.RESULTS / "term_costs.json").write_text(json.dumps(content, indent=1) + "\n")
    print(costs(content))


if __name__ == "__main__":
    main()
