"""Sums between random groups of pairs, from which values, their errors and sign-flip tests all follow.

A metric of two clouds is made of mean kernel values: within the images, within the texts, across strangers, and over
the pairs themselves. Here a kernel is summed once, block by block, into (G, G) matrices over at most 200 random groups
of pairs; leaving groups out (``left_out``) or swapping the members of their pairs (``flipped``) is then a pair of
vectors around these matrices and costs nothing. Up to 200 pairs every pair is its own group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.types import Floats

GROUPS = 200
# The keys of -||a - b|| and of ((a - mx) . (b - my))^2 among kernels, beside the bandwidths of Gaussians.
DISTANCE, CENTRED_SQUARE = 0.0, -1.0
# Blocks of this many rows stay in the processor's cache, which is several times faster than the whole matrix.
BLOCK = 512


class Means(NamedTuple):
    """Mean kernel values of n pairs, one entry per sample: image, text and cross over i != j, pair over i = j across.

    Those of a kernel that is relative are in units of exp(log_unit). ``own`` is k(a, a).
    """

    image: Floats
    text: Floats
    cross: Floats
    pair: Floats
    n: Floats
    own: float = 1.0
    log_unit: float = 0.0


@dataclass(frozen=True, eq=False)
class Groups:
    """Random groups of n rows: ``order`` (n,) lists the rows group by group, ``starts`` (G,) where each begins."""

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @property
    def sizes(self) -> Floats:
        """(G,) rows per group."""
        return np.diff(self.starts, append=len(self.order)).astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """(G,) or (G, d) sums per group of values (n,) or (n, d), which are in the order of rows."""
        summed: Floats = np.add.reduceat(values[self.order], self.starts, axis=0)
        return summed

    @property
    def members(self) -> npt.NDArray[np.int64]:
        """(n,) the group of each row."""
        members = np.empty(len(self.order), np.int64)
        members[self.order] = np.repeat(np.arange(len(self.starts)), self.sizes.astype(np.int64))
        return members


def random_groups(n: int, seed: int) -> Groups:
    """At most 200 groups of n rows, equal in size up to one row; up to 200 rows each is a group, in order."""
    if n <= GROUPS:
        return Groups(np.arange(n), np.arange(n))
    count = n // -(-n // GROUPS)  # fewer groups rather than some of twice the size of others
    return Groups(np.random.default_rng(seed).permutation(n), np.arange(count) * n // count)


def without(sums: Floats) -> Floats:
    """(1 + G + G (G - 1) / 2,) totals of sums (G,) or (G, G): of all groups, without each, and without each two."""
    first, second = np.triu_indices(len(sums), 1)
    if sums.ndim == 1:
        total = sums.sum()
        return np.concatenate([[total], total - sums, total - sums[first] - sums[second]])
    total, lines = sums.sum(), sums.sum(axis=0) + sums.sum(axis=1) - np.diag(sums)
    between = sums[first, second] + sums[second, first]
    return np.concatenate([[total], total - lines, total - lines[first] - lines[second] + between])


@dataclass(frozen=True, eq=False)
class KernelSums:
    """A kernel's sums (G, G) between groups over i != j: image, text, cross; (G,) pair over i = j across; sizes (G,).

    In units of exp(log_unit); ``own`` is k(a, a), in no units.
    """

    image: Floats
    text: Floats
    cross: Floats
    pair: Floats
    sizes: Floats
    own: float = 1.0
    log_unit: float = 0.0

    def left_out(self) -> Means:
        """The means of all pairs, without each group, and without each two groups, in the order of ``without``."""
        n = without(self.sizes)
        with np.errstate(invalid="ignore", divide="ignore"):  # of fewer than two pairs: NaN
            image, text, cross = (without(sums) / (n * (n - 1)) for sums in (self.image, self.text, self.cross))
            return Means(image, text, cross, without(self.pair) / n, n, self.own, self.log_unit)

    def flipped(self, signs: Floats) -> Means:
        """The means once the members of all pairs of the groups at -1 have changed places; signs (D, G) of +-1."""
        # With u = (1 + s) / 2 and 1 - u in the place of rows that stay and that go, every sum is one quadratic form.
        quadratic = _form(signs, self.image + self.text - 2 * self.cross, signs)
        linear = 2 * (self.image.sum(axis=1) - self.text.sum(axis=1) + self.cross.sum(axis=1) - self.cross.sum(axis=0))
        within, across = self.image.sum() + self.text.sum(), 2 * self.cross.sum()
        n = np.full(len(signs), self.sizes.sum())
        every = 4 * n * (n - 1)
        same, changed = (within + across + quadratic) / every, signs @ linear / every
        cross = (within + across - quadratic) / every
        return Means(same + changed, same - changed, cross, self.pair.sum() / n, n, self.own, self.log_unit)


def _form(left: Floats, matrix: Floats, right: Floats) -> Floats:
    """(D,) left_d . matrix . right_d for rows left, right (D, G)."""
    value: Floats = ((left @ matrix) * right).sum(axis=1)
    return value


def linear_sums(a: Floats, b: Floats, pair: Floats, sizes: Floats) -> KernelSums:
    """The sums of the inner product from the groups' sums of unit rows a, b (G, d) and of paired cosines (G,)."""
    return KernelSums(a @ a.T - np.diag(sizes), b @ b.T - np.diag(sizes), a @ b.T - np.diag(pair), pair, sizes)


def kernel_sums(
    x: Tensor,
    y: Tensor,
    groups: Groups,
    bandwidths: Sequence[float],
    tell: Callable[[str], None] = lambda what: None,
) -> dict[float, KernelSums]:
    """The sums of the Gaussian kernel at every bandwidth, and of two more, over unit rows (n, d).

    Under ``DISTANCE`` stands -||a - b||; under ``CENTRED_SQUARE``, across alone, the square of the inner product of an
    image with a text, both modalities' means taken away.

    Float64, without an n x n matrix. A Gaussian's sums are relative to its value at the smallest distance between two
    rows, found on the way: only bandwidths far below any useful one (0.03) can make the cross sums underflow.
    """
    order = torch.from_numpy(groups.order)
    x, y = x[order], y[order]
    count = len(groups.starts)
    sums = np.zeros((len(bandwidths) + 2, 3, count, count))
    widths = np.array([2 * s * s for s in bandwidths])
    paired = (x - y).square().sum(dim=1)
    nearest = float(paired.min())
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    offset = x @ mean_y - mean_x @ mean_y, y @ mean_x
    for block in _blocks(x, y, groups):
        closer = min(nearest, float(block.squared.min()))
        if closer < nearest:
            sums[:-2] *= np.exp((closer - nearest) / widths)[:, None, None, None]
            nearest = closer
        beyond, counted = nearest - block.squared, block.squared != math.inf
        values = torch.empty_like(beyond)
        for target, width in zip(sums, widths, strict=False):
            block.add(torch.mul(beyond, 1 / float(width), out=values).exp_(), target)
        block.add(torch.sqrt(block.squared, out=values).neg_().masked_fill_(~counted, 0.0), sums[-2])
        if block.part == 2:
            start = int(groups.starts[block.rows.start])
            off = offset[0][start : start + len(counted), None] + offset[1]
            block.add((1 - block.squared / 2 - off).square_().masked_fill_(~counted, 0.0), sums[-1])
        tell(f"kernel sums, {int(groups.sizes[: block.rows.stop].sum()):,} of {len(x):,} rows")
    # Within a cloud only one of each two (i, j), (j, i) was met.
    sums[:, :2] += sums[:, :2].swapaxes(2, 3).copy()
    sizes = groups.sizes
    found = {}
    for number, (s, width) in enumerate(zip(bandwidths, widths, strict=True)):
        of_pairs = _summed(((nearest - paired) / width).exp_(), groups)
        found[s] = KernelSums(*_parts(sums[number]), of_pairs, sizes, 1.0, -nearest / width)
    found[DISTANCE] = KernelSums(*_parts(sums[-2]), _summed(-paired.sqrt(), groups), sizes, 0.0)
    centred = (1 - paired / 2 - offset[0] - offset[1]).square()
    found[CENTRED_SQUARE] = KernelSums(*_parts(sums[-1]), _summed(centred, groups), sizes)
    return found


def _parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
    image, text, cross = sums
    return image, text, cross


def _summed(values: Tensor, groups: Groups) -> Floats:
    """(G,) sums of values (n,) that are in the groups' order already."""
    summed: Floats = np.add.reduceat(values.numpy(), groups.starts)
    return summed


class _Block(NamedTuple):
    """Squared distances between the rows of some groups and those of others; infinite where they do not count."""

    part: int  # 0 within the images, 1 within the texts, 2 across
    rows: slice  # of groups
    columns: slice
    row_starts: npt.NDArray[np.int64]
    column_starts: npt.NDArray[np.int64]
    squared: Tensor

    def add(self, values: Tensor, sums: Floats) -> None:
        """Add the values of this block, summed per pair of groups, to sums (3, G, G)."""
        size, left = divmod(values.shape[1], len(self.column_starts))
        if not left and (np.diff(self.column_starts) == size).all():  # twice as fast
            by_column = values.view(len(values), -1, size).sum(dim=2).numpy()
        else:
            by_column = np.add.reduceat(values.numpy(), self.column_starts, axis=1)
        sums[self.part, self.rows, self.columns] += np.add.reduceat(by_column, self.row_starts, axis=0)


def _blocks(x: Tensor, y: Tensor, groups: Groups) -> Iterator[_Block]:
    """All two rows of different pairs; within a cloud those with i < j alone."""
    starts, ends = groups.starts, np.append(groups.starts[1:], len(x))
    first = 0
    while first < len(ends):
        start = int(starts[first])
        last = max(first + 1, int(np.searchsorted(ends, start + BLOCK, side="right")))
        stop = int(ends[last - 1])
        rows, inner = slice(first, last), starts[first:last] - start
        for part, z in enumerate((x, y)):
            squared = _squared(z[start:stop], z[start:])
            met = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            squared[:, : stop - start].masked_fill_(met, math.inf)
            yield _Block(part, rows, slice(first, None), inner, starts[first:] - start, squared)
        across = _squared(x[start:stop], y)
        across[:, start:stop].fill_diagonal_(math.inf)
        yield _Block(2, rows, slice(None), inner, starts, across)
        first = last


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).mul_(-2).add_(2).clamp_(min=0)
