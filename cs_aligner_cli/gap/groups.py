"""Sums between random groups of pairs, from which values, bootstrap intervals and null floors all follow.

A metric of two clouds is made of mean kernel values: within the images, within the texts, and across. Here a kernel
is summed once, block by block, into a (G, G) matrix over at most 200 random groups of pairs; a bootstrap draw of
groups, or a split of one cloud into halves, is then a pair of vectors around that matrix and costs nothing. Up to 200
pairs every pair is its own group.
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
# Blocks of this many rows stay in the processor's cache, which is several times faster than the whole matrix.
BLOCK = 512


class Means(NamedTuple):
    """Mean kernel values of two samples of m and n rows, one entry per draw: image and text over i != j, cross over
    all. Those of a kernel that is relative are in units of exp(log_unit). ``own`` is k(a, a)."""

    image: Floats
    text: Floats
    cross: Floats
    m: Floats
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

    def counts(self, draws: int, seed: int) -> Floats:
        """(1 + draws, G) how often a bootstrap draw holds each group; the first draw is the sample itself."""
        groups = len(self.starts)
        drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
        return np.concatenate([np.ones((1, groups)), drawn])


def random_groups(n: int, seed: int) -> Groups:
    """At most 200 groups of n rows, equal in size up to one row; up to 200 rows each is a group, in order."""
    if n <= GROUPS:
        return Groups(np.arange(n), np.arange(n))
    return Groups(np.random.default_rng(seed).permutation(n), np.arange(GROUPS) * n // GROUPS)


@dataclass(frozen=True, eq=False)
class KernelSums:
    """A kernel's sums (G, G) between groups: image and text without i = j, cross with; sizes (G,) of the groups.

    In units of exp(log_unit); ``own`` is k(a, a), in no units.
    """

    image: Floats
    text: Floats
    cross: Floats
    sizes: Floats
    own: float = 1.0
    log_unit: float = 0.0

    def resampled(self, counts: Floats) -> Means:
        """The means under ``counts`` (D, G).

        A draw holds some groups twice, and would see their rows as clones of each other: so blocks of a group with
        itself keep the share that they have in the sample, in every draw.
        """
        every = np.outer(self.sizes, self.sizes)
        others = every - np.diag(self.sizes)
        n = np.full(len(counts), self.sizes.sum())
        image, text = (_resampled(sums, others, counts) for sums in (self.image, self.text))
        return Means(image, text, _resampled(self.cross, every, counts), n, n, self.own, self.log_unit)

    def halves(self, first: Floats, second: Floats) -> tuple[Means, Means]:
        """The means between two halves of the images, and of the texts; 0/1 masks (D, G) of disjoint halves."""
        m, n = first @ self.sizes, second @ self.sizes
        means = []
        for sums in (self.image, self.text):
            a, b = (
                _form(part, sums, part) / np.maximum(size * (size - 1), 1) for part, size in ((first, m), (second, n))
            )
            across = _form(first, sums, second) / (m * n)
            means.append(Means(a, b, across, m, n, self.own, self.log_unit))
        return means[0], means[1]


def _form(left: Floats, matrix: Floats, right: Floats) -> Floats:
    """(D,) left_d . matrix . right_d for rows left, right (D, G)."""
    value: Floats = ((left @ matrix) * right).sum(axis=1)
    return value


def _resampled(sums: Floats, pairs: Floats, counts: Floats) -> Floats:
    own_sums, own_pairs = np.diag(sums), np.diag(pairs)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one group only has nothing between groups: NaN
        apart = (_form(counts, sums, counts) - counts**2 @ own_sums) / (
            _form(counts, pairs, counts) - counts**2 @ own_pairs
        )
    share = float(own_pairs.sum() / pairs.sum())
    inside = (counts @ own_sums) / (counts @ own_pairs) if share else np.zeros(len(counts))
    return (1 - share) * apart + share * inside


def linear_sums(x: Floats, y: Floats, groups: Groups) -> KernelSums:
    """The sums of the inner product, for unit rows x, y (n, d)."""
    return linear_sums_of(groups.sums(x), groups.sums(y), groups.sizes)


def linear_sums_of(a: Floats, b: Floats, sizes: Floats) -> KernelSums:
    """The same from the groups' sums a, b (G, d) of unit rows alone: for any number of rows."""
    return KernelSums(a @ a.T - np.diag(sizes), b @ b.T - np.diag(sizes), a @ b.T, sizes)


def kernel_sums(
    x: Tensor,
    y: Tensor,
    groups: Groups,
    bandwidths: Sequence[float],
    tell: Callable[[str], None] = lambda what: None,
) -> dict[float, KernelSums]:
    """The sums of the Gaussian kernel at every bandwidth, and under 0.0 those of -||a - b||, over unit rows (n, d).

    Float64, without an n x n matrix. A Gaussian's sums are relative to its value at the smallest distance between two
    rows, found on the way: only bandwidths far below any useful one (0.03) can make the cross sums underflow.
    """
    x, y = x[torch.from_numpy(groups.order)], y[torch.from_numpy(groups.order)]
    count = len(groups.starts)
    sums = np.zeros((len(bandwidths) + 1, 3, count, count))
    widths = np.array([2 * s * s for s in bandwidths])
    nearest = 4.0
    for block in _blocks(x, y, groups):
        closer = min(nearest, float(block.squared.min()))
        if closer < nearest:
            sums[:-1] *= np.exp((closer - nearest) / widths)[:, None, None, None]
            nearest = closer
        for target, width in zip(sums, widths, strict=False):
            block.add(((nearest - block.squared) / width).exp_(), target)
        lengths = block.squared.sqrt()
        block.add(lengths.masked_fill_(lengths == math.inf, 0.0).neg_(), sums[-1])
        tell(f"kernel sums, {int(groups.sizes[: block.rows.stop].sum()):,} of {len(x):,} rows")
    # Within a cloud only one of each two (i, j), (j, i) was met.
    sums[:, :2] += sums[:, :2].swapaxes(2, 3).copy()
    sizes = groups.sizes
    found = {
        s: KernelSums(*_parts(sums[number]), sizes, 1.0, -nearest / width)
        for number, (s, width) in enumerate(zip(bandwidths, widths, strict=True))
    }
    return {**found, 0.0: KernelSums(*_parts(sums[-1]), sizes, 0.0)}


def _parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
    image, text, cross = sums
    return image, text, cross


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
        by_column = np.add.reduceat(values.numpy(), self.column_starts, axis=1)
        sums[self.part, self.rows, self.columns] += np.add.reduceat(by_column, self.row_starts, axis=0)


def _blocks(x: Tensor, y: Tensor, groups: Groups) -> Iterator[_Block]:
    """All pairs of rows; within a cloud those with i < j alone."""
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
        yield _Block(2, rows, slice(None), inner, starts, _squared(x[start:stop], y))
        first = last


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).mul_(-2).add_(2).clamp_(min=0)
