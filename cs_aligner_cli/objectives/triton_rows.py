"""Triton kernels of the fused objective that go once over rows: rounding and norms, references, adding up sums."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# 1 / log(2) as the kernels read it, and exponents (base 2) between which float32 sums of up to 2^24 terms are safe.
_LOG2E = tl.constexpr(1.4426950408889634)
_TOP, _SPAN = tl.constexpr(100.0), tl.constexpr(183.0)
_FAR = tl.constexpr(115.0)
# Sizes that change from call to call: a kernel compiled for one serves all.
_SIZES = ["i0", "i1", "j0", "m", "n", "tiles_i", "tiles_j", "size", "parts"]


def any_size(function: Callable[..., None]) -> Any:
    """A Triton kernel that is compiled once for sizes of all kinds."""
    sizes = [name for name in inspect.signature(function).parameters if name in _SIZES]
    return triton.jit(function, do_not_specialize=sizes)


@any_size
def prepare_rows(x, low, half_squares, other, paired, n, d, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Rows (n, d) rounded into ``low``, where given; half their squared norms; their dots with those of ``other``."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    squares, dots = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, d, WIDTH):
        k = start + tl.arange(0, WIDTH)
        inside = (rows[:, None] < n) & (k[None, :] < d)
        at = rows[:, None].to(tl.int64) * d + k[None, :]
        values = tl.load(x + at, mask=inside, other=0.0)
        if low is not None:
            rounded = values.to(low.dtype.element_ty)
            tl.store(low + at, rounded, mask=inside)
            values = rounded.to(tl.float32)
        squares += tl.sum(values * values, 1)
        if other is not None:
            dots += tl.sum(values * tl.load(other + at, mask=inside, other=0.0), 1)
    tl.store(half_squares + rows, squares * 0.5, mask=rows < n)
    if other is not None:
        tl.store(paired + rows, dots, mask=rows < n)


@any_size
def pull_rows(grad, factor, slopes, rows, pulls, paired, n, d, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Gradients (n, d) become ``factor * (grad_i - slopes_i * rows_i)``, with ``pulls`` ``+ pulls_i * paired_i``."""
    at_rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(factor).to(tl.float32)
    slope = tl.load(slopes + at_rows, mask=at_rows < n, other=0.0)
    for start in range(0, d, WIDTH):
        k = start + tl.arange(0, WIDTH)
        inside = (at_rows[:, None] < n) & (k[None, :] < d)
        at = at_rows[:, None].to(tl.int64) * d + k[None, :]
        row = tl.load(rows + at, mask=inside, other=0.0).to(tl.float32)
        values = (tl.load(grad + at, mask=inside, other=0.0) - slope[:, None] * row) * scale
        if pulls is not None:
            pull = tl.load(pulls + at_rows, mask=at_rows < n, other=0.0).to(tl.float32)
            values += pull[:, None] * tl.load(paired + at, mask=inside, other=0.0)
        tl.store(grad + at, values, mask=inside)


@any_size
def choose_references(half_x, half_y, paired, logit_scale, kernel, out, m, n, BLOCK: tl.constexpr):
    """Four floats that the tiles read: logits per dot product, their common reference, whether one serves, are we far.

    With ``|logit| <= bound``, one reference for all logits serves if no sum, each of which holds its pair's own logit,
    can overflow or lose what counts below 2^-126. Far: kernel exponents may reach below -115, so sums need a reference.
    """
    top_x, top_y = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    scale = 0.0
    if paired is not None:
        scale = tl.load(logit_scale).to(tl.float32) * _LOG2E
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    at = tl.arange(0, BLOCK)
    for start in range(0, m, BLOCK):
        top_x = tl.maximum(top_x, tl.load(half_x + start + at, mask=start + at < m, other=0.0))
        if paired is not None:
            logits = tl.load(paired + start + at, mask=start + at < m, other=0.0) * scale
            lowest = tl.minimum(lowest, tl.where(start + at < m, logits, float("inf")))
    for start in range(0, n, BLOCK):
        top_y = tl.maximum(top_y, tl.load(half_y + start + at, mask=start + at < n, other=0.0))
    radius_x, radius_y = tl.sqrt(2 * tl.max(top_x, 0)), tl.sqrt(2 * tl.max(top_y, 0))
    bound = tl.abs(scale) * radius_x * radius_y
    tl.store(out, scale)
    tl.store(out + 1, tl.maximum(bound - _TOP, 0.0))
    tl.store(out + 2, (tl.min(lowest, 0) >= bound - _SPAN).to(tl.float32))
    far = 0.0
    if kernel is not None:
        reach = radius_x + radius_y
        far = (tl.load(kernel) * reach * reach * 0.5 > _FAR).to(tl.float32)
    tl.store(out + 3, far)


@any_size
def merge_sums(maxima, sums, part_maxima, part_sums, size, parts, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """Add the ``parts`` (parts, size) of 2^maxima * sums to running ones (size,), LINES of the parts at a time."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    top = tl.load(maxima + at, mask=inside, other=0.0)
    total = tl.load(sums + at, mask=inside, other=0.0)
    for start in range(0, parts, LINES):
        part = start + tl.arange(0, LINES)
        here = (part < parts)[:, None] & inside[None, :]
        places = part[:, None].to(tl.int64) * size + at[None, :]
        of_parts = tl.load(part_maxima + places, mask=here, other=float("-inf"))
        values = tl.load(part_sums + places, mask=here, other=0.0).to(tl.float64)
        larger = tl.maximum(top, tl.max(of_parts, 0))
        finite = tl.where(larger == float("-inf"), 0.0, larger)
        added = tl.sum(values * tl.exp2(of_parts - finite[None, :]).to(tl.float64), 0)
        total = total * tl.exp2(top - finite).to(tl.float64) + added
        top = larger
    tl.store(maxima + at, top, mask=inside)
    tl.store(sums + at, total, mask=inside)
