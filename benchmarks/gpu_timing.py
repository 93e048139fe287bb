"""Clouds, calls and times that the parts of benchmarks/gpu.py share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cs_aligner_cli.objectives import joint_loss
from cs_aligner_cli.objectives.fused_plan import float32_products
from cs_aligner_cli.objectives.tiles import Products

SIGMA, SCALE = 0.7071, 14.3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS: tuple[Products, ...] = ("fp32", "tf32", "bf16", "fp16")
Call = Callable[[Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def unit_rows(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two clouds on the sphere with a gap."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    offset = normalize(torch.randn(d, device=DEVICE, generator=generator), dim=0) * d**0.5 / 3
    x, y = (normalize(torch.randn(n, d, device=DEVICE, generator=generator) + s * offset, dim=1) for s in (1, -1))
    return x.requires_grad_(), y.requires_grad_()


def milliseconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median time of a call, by CUDA events where there is a GPU, after two to warm up."""
    return alternated([call], repeats)[0]


def alternated(calls: Sequence[Callable[[], Any]], repeats: int = 5) -> list[float]:
    """The median time of each of several calls, taken in turn: a card that is warm is slower for all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 2):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            if DEVICE == "cpu":
                call()
                took = (time.perf_counter() - began) * 1e3
            else:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                torch.cuda.synchronize()
                took = begin.elapsed_time(end)
            if repeat >= 2:
                found.append(took)
    return [sorted(found)[len(found) // 2] for found in times]


def peak_megabytes(call: Callable[[], Any]) -> float | None:
    """What a call adds to the device's memory at most, its gradients included; None on a processor."""
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Value and gradients (N, d) of a loss."""

    def call(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(x, y)
        return value.detach(), torch.autograd.grad(value, (x, y))

    return call


def joint(products: Products) -> Call:
    """Our InfoNCE + CS."""
    return with_gradient(lambda x, y: joint_loss(x, y, SCALE, SIGMA, products=products))


def product(name: Products, size: int) -> Callable[[], Tensor]:
    """A matrix product of size^3 in one precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))

    def call() -> Tensor:
        with float32_products(name):
            return torch.mm(a, b)

    return call


def beside_product(name: Products, call: Callable[[], Any], n: int, d: int, repeats: int) -> dict[str, float]:
    """Milliseconds of the objective, TFLOP/s of a product taken in turn with it, and the objective's share of these."""
    took, of_product = alternated([call, product(name, 8192)], repeats)
    rate = 2 * 8192**3 / of_product / 1e9
    return {"ms": round(took, 3), "TFLOP/s": round(rate, 1), "share": round(12 * n * n * d / took / 1e9 / rate, 3)}
