"""Triton kernels of the fused objective: one tile of pairs from dot products to sums, or to the weights of a gradient.

Exponents are in base 2. A tile's dot products are taken in the kernel (PRODUCTS) or read from a buffer that cuBLAS
filled. Nothing is added atomically: every tile writes its partial sums to a place of its own, and they are reduced in
a fixed order, so that equal inputs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cs_aligner_cli.objectives.triton_rows import any_size


@triton.jit
def _tile_of(tiles_i, tiles_j, GROUP: tl.constexpr):
    """This program's tile, GROUP rows of tiles at a time, so that neighbours share what the cache holds."""
    number = tl.program_id(0)
    first = number // (GROUP * tiles_j) * GROUP
    size = min(tiles_i - first, GROUP)
    within = number % (GROUP * tiles_j)
    return first + within % size, within // size


@triton.jit
def _dots(x, y, buffer, stride, i, j, i1, m, n, d, local_i, local_j, K: tl.constexpr, EVEN: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """``x_i . y_j`` of one tile, in float32; outside they are some finite numbers.

    ``buffer`` has room for whole tiles, because a mask would split loads into single numbers.
    """
    if buffer is not None:
        dots = tl.load(buffer + local_i[:, None] * stride + local_j[None, :])
        if (tl.max(i, 0) >= i1) | (tl.max(j, 0) >= n):
            dots = tl.where((i < i1)[:, None] & (j < n)[None, :], dots, 0.0)
    else:
        k = tl.arange(0, K)
        # Rows past the end repeat the last one: what they give is masked by whoever reads the tile.
        left = x + tl.minimum(i, m - 1)[:, None].to(tl.int64) * d + k[None, :]
        right = y + tl.minimum(j, n - 1)[None, :].to(tl.int64) * d + k[:, None]
        dots = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
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
def _nearness(dots, half_x, half_y, i, j, i1, n, diagonal, WITHIN: tl.constexpr, DIAGONAL: tl.constexpr):
    """``-||x_i - y_j||^2 / 2`` of a tile, -inf where no pair is: outside and, if they do not count, on the DIAGONAL."""
    near = dots - tl.load(half_x + i, mask=i < i1, other=float("inf"))[:, None]
    near -= tl.load(half_y + j, mask=j < n, other=float("inf"))[None, :]
    if WITHIN:  # noqa: SIM102 - this is known when compiling, the next is not
        if diagonal:
            near = tl.where(
                (i[:, None] == j[None, :]) & (near > float("-inf")), 0.0 if DIAGONAL else float("-inf"), near
            )
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
def _crossed(first_i, first_j, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether the diagonal crosses a tile."""
    return (first_i < first_j + COLUMNS) & (first_j < first_i + ROWS)


@triton.jit
def _halves(dots):
    """A tile cut into two beside each other."""
    return tl.split(tl.permute(tl.reshape(dots, (dots.shape[0], 2, dots.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _parts(dots, PARTS: tl.constexpr):
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
              EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Sums over one tile: of 2^logit for every row and column, and of the kernel.

    Rows i0 to i1 of x against rows j0 to n of y; WITHIN one cloud, columns from i1 on stand for two pairs each, and
    DIAGONAL says whether the pairs (i, i) count; with LOGITS, whether (i, i) are pairs, else none is: y are rows of
    another rank. SIGMAS below 0: no kernel. PARTS of a tile, beside each other, are products of one piece and sums of
    their own, and ``tiles_j`` counts them.
    """
    tile_i, tile_j = _tile_of(tiles_i, tiles_j // PARTS, GROUP)
    local_i, wide_j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * COLUMNS + tl.arange(0, COLUMNS)
    i = i0 + local_i
    dots = _dots(x, y, buffer, stride, i, j0 + wide_j, i1, m, n, d, local_i, wide_j, K, EVEN, PRECISION)
    parts = _parts(dots, PARTS)
    for part in tl.static_range(PARTS):
        part_j = tile_j * PARTS + part
        local_j = part_j * (COLUMNS // PARTS) + tl.arange(0, COLUMNS // PARTS)
        _sum_part(parts[part], half_x, half_y, groups_x, groups_y, references, kernel, row_maxima, row_sums,
                  column_maxima, column_sums, own_logits, kernel_sums, kernel_tops, i0, i1, j0, n, tile_i, part_j,
                  tiles_j, local_i, local_j, LOGITS, GROUPED, SIGMAS, WITHIN, DIAGONAL)  # fmt: skip


@triton.jit
def _sum_part(dots, half_x, half_y, groups_x, groups_y, references, kernel, row_maxima, row_sums, column_maxima,
              column_sums, own_logits, kernel_sums, kernel_tops, i0, i1, j0, n, tile_i, tile_j, tiles_j, local_i,
              local_j, LOGITS: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
              DIAGONAL: tl.constexpr):  # fmt: skip
    """``sum_pairs`` of one part of a tile, given its dot products."""
    i, j = i0 + local_i, j0 + local_j
    first_i, first_j = i0 + tile_i * dots.shape[0], j0 + tile_j * dots.shape[1]
    diagonal = _crossed(first_i, first_j, dots.shape[0], dots.shape[1])
    if LOGITS:
        scale = tl.load(references)
        of_i, of_j = tl.where(i < i1, 0.0, float("-inf")), tl.where(j < n, 0.0, float("-inf"))
        if DIAGONAL:  # noqa: SIM102 - this is known when compiling, the next is not
            if diagonal:
                # From the tile itself: another product would differ in its last digits.
                own = (i < i1)[:, None] & (i[:, None] == j[None, :])
                tl.store(own_logits + i[:, None] + 0 * j[None, :], dots * scale, mask=own)
        at_row, at_column = tile_j * (i1 - i0) + local_i, tile_i * (n - j0) + local_j
        if tl.load(references + 2) > 0:
            reference = tl.load(references + 1)
            logits = _logits(dots, scale, of_i, of_j - reference, groups_x, groups_y, i, j, i1, n, GROUPED, DIAGONAL)
            powers = tl.exp2(logits)
            of_rows, of_columns = tl.sum(powers, 1), tl.sum(powers, 0)
            tops_i, tops_j = (
                tl.zeros((dots.shape[0],), tl.float32) + reference,
                tl.zeros((dots.shape[1],), tl.float32) + reference,
            )
        else:
            logits = _logits(dots, scale, of_i, of_j, groups_x, groups_y, i, j, i1, n, GROUPED, DIAGONAL)
            tops_i, tops_j = tl.max(logits, 1), tl.max(logits, 0)
            of_rows, of_columns = tl.sum(_shifted(logits, tops_i, 1), 1), tl.sum(_shifted(logits, tops_j, 0), 0)
        tl.store(row_maxima + at_row, tops_i, mask=i < i1)
        tl.store(row_sums + at_row, of_rows, mask=i < i1)
        tl.store(column_maxima + at_column, tops_j, mask=j < n)
        tl.store(column_sums + at_column, of_columns, mask=j < n)
    if SIGMAS >= 0:
        near = _nearness(dots, half_x, half_y, i, j, i1, n, diagonal, WITHIN, DIAGONAL)
        top = 0.0
        if SIGMAS > 0:  # noqa: SIM102 - this is known when compiling, the next is not
            if tl.load(references + 3) > 0:
                # A tile may hold no pair; what is below float32's own numbers is no sum anyhow.
                top = tl.maximum(tl.max(tl.max(near, 1), 0) * tl.load(kernel), -1e30)
        values, _ = _evaluate(near, kernel, top, 1.0, SIGMAS)
        if WITHIN:
            values *= tl.where(j < i1, 1.0, 2.0)[None, :]
        # Rows first: a column's values lie in many threads.
        tl.store(kernel_sums + tile_i * tiles_j + tile_j, tl.sum(tl.sum(values, 1), 0))
        tl.store(kernel_tops + tile_i * tiles_j + tile_j, top)


@any_size
def weigh_pairs(x, y, buffer, stride, weights, weights_stride, half_x, half_y, groups_x, groups_y, references,
                kernel, factors, row_maxima, row_shares, column_maxima, column_shares,
                row_slopes, column_slopes, scale_sums, kernel_sums,
                i0, i1, j0, m, n, d, tiles_i, tiles_j,
                LOGITS: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr, WITHIN: tl.constexpr,
                DIAGONAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
                K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """The weights by which one tile's rows pull each other, as a gradient: rows and columns as in ``sum_pairs``.

    ``factors``: the weight of a softmax, that of a slope, and the kernel's reference. What a pair's own logit pulls is
    not among the ``weights`` (``Softmax.own_pulls``). They have room for whole tiles: a mask would split their stores
    into single numbers. Without LOGITS ``kernel_sums`` gets the sums of values, and the sums of slopes are of rounded
    weights, so that equal rows pull each other nowhere.
    """
    tile_i, tile_j = _tile_of(tiles_i, tiles_j // PARTS, GROUP)
    local_i, wide_j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * COLUMNS + tl.arange(0, COLUMNS)
    i = i0 + local_i
    dots = _dots(x, y, buffer, stride, i, j0 + wide_j, i1, m, n, d, local_i, wide_j, K, EVEN, PRECISION)
    parts = _parts(dots, PARTS)
    for part in tl.static_range(PARTS):
        part_j = tile_j * PARTS + part
        local_j = part_j * (COLUMNS // PARTS) + tl.arange(0, COLUMNS // PARTS)
        if LOGITS and tl.load(references + 2) > 0:
            _weigh_part(parts[part], weights, weights_stride, half_x, half_y, groups_x, groups_y, references,
                        kernel, factors, row_maxima, row_shares, column_maxima, column_shares, row_slopes,
                        column_slopes, scale_sums, kernel_sums, i0, i1, j0, n, tile_i, part_j, tiles_j, local_i,
                        local_j, LOGITS, True, GROUPED, SIGMAS, WITHIN, DIAGONAL)  # fmt: skip
        else:
            _weigh_part(parts[part], weights, weights_stride, half_x, half_y, groups_x, groups_y, references,
                        kernel, factors, row_maxima, row_shares, column_maxima, column_shares, row_slopes,
                        column_slopes, scale_sums, kernel_sums, i0, i1, j0, n, tile_i, part_j, tiles_j, local_i,
                        local_j, LOGITS, False, GROUPED, SIGMAS, WITHIN, DIAGONAL)  # fmt: skip


@triton.jit
def _weigh_part(dots, weights, weights_stride, half_x, half_y, groups_x, groups_y, references, kernel, factors,
                row_maxima, row_shares, column_maxima, column_shares, row_slopes, column_slopes, scale_sums,
                kernel_sums, i0, i1, j0, n, tile_i, tile_j, tiles_j, local_i, local_j,
                LOGITS: tl.constexpr, ONE: tl.constexpr, GROUPED: tl.constexpr, SIGMAS: tl.constexpr,
                WITHIN: tl.constexpr, DIAGONAL: tl.constexpr):  # fmt: skip
    """``weigh_pairs`` of one part of a tile, given its dot products; ONE reference serves all logits, or each line's.

    First all that goes pair by pair, then sums over columns, for which warps wait for each other: so a pair's numbers
    need registers for a short time. Branches end in different stores, or the compiler would join them before the end.
    """
    i, j = i0 + local_i, j0 + local_j
    first_i, first_j = i0 + tile_i * dots.shape[0], j0 + tile_j * dots.shape[1]
    diagonal = _crossed(first_i, first_j, dots.shape[0], dots.shape[1])
    at_tile = tile_i * tiles_j + tile_j
    pull, slopes, scaled, values = 0.0, 0.0, 0.0, 0.0
    if LOGITS:
        pull = _softmax_pull(dots, groups_x, groups_y, references, factors, row_maxima, row_shares, column_maxima,
                             column_shares, i1, n, i, j, ONE, GROUPED, DIAGONAL)  # fmt: skip
        scaled = tl.sum(pull * dots, 1)
    if SIGMAS >= 0:
        near = _nearness(dots, half_x, half_y, i, j, i1, n, diagonal, WITHIN, DIAGONAL)
        values, slopes = _evaluate(near, kernel, tl.load(factors + 2), tl.load(factors + 1), SIGMAS)
        if WITHIN:
            values = tl.sum(values * tl.where(j < i1, 1.0, 2.0)[None, :], 1)
            if diagonal:  # a row does not pull itself
                slopes = tl.where(i[:, None] == j[None, :], 0.0, slopes)
        elif not LOGITS:
            values = tl.sum(values, 1)
        if not LOGITS:
            slopes = slopes.to(weights.dtype.element_ty).to(tl.float32)
        tl.store(row_slopes + tile_j * (i1 - i0) + local_i, tl.sum(slopes, 1), mask=i < i1)
    pull = (pull + slopes).to(weights.dtype.element_ty)
    tl.store(weights + local_i[:, None] * weights_stride + local_j[None, :], pull)
    if SIGMAS >= 0:
        tl.store(column_slopes + tile_i * (n - j0) + local_j, tl.sum(slopes, 0), mask=j < n)
    if not LOGITS:
        tl.store(kernel_sums + at_tile, tl.sum(values, 0))
    if LOGITS:
        tl.store(scale_sums + at_tile, tl.sum(scaled, 0), cache_modifier=".cs" if ONE else ".cg")


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
