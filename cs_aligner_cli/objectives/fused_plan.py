"""How the fused objective is computed on a GPU: precisions, tiles, products and their buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cs_aligner_cli.objectives.kernels import Gaussian, Kernel
from cs_aligner_cli.objectives.tiles import Products

LOG2 = math.log(2)


class Tile(NamedTuple):
    """A kernel's tile of ``i`` x ``j`` pairs, the ``k`` dimensions it multiplies at a time, and how it is launched.

    After the products ``parts`` of its columns are taken one after another: a larger tile reads rows less often.
    """

    i: int
    j: int
    k: int
    warps: int
    stages: int
    group: int = 8
    registers: int | None = None
    parts: int = 1


class Tiles(NamedTuple):
    """How many tiles cover a chunk of rows, ``down`` and, in ``parts`` of a tile, ``across``, and the first column."""

    down: int
    across: int
    first_column: int
    parts: int

    @property
    def sums(self) -> int:
        """Parts of tiles in all, each with sums of its own."""
        return self.down * self.across

    @property
    def programs(self) -> int:
        """Tiles in all: programs of a kernel."""
        return self.sums // self.parts

    def extents(self, chunk: slice, rows: Sequence[int], columns: int) -> tuple[int, ...]:
        """The chunk and its first column, sizes of rows (m, d) and columns, tiles, as the kernels take them."""
        m, d = rows
        return chunk.start, chunk.stop, self.first_column, m, columns, d, self.down, self.across


@dataclass(frozen=True)
class Plan:
    """How one precision is computed: types of the rows that are multiplied and of the weights that pull them.

    ``inside`` says whether products are taken in the kernels, else by cuBLAS into a buffer; ``described``, whether the
    copy engine fetches rows for them, where it can. ``chunk_bytes`` is what the weights of one chunk of rows may take.
    Of one cloud with itself ``squares`` on the diagonal are taken whole: fewer are fewer launches, more are less work.
    """

    rows: torch.dtype
    weights: torch.dtype
    tile: Tile
    inside: bool = False
    described: bool = False
    precision: str = "ieee"
    chunk_bytes: int = 256 * 2**20
    squares: int = 8

    def chunks(self, rows: int, columns: int, within: bool) -> Iterator[slice]:
        """As many rows at a time as the budget holds the weights of: WITHIN one cloud later rows have fewer columns."""
        start, step = 0, self.tile.i
        while start < rows:
            line = (columns - (start if within else 0)) * self.weights.itemsize
            taken = max(step, self.chunk_bytes // line // step * step)
            if within:
                taken = min(taken, max(1024 // step * step, -(-rows // self.squares) // step * step))
            yield slice(start, min(start + taken, rows))
            start += taken

    def tiles(self, chunk: slice, columns: int, within: bool) -> Tiles:
        """The tiles of a chunk of rows and all columns; WITHIN one cloud of those from the chunk on."""
        first, tile = chunk.start if within else 0, self.tile
        across = -(-(columns - first) // tile.j) * tile.parts
        return Tiles(-(-(chunk.stop - chunk.start) // tile.i), across, first, tile.parts)

    def operand(self, rows: Tensor, height: int) -> Any:
        """Rows (n, d) as the kernels over pairs read them, ``height`` at a time: by a descriptor, or as they are."""
        if not (self.described and _can_describe(rows)):
            return rows
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(rows, [height, self.tile.k])

    def options(self, dims: int, described: bool) -> dict[str, Any]:
        """What the kernels over pairs of rows of ``dims`` dimensions are compiled and launched with."""
        tile = self.tile
        return {
            "ROWS": tile.i,
            "COLUMNS": tile.j,
            "PARTS": tile.parts,
            "K": tile.k,
            "EVEN": dims % tile.k == 0,
            "DESCRIBED": described,
            "PRECISION": self.precision,
            "GROUP": tile.group,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            **({"maxnreg": tile.registers} if tile.registers else {}),
        }


_EPILOGUE = Tile(32, 128, 16, 4, 1)
# Two programs fit one multiprocessor, so that one multiplies while another takes exponentials.
_FUSED = Tile(128, 128, 64, 4, 3, parts=2)
# How each precision is computed fastest, as measured on an H200.
PLANS: dict[Products, Plan] = {
    "fp32": Plan(torch.float32, torch.float32, _EPILOGUE, squares=16),
    "tf32": Plan(torch.float32, torch.float32, _EPILOGUE, precision="tf32"),
    "bf16": Plan(torch.bfloat16, torch.bfloat16, _FUSED, inside=True, described=True),
    # Weights reach far below float16's smallest number.
    "fp16": Plan(torch.float16, torch.bfloat16, _FUSED, inside=True, described=True),
}


@cache
def _has_descriptors() -> bool:
    return find_spec("triton.tools.tensor_descriptor") is not None


def _can_describe(rows: Tensor) -> bool:
    """Whether the copy engine (Hopper or later, Triton from 3.4 on) can fetch tiles of rows: of whole 16 bytes."""
    hopper = not rows.is_cuda or torch.cuda.get_device_capability(rows.device) >= (9, 0)
    return hopper and _has_descriptors() and rows.stride(0) * rows.itemsize % 16 == 0


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def can_fuse(x: Tensor) -> bool:
    """Whether rows can go this way: float32 on a CUDA device (Ampere or later), with Triton installed."""
    return (
        x.is_cuda
        and x.dtype == torch.float32
        and _has_triton()
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


class Memory:
    """Buffers that one chunk after another uses."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype, tile: Tile) -> Tensor:
        """A matrix (rows, columns) of undefined contents, in the memory of the last one of that name if it fits.

        Around it there is room for whole tiles.
        """
        line, lines = -(-columns // tile.j) * tile.j, -(-rows // tile.i) * tile.i
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < lines * line:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = torch.empty(lines * line, dtype=dtype, device=self._device)
        return buffer[: lines * line].view(lines, line)[:rows, :columns]

    def products(self, x: Tensor, y: Tensor, plan: Plan) -> tuple[Tensor | None, int]:
        """``x @ y.T`` in float32 by cuBLAS and the stride of its rows; none where the kernels take products inside."""
        if plan.inside:
            return None, 0
        buffer = self.take("products", len(x), len(y), torch.float32, plan.tile)
        if x.dtype == buffer.dtype:
            torch.mm(x, y.T, out=buffer)
        elif x.is_cuda:
            torch.mm(x, y.T, out_dtype=buffer.dtype, out=buffer)
        else:
            torch.mm(x.to(buffer.dtype), y.T.to(buffer.dtype), out=buffer)
        return buffer, buffer.stride(0)


def add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """``into += a @ b``, in float32 whatever a and b are."""
    if a.dtype == into.dtype:
        into.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(a.to(into.dtype), b.to(into.dtype))


def count_sigmas(kernel: Kernel | None) -> int:
    """How many kernels ``triton_kernels._evaluate`` adds up: 0 for a distance, -1 for none."""
    if kernel is None:
        return -1
    return len(kernel.sigmas) if isinstance(kernel, Gaussian) else 0


@lru_cache(maxsize=64)
def kernel_constants(kernel: Kernel | None, device: torch.device) -> Tensor | None:
    """What ``triton_kernels._evaluate`` reads, the widest kernel first; None where there is no kernel."""
    if kernel is None:
        return None
    if not isinstance(kernel, Gaussian):
        return torch.zeros(3, device=device)
    sigmas = sorted(kernel.sigmas, reverse=True)
    share = 1 / len(sigmas)
    return torch.tensor([(1 / (LOG2 * sigma**2), share, share / sigma**2) for sigma in sigmas], device=device)


@contextmanager
def float32_products(products: Products) -> Iterator[None]:
    """Let products of float32 be taken as ``products`` says, whatever the caller has chosen for all of torch."""
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(former)
