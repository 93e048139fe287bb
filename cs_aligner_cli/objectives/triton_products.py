"""Triton functions of one tile of pairs: which it is, its dot products, and its parts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(tiles_i, tiles_j, GROUP: tl.constexpr):
    """This program's tile, GROUP rows of tiles at a time, so that neighbours share what the cache holds."""
    number = tl.program_id(0)
    first = number // (GROUP * tiles_j) * GROUP
    size = min(tiles_i - first, GROUP)
    within = number % (GROUP * tiles_j)
    return first + within % size, within // size


@triton.jit
def dot_products(x, y, buffer, stride, i0, i1, j0, m, n, d, tile_i, tile_j, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
          K: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """``x_i . y_j`` of one tile, in float32; outside they are some finite numbers.

    ``buffer`` has room for whole tiles, because a mask would split loads into single numbers. DESCRIBED: x and y are
    descriptors, by which the device's copy engine fills shared memory; of pointers every thread computes its own.
    """
    local_i, local_j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * COLUMNS + tl.arange(0, COLUMNS)
    i, j = i0 + local_i, j0 + local_j
    if buffer is not None:
        dots = tl.load(buffer + local_i[:, None] * stride + local_j[None, :])
        if (tl.max(i, 0) >= i1) | (tl.max(j, 0) >= n):
            dots = tl.where((i < i1)[:, None] & (j < n)[None, :], dots, 0.0)
    elif DESCRIBED:
        first_i, first_j = i0 + tile_i * ROWS, j0 + tile_j * COLUMNS
        dots = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, K):
            a, b = x.load([first_i, start]), y.load([first_j, start])
            dots = tl.dot(a, b.T, dots, input_precision=PRECISION)
    else:
        k = tl.arange(0, K)
        # Rows past the end repeat the last one: what they give is masked by whoever reads the tile.
        left = x + tl.minimum(i, m - 1)[:, None].to(tl.int64) * d + k[None, :]
        right = y + tl.minimum(j, n - 1)[None, :].to(tl.int64) * d + k[:, None]
        dots = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, K):
            if EVEN:
                a, b = tl.load(left), tl.load(right)
            else:
                a = tl.load(left, mask=(start + k < d)[None, :], other=0.0)
                b = tl.load(right, mask=(start + k < d)[:, None], other=0.0)
            dots = tl.dot(a, b, dots, input_precision=PRECISION)
            left += K
            right += K
    return dots


@triton.jit
def crossed(first_i, first_j, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether the diagonal crosses a tile."""
    return (first_i < first_j + COLUMNS) & (first_j < first_i + ROWS)


@triton.jit
def _halves(dots):
    """A tile cut into two beside each other."""
    return tl.split(tl.permute(tl.reshape(dots, (dots.shape[0], 2, dots.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def cut_tile(dots, PARTS: tl.constexpr):
    """A tile cut into 1, 2 or 4 PARTS beside each other, so that what follows needs registers for one at a time."""
    if PARTS == 1:
        parts = (dots,)
    elif PARTS == 2:
        parts = _halves(dots)
    else:
        left, right = _halves(dots)
        first, second = _halves(left)
        third, fourth = _halves(right)
        parts = (first, second, third, fourth)
    return parts
