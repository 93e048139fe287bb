"""What one rank computes of objectives that several share: run by test_shared_sums.py, by each of its processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import objective_peak
from torch import Tensor
from torch.nn.functional import normalize

from cs_aligner_cli.common.row_exchange import RowExchange, Shares, own_slice
from cs_aligner_cli.objectives import Clouds, Logits, Pairs, Term, TermValues, evaluate_terms, on_pairs, on_sums
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Edge
from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.objectives.table import PAIRWISE
from cs_aligner_cli.recipe.distributed import Distributed
from cs_aligner_cli.runs.distributed import together

LOGITS = Logits(torch.tensor(14.3, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64))
FAR = Logits(torch.tensor(300.0, dtype=torch.float64), LOGITS.bias)
LARGE = 240
_FUSED = 40


def rows(seed: int, size: int, dims: int = 6) -> Tensor:
    """Unit rows of one modality around a centre of their own."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    return normalize(values + torch.randn(dims, generator=generator, dtype=torch.float64), dim=1)


def terms(sums: Any, edges: Sequence[Edge] = (IMAGE_TEXT,), weight: float = 1.3, **options: Any) -> list[Term]:
    """InfoNCE and a divergence of kernel sums."""
    return [
        Term("infonce", 0.7, on_sums("infonce", edges), sums="infonce"),
        Term("divergence", weight, on_sums(sums, edges), sums=sums, **options),
    ]


def _regimes() -> Clouds:
    """Unpaired texts, images with several captions, and a memory."""
    pairs = Pairs(torch.arange(19) * 2 // 3, torch.arange(19), torch.arange(19) * 2 // 3)
    past = {"image": rows(7, 5), "text": rows(8, 4)}
    return Clouds({"image": rows(0, 13), "text": rows(1, 24)}, {IMAGE_TEXT: pairs}, past)


def _three() -> Clouds:
    edges: list[Edge] = [IMAGE_TEXT, ("image", "audio")]
    return Clouds({"image": rows(0, 11), "text": rows(1, 11), "audio": rows(2, 11)}, dict.fromkeys(edges, Pairs()))


PAIRED = Clouds.of_pairs(rows(0, 23), rows(1, 23), torch.arange(23) // 2)
CS, MIXTURE = gram_divergence("cs", (0.7,)), gram_divergence("cs", (0.4, 1.1))
CASES: dict[str, Callable[[], tuple[list[Term], Clouds, Logits, bool]]] = {
    "one pass over shared tiles, groups": lambda: (terms(MIXTURE), PAIRED, LOGITS, False),
    "far logits": lambda: (terms(CS), PAIRED, FAR, False),
    "apart, a relative weight": lambda: (terms(MIXTURE, relative=0.4), PAIRED, LOGITS, True),
    "mmd, far and without (i, i)": lambda: (terms(gram_divergence("mmd", (0.05, 0.2), "u")), PAIRED, LOGITS, False),
    "energy": lambda: (terms(gram_divergence("energy", (), "u")), PAIRED, LOGITS, False),
    "unpaired, all captions, a memory": lambda: (terms(MIXTURE), _regimes(), LOGITS, False),
    "three modalities": lambda: (terms(CS, [*_three().pairs]), _three(), LOGITS, False),
    "gathered": lambda: (
        [Term("siglip", 1.0, on_pairs(PAIRWISE["siglip"])), terms(CS)[1]],
        _regimes(),
        LOGITS,
        True,
    ),
}


def share(clouds: Clouds, exchange: RowExchange) -> Clouds:
    """One rank's part of the clouds; shares are uneven."""
    counts = {m: _uneven(len(part), exchange.size) for m, part in clouds.rows.items()}
    split = replace(clouds, exchange=exchange, counts=counts)
    return replace(split, rows=split.own(clouds.rows))


def _uneven(size: int, ranks: int) -> list[int]:
    first = [1, *(size // (2 * ranks) for _ in range(ranks - 2))]
    return [*first, size - sum(first)]


def flat(found: TermValues) -> dict[str, Tensor]:
    """Everything that an evaluation gives, by name."""
    weights = {f"weight {name}": torch.tensor(weight) for name, weight in found.weights.items()}
    norms = {f"norm {name}": norm for name, norm in found.grad_norms.items()}
    scalars = {"total": found.total, **{f"logit {i}": grad for i, grad in enumerate(found.logit_grads)}}
    return {**found.values, **weights, **norms, **scalars, **{f"grad {m}": grad for m, grad in found.grads.items()}}


def evaluated(case: str, exchange: RowExchange | None = None) -> dict[str, Tensor]:
    """One case by one process, or by this rank with gradients gathered."""
    given, clouds, logits, separate = CASES[case]()
    if exchange is None:
        return {**flat(evaluate_terms(given, clouds, logits, separate=separate)), "spaced": _spaced(clouds)}
    own = share(clouds, exchange)
    found = flat(evaluate_terms(given, own, logits, separate=separate))
    gathered = {f"grad {m}": exchange.all_gather_rows(found[f"grad {m}"], own.counts[m]) for m in own.rows}
    return {**found, **gathered, "spaced": _spaced(own)}


def _spaced(clouds: Clouds) -> Tensor:
    return torch.cat(clouds.evenly_spaced(9))


def fused(kind: str, exchange: RowExchange | None = None) -> dict[str, Tensor]:
    """The kernels of a GPU, which Triton's interpreter runs, on clouds that ranks share."""
    from cs_aligner_cli.objectives.fused_plan import Plan, Tile
    from cs_aligner_cli.objectives.gram import InfoNce, evaluate_fused, evaluate_pairs

    plan = Plan(torch.float32, torch.float32, Tile(32, 64, 16, 4, 1, 2), inside=True, chunk_bytes=1)
    divergence = gram_divergence("cs", (0.7,)) if kind == "cs" else gram_divergence("mmd", (0.1, 0.3), "u")
    x, y = rows(0, _FUSED, 16).float(), rows(1, _FUSED, 16).float()
    infonce = InfoNce(torch.tensor(14.3 if kind == "cs" else 300.0), torch.arange(_FUSED) // 2)
    weights = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    if exchange is None:
        wide = InfoNce(infonce.logit_scale.double(), infonce.groups)
        found = evaluate_pairs(x.double(), y.double(), wide, divergence, weights=(0.7, 1.3))
        return found._asdict()
    counts = _uneven(_FUSED, exchange.size)
    own, shares = own_slice(counts, exchange.rank), Shares(exchange, counts, counts)
    found = evaluate_fused(x[own], y[own], infonce, divergence, weights, True, plan, shares)
    whole = {name: exchange.all_gather_rows(getattr(found, name), counts) for name in ("x_grad", "y_grad")}
    return {**found._asdict(), **whole}


def rank_of_a_job(rank: int, size: int, port: int, out: Path) -> None:
    """Join the other ranks, compute everything; rank 0 leaves it in ``out``."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TRITON_INTERPRET": "1"}
    with together(Distributed()) as ranks:
        found: dict[str, Any] = {case: evaluated(case, ranks) for case in CASES}
        found |= {f"fused {kind}": fused(kind, ranks) for kind in ("cs", "mmd")}
        found["megabytes"] = torch.tensor(ranks.all_gather(objective_peak(ranks, LARGE)))
        if ranks.main:
            torch.save(found, out)


def alone(out: Path) -> None:
    """The peak of one process."""
    torch.set_num_threads(1)
    torch.save(objective_peak(RowExchange(), LARGE), out)
