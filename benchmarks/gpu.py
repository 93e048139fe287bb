"""csalign on one GPU: matrix rates, the objective with its error, time and memory, and embedding.

    python benchmarks/gpu.py PART [--photos FOLDER] [--json FILE]
    python benchmarks/gpu.py table FILE.json ...        # what parts left there, as one table

rates, errors: TFLOP/s, and relative errors against float64. objective: InfoNCE + CS with gradients in every precision
beside open_clip's ClipLoss and sentence-transformers' cached loss (InfoNCE alone), FlashSinkhorn where it is installed
(another divergence of the same clouds) and the direct expression; share is of the rate of a product in that precision
which is taken in turn with the objective, on the 12 N^2 d operations that value and gradient need. tune: the kernels in
several forms. profile: where one call's time goes. training: one step of an adapter beside one with ClipLoss. embed:
`csalign embed` of the photos, each a few times, beside a DataLoader loop with 16 workers and the bare forward. decode:
what one photo costs before the encoder, and how that scales over threads and processes. --small: the smallest sizes,
also on a processor, where they show that a part works and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_embed import decoding, embedding
from gpu_timing import (
    DEVICE,
    PRECISIONS,
    SCALE,
    SIGMA,
    Call,
    beside_product,
    joint,
    milliseconds,
    peak_megabytes,
    product,
    unit_rows,
    with_gradient,
)
from gpu_training import training
from gpu_tune import VARIANTS, profile, tune
from torch import Tensor
from torch.nn.functional import cross_entropy

_ON_A_PROCESSOR = ("rates", "errors", "objective", "training", "embed")


def direct_loss(x: Tensor, y: Tensor) -> Tensor:
    """The same as one would write it: whole matrices, autograd."""

    def log_sum_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
        return torch.logsumexp((squares / (-2 * SIGMA**2)).flatten(), 0)

    logits, own = SCALE * x @ y.T, torch.arange(len(x), device=x.device)
    ranking = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    return ranking + log_sum_kernel(x, x) + log_sum_kernel(y, y) - 2 * log_sum_kernel(x, y)


def clip_loss(x: Tensor, y: Tensor) -> Tensor:
    """open_clip's InfoNCE alone."""
    from open_clip import ClipLoss

    return ClipLoss()(x, y, torch.tensor(SCALE, device=x.device))  # type: ignore[no-any-return]


def cached_loss(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """sentence-transformers' InfoNCE alone of both directions, in blocks of 4,096 rows, with its own gradients."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from torch.nn import Identity

    loss = CachedMultipleNegativesRankingLoss(
        SentenceTransformer(modules=[Identity()], device=str(x.device)),
        scale=SCALE,
        mini_batch_size=4096,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    leaves = [part.detach().requires_grad_() for part in (x, y)]
    value = loss.calculate_loss([[leaf] for leaf in leaves], with_backward=True)
    return value, tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


def flash_sinkhorn(x: Tensor, y: Tensor) -> Tensor:
    """FlashSinkhorn's debiased divergence of both clouds, another objective than ours over the same pairs."""
    from flash_sinkhorn import SamplesLoss

    return SamplesLoss(loss="sinkhorn", blur=0.1, half_cost=True, debias=True)(x, y)  # type: ignore[no-any-return]


def rates(size: int = 8192) -> dict[str, float]:
    """TFLOP/s of size^3 products, and TB/s of a copy."""
    found = {name: 2 * size**3 / milliseconds(product(name, size)) / 1e9 for name in PRECISIONS}
    large = torch.randn(8 * size**2, device=DEVICE)
    other = torch.empty_like(large)
    return {**found, "copy TB/s": 2 * large.nbytes / milliseconds(lambda: other.copy_(large)) / 1e9}


def errors(n: int = 4096, dims: tuple[int, ...] = (512, 1024)) -> Iterator[dict[str, Any]]:
    """Relative errors of value and gradient against the direct expression in float64."""
    for d in dims:
        x, y = unit_rows(n, d)
        wide = [part.detach().double().requires_grad_() for part in (x, y)]
        value, grads = with_gradient(direct_loss)(*wide)
        grad = torch.cat(grads)
        for name, call in {"direct": with_gradient(direct_loss), **{p: joint(p) for p in PRECISIONS}}.items():
            found, slopes = call(x, y)
            slope = torch.cat(slopes)
            yield {
                "n": n,
                "d": d,
                "what": name,
                "value error": abs(float(found - value) / float(value)),
                "gradient error": float((slope - grad).norm() / grad.norm()),
            }


def objective(sizes: tuple[int, ...], dims: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Time, memory and share of the matrix rate of ours and its peers."""
    for d in dims:
        for n in sizes:
            x, y = unit_rows(n, d)
            sides: dict[str, Call] = {p: joint(p) for p in PRECISIONS}
            if n <= 32768:
                sides["ClipLoss"] = with_gradient(clip_loss)
                sides["CachedMultipleNegativesRankingLoss"] = cached_loss
                if find_spec("flash_sinkhorn") and DEVICE == "cuda":
                    sides["FlashSinkhorn"] = with_gradient(flash_sinkhorn)
            if n <= 16384:
                sides["direct"] = with_gradient(direct_loss)
            for name, call in sides.items():
                if name == "fp32" and n * n * d > 2**43:
                    continue
                row: dict[str, Any] = {"n": n, "d": d, "what": name}
                run = partial(call, x, y)
                try:
                    if DEVICE == "cuda" and name in PRECISIONS and n >= 8192:
                        row |= beside_product(name, run, n, d, 3)
                    else:
                        row["ms"] = round(milliseconds(run, 20 if n <= 2048 else 3), 3)
                except Exception as error:  # noqa: BLE001 - a peer that fails ends none of the others
                    yield {**row, "error": f"{type(error).__name__}: {error}"[:200]}
                    continue
                row["MB"] = peak_megabytes(run)
                yield row


def shown(row: dict[str, Any]) -> str:
    """One line of a table."""
    return "  ".join(
        f"{key} {value:.2g}" if "error" in key and isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
    )


def as_table(files: Sequence[Path]) -> str:
    """What several parts left in JSON as one table in Markdown, a line for everything that was measured."""
    lines: list[dict[str, Any]] = []
    devices = []
    for file in files:
        found = json.loads(file.read_text())
        devices.append(f"{found.pop('device')}, torch {found.pop('torch')}")
        rates_found = found.pop("rates")
        lines += [{"part": part, **row} for part, rows in found.items() for row in rows]
        if rates_found and not any(line["part"] == "rates" for line in lines):
            units = {name: "TB/s" if "TB/s" in name else "TFLOP/s" for name in rates_found}
            lines += [
                {"part": "rates", "what": name.removesuffix(" TB/s"), units[name]: round(rate, 1)}
                for name, rate in rates_found.items()
            ]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    cells = [[_cell(key, line.get(key)) for key in columns] for line in lines]
    rows = [columns, ["---"] * len(columns), *cells]
    return "\n".join([*dict.fromkeys(devices), "", *("| " + " | ".join(row) + " |" for row in rows)])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if "error" in key and isinstance(value, float) else str(value)


def main() -> None:
    """Measure what is named; print each line when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts_known = ["rates", "errors", "objective", "tune", "profile", "training", "embed", "decode", "table"]
    parser.add_argument("part", choices=parts_known)
    parser.add_argument("files", type=Path, nargs="*", help="of table: what parts left")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, also on a processor")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048, 8192, 32768, 131072])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="names of forms to tune")
    parser.add_argument("--share", default="0/1", help="of these forms every so manieth, from the first on: 0/7")
    parser.add_argument("--products", default="bf16")
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/flickr8k/images"))
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.part == "table":
        print(as_table(given.files))
        return
    if DEVICE == "cpu" and not (given.small and given.part in _ON_A_PROCESSOR):
        raise SystemExit("benchmarks/gpu.py: no CUDA device is visible to torch")
    if given.small:
        given.rows, given.dims, given.copies = [64, 96], [32], 1
    name = torch.cuda.get_device_name(0) if DEVICE == "cuda" else "a processor, in the smallest sizes"
    print(name, "torch", torch.__version__, "CPU cores", os.cpu_count(), flush=True)
    measured = rates(256 if given.small else 8192) if given.part in ("rates", "objective") else {}
    print({name: round(rate, 1) for name, rate in measured.items()}, flush=True)
    first, step = map(int, given.share.split("/"))
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "rates": lambda: iter(()),
        "errors": partial(errors, 64, (32,)) if given.small else errors,
        "objective": lambda: objective(tuple(given.rows), tuple(given.dims)),
        "tune": lambda: tune(given.variants[first::step], given.rows[-1], tuple(given.dims)),
        "training": partial(training, DEVICE, (64,), 10) if given.small else partial(training, DEVICE),
        "embed": lambda: embedding(given.photos, given.copies, DEVICE, 4 if given.small else None),
        "decode": lambda: decoding(given.photos),
    }
    if given.part == "profile":
        profile(given.rows[-1], given.dims[0], given.products)
        return
    rows = []
    for row in parts[given.part]():
        rows.append(row)
        print(shown(row), flush=True)
    if given.json:
        device = {"device": name, "torch": torch.__version__}
        given.json.write_text(json.dumps({**device, "rates": measured, given.part: rows}, indent=1))


if __name__ == "__main__":
    main()
