"""Kernel sums and softmax sums over all pairs of rows, with their gradients: exact, in memory linear in the rows.

Nothing here holds an M x N matrix. ``within`` goes once over the pairs of one cloud and uses their symmetry;
``Cross`` goes over the pairs of two clouds twice, because a softmax's gradient needs its sums first, and shares
every product between logits and kernel. For M = N rows of d that is N^2 d multiply-adds for ``within`` with its
gradient, of which half are its products, and 3 N^2 d for ``Cross``, plus up to one more for products taken again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cs_aligner_cli.common.row_exchange import ONE_PROCESS, RowExchange, Shares, own_slice
from cs_aligner_cli.objectives.kernels import Gaussian, Kernel
from cs_aligner_cli.objectives.tiles import (
    SMALLEST_SCALE,
    Dots,
    Scratch,
    TiledRows,
    all_tiles,
    hide_same_group,
    nearness,
    tile_of,
    upper_tiles,
)

# Exponents may spread this far before float32 loses the small ones: then sums follow a moving reference.
_SAFE_SPREAD = 80.0


@dataclass(eq=False)
class PairSum:
    """A sum of kernel values over ``pairs`` pairs, in units of ``exp(reference)``, and its gradient to the rows."""

    total: Tensor
    reference: float
    pairs: int
    grad: Tensor | None = None

    @property
    def log_mean(self) -> Tensor:
        """Log of the mean kernel value, for a kernel that is positive."""
        return self.total.log() + (self.reference - math.log(self.pairs))

    @property
    def unit(self) -> float:
        """What ``total`` counts in: ``exp(reference)``."""
        return math.exp(self.reference)

    @property
    def mean(self) -> Tensor:
        """The mean kernel value."""
        return self.total * (self.unit / self.pairs)


def within(
    x: TiledRows,
    kernel: Kernel,
    diagonal: bool,
    gradient: bool,
    exchange: RowExchange = ONE_PROCESS,
    counts: Sequence[int] = (),
) -> PairSum:
    """Sum the kernel over the pairs (x_i, x_j) of one cloud, with or without i = j.

    Of a cloud that several ranks hold (``counts`` rows each), x are this one's rows, and so is the gradient.
    """
    counts = counts or [len(x)]
    size = sum(counts)
    total, pulled, slope_sums = _accumulators(x, gradient)
    reference = _Reference(kernel, 0.0 if diagonal else 2 * radius_of_all(x, exchange))
    for i, y, j, h in _tiles_within(x, kernel.scale, exchange, counts):
        # A cloud's own pairs stand for two each; of those with the rows of other ranks every rank takes its half.
        mirrored, on_diagonal = y is x and i != j, y is x and i == j
        if on_diagonal:
            h.fill_diagonal_(0.0 if diagonal else -math.inf)
        shrink = reference.raise_to(h)
        for sums in (total, pulled, slope_sums) if shrink != 1 else ():
            sums.mul_(shrink)
        tile = kernel.evaluate(h, reference.value)
        if on_diagonal and not diagonal:
            for part in (tile.values, tile.slopes):
                part.fill_diagonal_(0.0)  # -||a - a|| is no number, exp(-inf) is 0 already
        row_sums = tile.slopes.sum(dim=1)
        values = row_sums if tile.values is tile.slopes else tile.values.sum(dim=1)
        total += (2 if mirrored else 1) * values.sum(dtype=total.dtype)
        if gradient:
            y.add_weighted(tile.slopes, j, pulled[i])
            slope_sums[i] += row_sums
            if mirrored:
                x.add_weighted(tile.slopes.T, i, pulled[j])
                slope_sums[j] += tile.slopes.sum(dim=0)
    shrink = reference.agree(exchange, total)
    total = exchange.all_reduce(total * shrink, "sum")
    grad = None
    if gradient:
        # d total / d x_i = 2 sum_j slope_ij (x_j - x_i)
        grad = pulled.addcmul_(slope_sums.unsqueeze(1), x.x, value=-1).mul_(2 * tile.factor * shrink)
    return PairSum(total, reference.value, size * size if diagonal else size * (size - 1), grad)


def _tiles_within(
    x: TiledRows, scale: float, exchange: RowExchange, counts: Sequence[int]
) -> Iterator[tuple[slice, TiledRows, slice, Tensor]]:
    """Tiles (i, y, j, nearness of x_i and y_j): half of x with itself, y being x, then all with other ranks' rows."""
    rows, columns = tile_of(x, max(counts))
    scratch = Scratch(x.x, rows, max(rows, columns))
    for rank, block, _ in exchange.blocks(x.x, counts):
        y = x if rank == exchange.rank else TiledRows(block, x.products)
        for i, j in upper_tiles(len(x), rows, columns) if y is x else all_tiles(len(x), len(y), rows, columns):
            dots = x.dots(i, y, j, out=scratch.like(i, j))
            yield i, y, j, nearness(x, i, y, j, dots, scale, out=dots)


def radius_of_all(x: TiledRows, exchange: RowExchange) -> float:
    """The largest norm of a row of a cloud, whichever rank holds it."""
    return math.sqrt(2 * float(exchange.all_reduce(x.half_squares.max(), "max")))


class _Reference:
    """The exponent that sums are relative to: 0 where nothing can underflow, else the largest met so far."""

    def __init__(self, kernel: Kernel, reach: float) -> None:
        self._moves = isinstance(kernel, Gaussian) and kernel.scale * reach**2 / 2 > _SAFE_SPREAD
        self.value = -math.inf if self._moves else 0.0

    def raise_to(self, tile: Tensor) -> float:
        """Follow a tile of nearness; return the factor that former sums take."""
        if not self._moves:
            return 1.0
        former, largest = self.value, float(tile.max())
        if not largest > former:
            return 1.0
        self.value = largest
        return math.exp(former - largest)

    def agree(self, exchange: RowExchange, sums: Tensor) -> float:
        """Take the largest of all ranks' references; return the factor that the sums of this one take."""
        if not self._moves or exchange.size == 1:
            return 1.0
        former = self.value
        self.value = float(exchange.all_reduce(sums.new_tensor(former), "max"))
        return math.exp(former - self.value)


def _accumulators(x: TiledRows, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The total, the pulled rows (N, d) and the sums of slopes (N,); empty ones where no gradient is wanted."""
    rows = x.x if gradient else x.x[:0]
    return x.x.new_zeros((), dtype=wide(x.x)), torch.zeros_like(rows), rows.new_zeros(len(rows))


def wide(x: Tensor) -> torch.dtype:
    """The type that sums over x are taken in: float64, or float32 on a device that has no other."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def row_sums(tile: Tensor) -> Tensor:
    """The sum of a tile (B, C): rows in its own type, their sums in float64; exact enough, without a copy."""
    return tile.sum(dim=1).sum(dtype=wide(tile))


class Cross:
    """The pairs (x_i, y_j) of two clouds: the sums of softmax logits, a kernel's sum, and then their gradients.

    ``scale`` turns dot products into the logits of the N = M pairs (x_i, y_i), None leaves logits out; pairs i != j
    whose ``groups`` agree have no logit. ``kernel`` None leaves the kernel out. ``keep`` says that gradients follow.

    Of clouds that several ranks hold, x and y are this one's rows (of pairs the same of both), ``groups`` those of all
    pairs, and so are sums over columns: every rank takes its own rows with all columns.
    """

    def __init__(
        self,
        x: TiledRows,
        y: TiledRows,
        *,
        scale: float | None,
        groups: Tensor | None,
        kernel: Kernel | None,
        keep: bool,
        shares: Shares,
    ) -> None:
        self.x, self.y, self.kernel = x, y, kernel
        self._exchange, self._columns = shares.exchange, shares.columns
        self._own = own_slice(shares.rows, shares.exchange.rank)
        self._pairs = sum(shares.rows) * sum(shares.columns)
        self._scale, self._groups = scale, groups
        self._dots = Dots(x, keep)
        self._scratch = [Scratch(x.x, *tile_of(x, max(shares.columns))) for _ in range(3)]
        radii = radius_of_all(x, self._exchange), radius_of_all(y, self._exchange)
        if scale is not None:
            self._paired_dots = (x.x * y.x).sum(dim=1)
            # Where no logit can be far from 0, rows and columns share one exponential without a maximum of their own.
            self._shared = 2 * abs(scale) * radii[0] * radii[1] <= _SAFE_SPREAD
            # Finite, so that a tile of hidden logits alone leaves it; a pair's own logit is never hidden.
            lowest = 0.0 if self._shared else torch.finfo(x.x.dtype).min
            start = torch.full_like(self._paired_dots, lowest)
            self._paired_logits = start.clone()
            self._maxima = start, self._exchange.all_gather_rows(start, shares.columns).clone()
            self._sums = torch.zeros_like(self._maxima[0]), torch.zeros_like(self._maxima[1])
        self._total = x.x.new_zeros((), dtype=wide(x.x))
        self._reference = _Reference(kernel, sum(radii)) if kernel is not None else None
        self._measure()

    @property
    def cross_entropies(self) -> Tensor:
        """``log sum_j exp(logit_ij) + log sum_j exp(logit_ji) - 2 logit_ii`` for x's every i, as (M,) in float64."""
        dtype = wide(self._paired_logits)
        # Logits near 100 leave float32 five decimals: differences first, logarithms after.
        paired = self._paired_logits.to(dtype)
        rows, columns = (
            maxima[own].to(dtype) - paired + sums[own].to(dtype).log()
            for maxima, sums, own in zip(self._maxima, self._sums, (slice(None), self._own), strict=True)
        )
        return rows + columns

    @property
    def kernel_sum(self) -> PairSum:
        """The kernel's sum over all pairs, without gradient."""
        assert self._reference is not None
        return PairSum(self._total, self._reference.value, self._pairs)

    def _blocks(self, grads: Tensor | None = None) -> Iterator[tuple[int, TiledRows, Tensor | None]]:
        """All columns as blocks, with the number that the first of each has and a place for their gradients."""
        for rank, rows, grad in self._exchange.blocks(self.y.x, self._columns, grads):
            y = self.y if rank == self._exchange.rank else TiledRows(rows, self.y.products)
            yield own_slice(self._columns, rank).start, y, grad

    def _measure(self) -> None:
        for start, y, _ in self._blocks():
            for i, j, dots in self._dots.tiles(y, start):
                if self._scale is not None:
                    self._add_logits(i, _moved(j, start), self._logits(i, _moved(j, start), dots))
                if self.kernel is not None and self._reference is not None:
                    h = nearness(self.x, i, y, j, dots, self.kernel.scale, out=self._scratch[2].like(i, j))
                    self._total *= self._reference.raise_to(h)
                    self._total += row_sums(self.kernel.evaluate(h, self._reference.value).values)
        if self._reference is not None:
            self._total = self._total * self._reference.agree(self._exchange, self._total)
            self._total = self._exchange.all_reduce(self._total, "sum")
        if self._scale is not None and self._exchange.size > 1:
            maxima, sums = self._maxima[1], self._sums[1]
            largest = self._exchange.all_reduce(maxima, "max")
            sums.copy_(self._exchange.all_reduce(sums * maxima.sub_(largest).exp_(), "sum"))
            maxima.copy_(largest)

    def _add_logits(self, i: slice, j: slice, logits: Tensor) -> None:
        """Take in a tile of logits, its columns numbered among all."""
        at = _moved(i, self._own.start)
        first, last = max(at.start, j.start), min(at.stop, j.stop)
        if first < last:  # from the tile itself: another product would differ in its last digits
            paired = logits[first - at.start : last - at.start, first - j.start : last - j.start].diagonal()
            self._paired_logits[first - self._own.start : last - self._own.start] = paired
        if self._shared:
            self._sums[0][i] += logits.exp_().sum(dim=1)
            self._sums[1][j] += logits.sum(dim=0)
        else:
            scratch = self._scratch[1].like(i, j)
            _online(logits, 1, self._maxima[0][i], self._sums[0][i], scratch)
            _online(logits, 0, self._maxima[1][j], self._sums[1][j], scratch)

    def _logits(self, i: slice, j: slice, dots: Tensor) -> Tensor:
        logits = torch.mul(dots, self._scale, out=self._scratch[0].like(i, j))  # type: ignore[arg-type]
        return hide_same_group(logits, self._groups, _moved(i, self._own.start), j)

    def add_gradients(self, dx: Tensor, dy: Tensor, logit_weight: float, kernel_weight: float) -> Tensor:
        """Add to dx (M, d) and dy (N, d) the gradients of a weighted sum of what was measured; return the scale's.

        The sum is ``logit_weight * cross_entropies.sum() + kernel_weight * kernel_sum.total``, over all ranks.
        """
        x_slopes = dx.new_zeros(len(dx))
        d_scale = self._total.new_zeros(())
        # Weights hold the scale as a factor, which its own gradient takes out again: of next to none nothing is left.
        factor = 1.0 if self._scale is None or abs(self._scale) < SMALLEST_SCALE else self._scale
        for start, y, grad in self._blocks(dy):
            assert grad is not None
            y_slopes = dx.new_zeros(len(y))
            for i, j, dots in self._dots.tiles(y, start):
                weights: Tensor | None = None
                if self._scale is not None:
                    weights = self._softmaxes(i, _moved(j, start), dots, logit_weight * factor)
                    d_scale += torch.dot(weights.flatten(), dots.flatten()) / factor
                    if factor != self._scale:
                        weights.mul_(self._scale)
                if self.kernel is not None and self._reference is not None:
                    h = nearness(self.x, i, y, j, dots, self.kernel.scale, out=self._scratch[2].like(i, j))
                    tile = self.kernel.evaluate(h, self._reference.value)
                    alpha = kernel_weight * tile.factor
                    x_slopes[i].add_(tile.slopes.sum(dim=1), alpha=alpha)
                    y_slopes[j].add_(tile.slopes.sum(dim=0), alpha=alpha)
                    weights = tile.slopes.mul_(alpha) if weights is None else weights.add_(tile.slopes, alpha=alpha)
                assert weights is not None
                y.add_weighted(weights, j, dx[i])
                self.x.add_weighted(weights.T, i, grad[j])
            grad.addcmul_(y_slopes.unsqueeze(1), y.x, value=-1)
        dx.addcmul_(x_slopes.unsqueeze(1), self.x.x, value=-1)
        if self._scale is not None:
            dx.add_(self.y.x, alpha=-2 * logit_weight * self._scale)
            dy.add_(self.x.x, alpha=-2 * logit_weight * self._scale)
            d_scale -= 2 * logit_weight * self._paired_dots.sum(dtype=d_scale.dtype)
        return self._exchange.all_reduce(d_scale, "sum")

    def _softmaxes(self, i: slice, j: slice, dots: Tensor, weight: float) -> Tensor:
        """The softmax of every row plus that of every column, times ``weight``, on one tile."""
        logits, scratch = self._logits(i, j, dots), self._scratch[1].like(i, j)
        row_shares, column_shares = (weight / self._sums[0][i]).unsqueeze(1), weight / self._sums[1][j]
        if self._shared:
            return logits.exp_().mul_(torch.add(row_shares, column_shares, out=scratch))
        by_column = torch.sub(logits, self._maxima[1][j], out=scratch).exp_().mul_(column_shares)
        return logits.sub_(self._maxima[0][i].unsqueeze(1)).exp_().mul_(row_shares).add_(by_column)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _online(logits: Tensor, dim: int, maxima: Tensor, sums: Tensor, out: Tensor) -> None:
    """Take one tile into running sums of exp(logits - maxima) along ``dim``; both are changed in place."""
    larger = torch.maximum(maxima, logits.amax(dim=dim))
    sums.mul_(maxima.sub_(larger).exp_()).add_(torch.sub(logits, larger.unsqueeze(dim), out=out).exp_().sum(dim=dim))
    maxima.copy_(larger)
