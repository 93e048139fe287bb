"""Memory that is linear in the rows, as Linux counts it: terms for few pairs and over tokens, and Sinkhorn."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Every term by itself at n and at 2n rows, with the constants that blocks may take made small. What is read is what the
# call added to the process, in MB: the peak is reset before.
_MEASURE = """
import ctypes, json, torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from cs_aligner_cli.objectives import (
    cs_divergence, direction_agreement, infonce_with_negatives, matching, plan_divergence, pseudo_pairs, row_blocks,
    siglip_with_negatives, sinkhorn, structure, tiles,
)
from cs_aligner_cli.objectives.levels import late_interaction_infonce
from cs_aligner_cli.objectives.pseudo_pairs import Side
from cs_aligner_cli.objectives.token_exchange import token_exchange
from cs_aligner_cli.runs.cost import Meter
from cs_aligner_cli.towers.matching_head import Items, MatchingHead
from cs_aligner_cli.training.matching import add_gradients
from cs_aligner_cli.training.memory_bank import Memory

torch.set_num_threads(1)
row_blocks._BLOCK_ENTRIES, row_blocks._KEPT_BYTES, tiles._KEPT_BYTES = 2**16, 2**18, 2**18
tiles._TILE = {"cpu": (64, 256)}
row_blocks.sum_over_blocks.__kwdefaults__["entries"] = 2**16
matching._ENTRIES = 2**16
scale, bias = torch.tensor(10.0), torch.tensor(-5.0)

def few(n: int) -> slice:
    return slice(0, n // 2)

def further(n: int) -> slice:
    return slice(n // 2, n)

def side(x: Tensor, n: int) -> Side:
    return Side(x[few(n)], x[further(n)], x[few(n)].detach(), x[further(n)].detach())

def tokens(z: Tensor) -> Tensor:
    return torch.stack([z, z.roll(1, 0)], dim=1)

def exchanged(x: Tensor, y: Tensor) -> Tensor:
    return token_exchange(tokens(x), tokens(y), x, torch.ones(len(x), 2, dtype=torch.bool), scale)

def remembered(x: Tensor, y: Tensor, n: int) -> Tensor:
    memory = Memory(n // 4, momentum=0.9)
    memory.average({"weight": x})
    memory.add({"image": x, "text": y})
    return cs_divergence(*(torch.cat([z, memory.rows[m]]) for z, m in ((x, "image"), (y, "text"))), 0.7)

def matched(x: Tensor, y: Tensor) -> Tensor:
    head, items = MatchingHead(8, 4), {m: Items(z.detach(), tokens(z.detach())) for m, z in (("image", x), ("text", y))}
    add_gradients(head, items, matching.hard_negatives(x.detach(), y.detach(), 1, 0.1), 256)
    return 0 * x.sum()

terms = {
    "one matrix": lambda x, y, n: cross_entropy(10 * x @ y.T, torch.arange(n)),
    "sinkhorn, p 1": lambda x, y, n: sinkhorn(x, y, 1.0, p=1, tolerance=0.1, scaling=0.01),
    "structure js": lambda x, y, n: structure(y.detach(), x, "js"),
    "structure cka": lambda x, y, n: structure(y.detach(), x, "cka"),
    "teacher": lambda x, y, n: plan_divergence(x, y, y, x, epsilon=1.0, tolerance=0.1),
    "unpaired negatives": lambda x, y, n: infonce_with_negatives(
        x[few(n)], y[few(n)], scale, None, x[further(n)], y[further(n)]
    ),
    "unpaired negatives, siglip": lambda x, y, n: siglip_with_negatives(
        x[few(n)], y[few(n)], scale, bias, None, x[further(n)], y[further(n)]
    ),
    "pseudo pairs, transport": lambda x, y, n: pseudo_pairs(side(x, n), side(y, n), scale, "transport", 1.0),
    "agreement": lambda x, y, n: direction_agreement(x, y, scale),
    "levels": lambda x, y, n: late_interaction_infonce(tokens(x), y.unsqueeze(1), scale),
    "token exchange": lambda x, y, n: exchanged(x, y),
    "memory with momentum": remembered,
    "matching": lambda x, y, n: matched(x, y),
}

def measured(term, n: int) -> float:
    x, y = (normalize(torch.randn(n, 8), dim=1).requires_grad_() for _ in "xy")
    ctypes.CDLL(None).malloc_trim(0)
    meter = Meter()
    before = meter.read().peak_memory_mb
    torch.autograd.grad(term(x, y, n), (x, y), allow_unused=True)
    return meter.read().peak_memory_mb - before

found = {}
for name, term in terms.items():
    term(*(normalize(torch.randn(64, 8), dim=1).requires_grad_() for _ in "xy"), 64)
    found[name] = [measured(term, n) for n in (1200, 2400)]
    if name != "one matrix" and max(found[name]) > 18:  # what the system adds by itself, it does not add twice
        found[name] = [measured(term, n) for n in (1200, 2400)]
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_no_term_has_an_n_x_n_matrix() -> None:
    """A matrix of 2,400 x 2,400 in float32 takes 22 MB; what is linear takes 1, beside some blocks."""
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    dense = found.pop("one matrix")
    assert dense[1] - dense[0] > 20, f"a matrix has to be seen: {dense}"
    assert {name: sizes for name, sizes in found.items() if max(sizes) > 18} == {}
