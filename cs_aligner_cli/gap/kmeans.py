"""k-means to the same clusters as scikit-learn's, whose import alone takes longer than all the clusters of a report."""

from __future__ import annotations

import numpy as np

from cs_aligner_cli.common.types import Floats, Ints

_STARTS, _MOST_STEPS = 3, 300
# Of so many clusters one start leaves hardly more than the best of three, which would take three times as long.
_MANY = 100
# Distances, and memberships, that are held at a time: memory does not grow with rows times clusters.
_ENTRIES = 2**22
_TOLERANCE = 1e-4  # of a dimension's mean variance: centres that move less, squared and summed, stand still


def k_means(rows: Floats, count: int, seed: int) -> Ints:
    """(n,) the cluster of each of the rows (n, d), n >= count: the best of three starts by the sum of squares;
    one start for more than 100 clusters. Time grows with n count d, memory with n d.

    Starts are k-means++ (Arthur & Vassilvitskii, SODA 2007; of 2 + log(count) candidates for a centre the one that
    leaves the least), steps are Lloyd's (IEEE Transactions on Information Theory 1982).
    """
    rows = rows - rows.mean(axis=0)
    squares = np.einsum("ij,ij->i", rows, rows)
    rng = np.random.RandomState(seed)  # scikit-learn's generator, for its numbers
    starts = _STARTS if count <= _MANY else 1
    labels, centres = _lloyd(rows, np.stack([_plus_plus(rows, squares, count, rng) for _ in range(starts)]))
    left = [float(np.square(rows - of_start[found]).sum()) for found, of_start in zip(labels, centres, strict=True)]
    best: Ints = labels[int(np.argmin(left))]
    return best


def _plus_plus(rows: Floats, squares: Floats, count: int, rng: np.random.RandomState) -> Floats:
    """(count, d) of the rows to start from, each likely far from those before it."""

    def distances(places: Ints) -> Floats:
        apart: Floats = squares - 2 * rows[places] @ rows.T + squares[places, None]
        return np.maximum(apart, 0)

    chosen = rng.choice(len(rows), 1, p=np.full(len(rows), 1 / len(rows)))
    nearest = distances(chosen)[0]
    for _ in range(1, count):
        drawn = rng.uniform(size=2 + int(np.log(count))) * nearest.sum()
        places = np.minimum(np.searchsorted(np.cumsum(nearest), drawn), len(rows) - 1)
        left = np.minimum(nearest, distances(places))
        best = left.sum(axis=1).argmin()
        chosen, nearest = np.append(chosen, places[best]), left[best]
    return rows[chosen]


def _lloyd(rows: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """The clusters (s, n) and centres (s, k, d) that steps from several starts, centres (s, k, d), end at.

    All starts take each step together: passing over the rows is what takes time.
    """
    still = _TOLERANCE * float(rows.var(axis=0).mean())
    labels, moving = np.full((len(centres), len(rows)), -1), np.arange(len(centres))
    for _ in range(_MOST_STEPS):
        if not len(moving):
            break
        before, found = labels[moving], _nearest(rows, centres[moving])
        labels[moving] = found
        moving = moving[(found != before).any(axis=1)]
        moved = _centres(rows, labels[moving], centres[moving])
        shift = np.square(moved - centres[moving]).sum(axis=(1, 2))
        centres[moving] = moved
        if len(settled := moving[shift <= still]):
            labels[settled] = _nearest(rows, centres[settled])
        moving = moving[shift > still]
    return labels, centres


def _nearest(rows: Floats, centres: Floats) -> Ints:
    """(s, n) which of centres (s, k, d) is the nearest to each row."""
    starts, count, width = centres.shape
    squares, twice = np.square(centres).sum(axis=2).ravel(), (2 * centres.reshape(-1, width)).T
    nearest = np.empty((starts, len(rows)), np.int64)
    step = max(1, _ENTRIES // len(squares))
    for first in range(0, len(rows), step):
        apart = squares - rows[first : first + step] @ twice
        nearest[:, first : first + step] = apart.reshape(-1, starts, count).argmin(axis=2).T
    return nearest


def _centres(rows: Floats, labels: Ints, before: Floats) -> Floats:
    """(s, k, d) the means of clusters (s, n); one without rows takes the row farthest from its centre of ``before``."""
    starts, count, width = before.shape
    labels = labels.copy()
    for found, centres in zip(labels, before, strict=True):
        empty = np.flatnonzero(np.bincount(found, minlength=count) == 0)
        if len(empty):
            far = np.square(rows - centres[found]).sum(axis=1).argsort()[: -len(empty) - 1 : -1]
            found[far] = empty
    means = np.empty((starts * count, width))
    of_start, cluster = np.divmod(np.arange(starts * count), count)
    step = max(1, _ENTRIES // len(rows))
    for first in range(0, starts * count, step):
        block = slice(first, first + step)
        belongs = (labels[of_start[block]] == cluster[block, None]).astype(np.float64)
        means[block] = (belongs @ rows) / np.maximum(belongs.sum(axis=1), 1)[:, None]
    return means.reshape(before.shape)
