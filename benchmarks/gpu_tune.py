"""Parts of benchmarks/gpu.py: the kernels in several tiles, and where the time of one call goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_timing import beside_product, joint, unit_rows

from cs_aligner_cli.objectives.fused_plan import PLANS, Plan, Tile
from cs_aligner_cli.objectives.tiles import Products

TILES = {
    "64x128 4w 3s 168r": Tile(64, 128, 64, 4, 3, registers=168),
    "64x128 4w 3s": Tile(64, 128, 64, 4, 3),
    "128x128 4w 3s": Tile(128, 128, 64, 4, 3),
    "128x128 4w 3s 2p": Tile(128, 128, 64, 4, 3, parts=2),
    "128x128 8w 3s 128r": Tile(128, 128, 64, 8, 3, registers=128),
    "128x256 8w 3s 2p": Tile(128, 256, 64, 8, 3, parts=2),
    "64x128x128 4w 2s 168r": Tile(64, 128, 128, 4, 2, registers=168),
}
# Forms of the kernels by name, with the precision that they are tried in.
VARIANTS: dict[str, tuple[Products, Plan]] = {
    **{name: ("bf16", replace(PLANS["bf16"], tile=tile)) for name, tile in TILES.items()},
    **{
        f"{name}, by pointers": ("bf16", replace(PLANS["bf16"], tile=TILES[name], described=False))
        for name in ("64x128 4w 3s 168r", "128x128 4w 3s 2p", "128x128 8w 3s 128r")
    },
    "64x128 4w 3s 168r, 512 MB": ("bf16", replace(PLANS["bf16"], chunk_bytes=512 * 2**20)),
    "fp32, 32x128 4w, 256 MB": ("fp32", PLANS["fp32"]),
    "fp32, 32x128 4w, 64 MB": ("fp32", replace(PLANS["fp32"], chunk_bytes=64 * 2**20)),
    "fp32, 64x128 8w, 256 MB": ("fp32", replace(PLANS["fp32"], tile=Tile(64, 128, 16, 8, 1))),
    "fp32, 16x256 4w, 256 MB": ("fp32", replace(PLANS["fp32"], tile=Tile(16, 256, 16, 4, 1))),
}


def tune(names: list[str], n: int, dims: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The objective in several forms, and the milliseconds of our kernels and of all others in it."""
    for name in names:
        products, plan = VARIANTS[name]
        PLANS[products] = plan
        for d in dims:
            call = partial(joint(products), *unit_rows(n, d))
            try:
                yield {"what": name, "n": n, "d": d, **beside_product(products, call, n, d, 5), **kernels(call)}
            except Exception as error:  # noqa: BLE001 - a form that does not compile is a result
                yield {"what": name, "n": n, "d": d, "error": f"{type(error).__name__}: {error}"[:200]}


def kernels(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of a call by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    took = dict.fromkeys(("sum_pairs", "weigh_pairs", "others"), 0.0)
    for event in found.key_averages():
        took[event.key if event.key in took else "others"] += event.device_time_total / 1e3
    return {name: round(part, 3) for name, part in took.items()}


def profile(n: int, d: int, products: Products) -> None:
    """Print the kernels of one call, those that take longest first."""
    x, y = unit_rows(n, d)
    call = joint(products)
    call(x, y)
    call(x, y)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as found:
        call(x, y)
        torch.cuda.synchronize()
    print(f"profile {products} n={n} d={d}")
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70))
