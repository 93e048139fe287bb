"""Triton kernels of the fused objective: one tile of pairs from dot products to sums, or to the weights of a gradient.

Exponents are in base 2. A tile's dot products are taken in the kernel (``triton_products``) or read from a buffer that
cuBLAS filled. Nothing is added atomically: every tile writes its partial sums to a place of its own, and they are
reduced in a fixed order, so that equal inputs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cs_aligner_cli.objectives.triton_products import crossed, cut_tile, dot_products, tile_of
from cs_aligner_cli.objectives.triton_rows import any_size


@triton.jit
def _nearness(dots, half_x, half_y, i, j, i1, n, WITHIN: tl.constexpr, DIAGONAL: tl.constexpr):
    """``-||x_i - y_j||^2 / 2`` of a tile, -inf where no pair is: outside and, if they do not count, on the DIAGONAL."""
    near = dots - tl.load(half_x + i, mask=i < i1, other=float("inf"))[:, None]
    near -= tl.load(half_y + j, mask=j < n, other=float("inf"))[None, :]
    if WITHIN:
        near = tl.where((i[:, None] == j[None, :]) & (near > float("-inf")), 0.0 if DIAGONAL else float("-inf"), near)
    return near


@triton.jit
def _evaluate(near, kernel, reference, factor, SIGMAS: tl.constexpr):
    """A kernel's values from ``near = -||a - b||^2 / 2``, and factor times its slopes -dk / d(||a - b||^2 / 2).

    Both are 0 where ``near`` is -inf.

    No sigmas: ``-||a - b||``. Else ``kernel`` holds three floats for every sigma: log2(e) / sigma^2, the weight of its
    values and that of its slopes.
    """
    if SIGMAS == 0:
        distance = tl.sqrt(tl.maximum(-2.0 * tl.where(near == float("-inf"), 0.0, near), 0.0))
        values, slopes = -distance, tl.where(distance > 0, factor / tl.where(distance > 0, distance, 1.0), 0.0)
    else:
        part = tl.exp2(near * tl.load(kernel) - reference)
        values, slopes = part, part * (tl.load(kernel + 2) * factor)
        if SIGMAS > 1:  # else the share is 1
            values = part * tl.load(kernel + 1)
        for s in tl.static_range(1, SIGMAS):
            part = tl.exp2(near * tl.load(kernel + 3 * s) - reference)
            values += part * tl.load(kernel + 3 * s + 1)
            slopes += part * (tl.load(kernel + 3 * s + 2) * factor)
    return values, slopes


@triton.jit
def _kernels(dots, half_x, half_y, kernel, reference, factor, i, j, i1, n, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
             DIAGONAL: tl.constexpr, OFF: tl.constexpr):  # fmt: skip
    """``_evaluate`` of a tile, OFF the diagonal or anywhere. A row does not pull itself."""
    if SIGMAS == 1 and OFF:  # one sum and one product a pair before its power
        unit = tl.load(kernel)
        of_i = tl.load(half_x + i, mask=i < i1, other=float("inf")) * -unit - reference
        of_j = tl.load(half_y + j, mask=j < n, other=float("inf")) * -unit
        values = tl.exp2(dots * unit + (of_i[:, None] + of_j[None, :]))
        slopes = values * (tl.load(kernel + 2) * factor)
    else:
        near = _nearness(dots, half_x, half_y, i, j, i1, n, WITHIN and not OFF, DIAGONAL)
        values, slopes = _evaluate(near, kernel, reference, factor, SIGMAS)
        if WITHIN and not OFF:
            slopes = tl.where(i[:, None] == j[None, :], 0.0, slopes)
    return values, slopes


@triton.jit
def _rounded(values, to: tl.constexpr):
    """Float32 values rounded to a type of 8 bits, half a step away from 0: packed conversions come when stored."""
    if to == tl.bfloat16:
        values = ((values.to(tl.int32, bitcast=True) + 0x8000) & -65536).to(tl.float32, bitcast=True)
    return values


@triton.jit
def _logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED: tl.constexpr, PAIRED: tl.constexpr):
    """Logits of a tile plus ``of_i`` and ``of_j``, by which those outside are -inf, as between a group's pairs.

    Masks of one line each, and no branch: a mask of the tile, or values that leave a branch, take as many registers as
    the tile.
    """
    logits = dots * scale + (of_i[:, None] + of_j[None, :])
    if GROUPED:
        group_i, group_j = tl.load(groups_x + i, mask=i < i1, other=0), tl.load(groups_y + j, mask=j < n, other=0)
        seen = group_i[:, None] != group_j[None, :]
        if PAIRED:
            seen = seen | (i[:, None] == j[None, :])
        logits = tl.where(seen, logits, float("-inf"))
    return logits


@triton.jit
def _shifted(logits, maxima, dim: tl.constexpr):
    """``2^(logits - maxima)``, 0 where the maximum is -inf."""
    finite = tl.where(maxima == float("-inf"), 0.0, maxima)
    return tl.exp2(logits - tl.expand_dims(finite, dim))


@any_size
def sum_pairs(x, y, buffer, stride, half_x, half_y, groups_x, groups_y, references, kernel,
              row_maxima, row_sums, column_maxima, column_sums, own_logits, kernel_sums, kernel_tops,
              i0, i1, j0, m, n, d, tiles_i, tiles_j,
              LOGITS: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
              DIAGONAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
              EVEN: tl.constexpr, DESCRIBED: tl.constexpr, PRECISION: tl.constexpr,
              GROUP: tl.constexpr):  # fmt: skip
    """Sums over one tile: of 2^logit for every row and column, and of the kernel.

    Rows i0 to i1 of x against rows j0 to n of y; WITHIN one cloud, columns from i1 on stand for two pairs each, and
    DIAGONAL says whether the pairs (i, i) count; with LOGITS, whether (i, i) are pairs, else none is: y are rows of
    another rank. SIGMAS below 0: no kernel. PARTS of a tile, beside each other, are products of one piece and sums of
    their own, and ``tiles_j`` counts them.
    """
    tile_i, tile_j = tile_of(tiles_i, tiles_j // PARTS, GROUP)
    dots = dot_products(x, y, buffer, stride, i0, i1, j0, m, n, d, tile_i, tile_j, ROWS, COLUMNS, K, EVEN, DESCRIBED,
                 PRECISION)  # fmt: skip
    parts = cut_tile(dots, PARTS)
    for part in tl.static_range(PARTS):
        part_j = tile_j * PARTS + part
        easy = not crossed(i0 + tile_i * ROWS, j0 + part_j * (COLUMNS // PARTS), ROWS, COLUMNS // PARTS)
        if LOGITS:
            easy = easy & (tl.load(references + 2) > 0)
        if SIGMAS > 0:
            easy = easy & (tl.load(references + 3) == 0)
        if easy:
            _sum_part(parts[part], half_x, half_y, groups_x, groups_y, references, kernel, row_maxima, row_sums,
                      column_maxima, column_sums, own_logits, kernel_sums, kernel_tops, i0, i1, j0, n, tile_i, part_j,
                      tiles_j, LOGITS, GROUPED, SIGMAS, WITHIN, DIAGONAL, True)  # fmt: skip
        else:
            _sum_part(parts[part], half_x, half_y, groups_x, groups_y, references, kernel, row_maxima, row_sums,
                      column_maxima, column_sums, own_logits, kernel_sums, kernel_tops, i0, i1, j0, n, tile_i, part_j,
                      tiles_j, LOGITS, GROUPED, SIGMAS, WITHIN, DIAGONAL, False)  # fmt: skip


@triton.jit
def _sum_part(dots, half_x, half_y, groups_x, groups_y, references, kernel, row_maxima, row_sums, column_maxima,
              column_sums, own_logits, kernel_sums, kernel_tops, i0, i1, j0, n, tile_i, tile_j, tiles_j,
              LOGITS: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
              DIAGONAL: tl.constexpr, EASY: tl.constexpr):  # fmt: skip
    """``sum_pairs`` of one part of a tile, given its dot products.

    EASY, as most are: off the diagonal, where one reference serves all logits, and none is needed for the kernel.
    """
    ROWS: tl.constexpr = dots.shape[0]
    COLUMNS: tl.constexpr = dots.shape[1]
    local_i, local_j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * COLUMNS + tl.arange(0, COLUMNS)
    i, j = i0 + local_i, j0 + local_j
    if LOGITS:
        scale = tl.load(references)
        of_i, of_j = tl.where(i < i1, 0.0, float("-inf")), tl.where(j < n, 0.0, float("-inf"))
        reference = tl.load(references + 1)
        tops_i, tops_j = tl.full((ROWS,), 0.0, tl.float32) + reference, tl.full((COLUMNS,), 0.0, tl.float32) + reference
        if EASY:
            of_j -= reference
            powers = tl.exp2(_logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED, False))
            of_rows, of_columns = tl.sum(powers, 1), tl.sum(powers, 0)
        else:
            if DIAGONAL:
                # From the tile itself: another product would differ in its last digits.
                own = (i < i1)[:, None] & (i[:, None] == j[None, :])
                tl.store(own_logits + i[:, None] + 0 * j[None, :], dots * scale, mask=own)
            logits = _logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED, DIAGONAL)
            if tl.load(references + 2) == 0:
                tops_i, tops_j = tl.max(logits, 1), tl.max(logits, 0)
            of_rows, of_columns = tl.sum(_shifted(logits, tops_i, 1), 1), tl.sum(_shifted(logits, tops_j, 0), 0)
        at_row, at_column = tile_j * (i1 - i0) + local_i, tile_i * (n - j0) + local_j
        tl.store(row_maxima + at_row, tops_i, mask=i < i1)
        tl.store(row_sums + at_row, of_rows, mask=i < i1)
        tl.store(column_maxima + at_column, tops_j, mask=j < n)
        tl.store(column_sums + at_column, of_columns, mask=j < n)
    if SIGMAS >= 0:
        top = 0.0
        if SIGMAS > 0 and not EASY:  # noqa: SIM102 - this is known when compiling, the next is not
            if tl.load(references + 3) > 0:
                # A tile may hold no pair; what is below float32's own numbers is no sum anyhow.
                near = _nearness(dots, half_x, half_y, i, j, i1, n, WITHIN, DIAGONAL)
                top = tl.maximum(tl.max(tl.max(near, 1), 0) * tl.load(kernel), -1e30)
        values, _ = _kernels(dots, half_x, half_y, kernel, top, 1.0, i, j, i1, n, SIGMAS, WITHIN, DIAGONAL, EASY)
        if WITHIN:
            values *= tl.where(j < i1, 1.0, 2.0)[None, :]
        # Rows first: a column's values lie in many threads. Branches end in different stores, or they would be joined.
        at_tile = tile_i * tiles_j + tile_j
        tl.store(kernel_tops + at_tile, top)
        tl.store(kernel_sums + at_tile, tl.sum(tl.sum(values, 1), 0), cache_modifier=".cs" if EASY else ".cg")


@any_size
def weigh_pairs(x, y, buffer, stride, weights, weights_stride, half_x, half_y, groups_x, groups_y, references,
                kernel, factors, row_maxima, row_shares, column_maxima, column_shares,
                row_slopes, column_slopes, scale_sums, kernel_sums,
                i0, i1, j0, m, n, d, tiles_i, tiles_j,
                LOGITS: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
                DIAGONAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
                K: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr, PRECISION: tl.constexpr,
                GROUP: tl.constexpr):  # fmt: skip
    """The weights by which one tile's rows pull each other, as a gradient: rows and columns as in ``sum_pairs``.

    ``factors``: the weight of a softmax, that of a slope, and the kernel's reference. What a pair's own logit pulls is
    not among the ``weights`` (``Softmax.own_pulls``). They have room for whole tiles: a mask would split their stores
    into single numbers. Without LOGITS ``kernel_sums`` gets the sums of values, and the sums of slopes are of rounded
    weights, so that equal rows pull each other nowhere.
    """
    tile_i, tile_j = tile_of(tiles_i, tiles_j // PARTS, GROUP)
    dots = dot_products(x, y, buffer, stride, i0, i1, j0, m, n, d, tile_i, tile_j, ROWS, COLUMNS, K, EVEN, DESCRIBED,
                 PRECISION)  # fmt: skip
    parts = cut_tile(dots, PARTS)
    for part in tl.static_range(PARTS):
        part_j = tile_j * PARTS + part
        easy = not crossed(i0 + tile_i * ROWS, j0 + part_j * (COLUMNS // PARTS), ROWS, COLUMNS // PARTS)
        if LOGITS:
            easy = easy & (tl.load(references + 2) > 0)
        if easy:
            _weigh_part(parts[part], weights, weights_stride, half_x, half_y, groups_x, groups_y, references, kernel,
                        factors, row_maxima, row_shares, column_maxima, column_shares, row_slopes, column_slopes,
                        scale_sums, kernel_sums, i0, i1, j0, n, tile_i, part_j, tiles_j, LOGITS, GROUPED, SIGMAS,
                        WITHIN, DIAGONAL, True)  # fmt: skip
        else:
            _weigh_part(parts[part], weights, weights_stride, half_x, half_y, groups_x, groups_y, references, kernel,
                        factors, row_maxima, row_shares, column_maxima, column_shares, row_slopes, column_slopes,
                        scale_sums, kernel_sums, i0, i1, j0, n, tile_i, part_j, tiles_j, LOGITS, GROUPED, SIGMAS,
                        WITHIN, DIAGONAL, False)  # fmt: skip


@triton.jit
def _weigh_part(dots, weights, weights_stride, half_x, half_y, groups_x, groups_y, references, kernel, factors,
                row_maxima, row_shares, column_maxima, column_shares, row_slopes, column_slopes, scale_sums,
                kernel_sums, i0, i1, j0, n, tile_i, tile_j, tiles_j, LOGITS: tl.constexpr, GROUPED: tl.constexpr,
                SIGMAS: tl.constexpr, WITHIN: tl.constexpr, DIAGONAL: tl.constexpr, EASY: tl.constexpr):  # fmt: skip
    """``weigh_pairs`` of one part of a tile, given its dot products; EASY: as in ``_sum_part``, near and far.

    First all that goes pair by pair, then sums over columns, for which warps wait for each other: so a pair's numbers
    need registers for a short time. Branches end in different stores, or the compiler would join them before the end.
    """
    ROWS: tl.constexpr = dots.shape[0]
    COLUMNS: tl.constexpr = dots.shape[1]
    local_i, local_j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * COLUMNS + tl.arange(0, COLUMNS)
    i, j = i0 + local_i, j0 + local_j
    pull, slopes, scaled, values = 0.0, 0.0, 0.0, 0.0
    if LOGITS:
        pull = _softmax_pull(dots, groups_x, groups_y, references, factors, row_maxima, row_shares, column_maxima,
                             column_shares, i1, n, i, j, EASY, GROUPED, DIAGONAL and not EASY)  # fmt: skip
        scaled = tl.sum(pull * dots, 1)
    if SIGMAS >= 0:
        values, slopes = _kernels(dots, half_x, half_y, kernel, tl.load(factors + 2), tl.load(factors + 1), i, j, i1,
                                  n, SIGMAS, WITHIN, DIAGONAL, EASY)  # fmt: skip
        if WITHIN:
            values = tl.sum(values * tl.where(j < i1, 1.0, 2.0)[None, :], 1)
        elif not LOGITS:
            values = tl.sum(values, 1)
        if not LOGITS:
            slopes = _rounded(slopes, weights.dtype.element_ty)
        tl.store(row_slopes + tile_j * (i1 - i0) + local_i, tl.sum(slopes, 1), mask=i < i1)
    pull = (pull + slopes).to(weights.dtype.element_ty)
    tl.store(weights + local_i[:, None] * weights_stride + local_j[None, :], pull)
    if SIGMAS >= 0:
        tl.store(column_slopes + tile_i * (n - j0) + local_j, tl.sum(slopes, 0), mask=j < n)
    at_tile = tile_i * tiles_j + tile_j
    if LOGITS:
        tl.store(scale_sums + at_tile, tl.sum(scaled, 0), cache_modifier=".cs" if EASY else ".cg")
    else:
        tl.store(kernel_sums + at_tile, tl.sum(values, 0), cache_modifier=".cs" if EASY else ".cg")


@triton.jit
def _softmax_pull(dots, groups_x, groups_y, references, factors, row_maxima, row_shares, column_maxima, column_shares,
                  i1, n, i, j, ONE: tl.constexpr, GROUPED: tl.constexpr, PAIRED: tl.constexpr):  # fmt: skip
    """What the softmax of rows and columns pulls by, without the pairs' own logits."""
    scale, factor = tl.load(references), tl.load(factors)
    of_i, of_j = tl.where(i < i1, 0.0, float("-inf")), tl.where(j < n, 0.0, float("-inf"))
    share_i = tl.load(row_shares + i, mask=i < i1, other=0.0) * factor
    share_j = tl.load(column_shares + j, mask=j < n, other=0.0) * factor
    if ONE:
        of_j -= tl.load(references + 1)
        logits = _logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED, PAIRED)
        pull = tl.exp2(logits) * (share_i[:, None] + share_j[None, :])
    else:
        top_i = tl.load(row_maxima + i, mask=i < i1, other=0.0)
        top_j = tl.load(column_maxima + j, mask=j < n, other=0.0)
        logits = _logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED, PAIRED)
        pull = tl.exp2(logits - top_i[:, None]) * share_i[:, None] + tl.exp2(logits - top_j[None, :]) * share_j[None, :]
    if PAIRED:
        pull = tl.where(i[:, None] == j[None, :], 0.0, pull)
    return pull
