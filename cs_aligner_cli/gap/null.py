"""Is there a gap at all? Tests by sign flips: without a gap, the two members of any pair may change places.

Every metric between the clouds is taken again with the members of random pairs swapped. Kernels are summed once: a
swap is a vector of signs around the sums between groups (for MMD the wild bootstrap of a quadratic form in h; for the
centroid gap, flips of the pairs' differences). Where the groups hold several pairs, those of one group are swapped
together, which keeps the test as valid and makes it somewhat coarser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.gap.groups import KernelSums
from cs_aligner_cli.gap.kernel_metrics import centroid_metrics, divergence_metrics
from cs_aligner_cli.gap.transport import frechet_covariance, frechet_of_covariances

FLIPS = 999
# Flips of metrics that have to be taken anew for each.
FEW_FLIPS, _FEWEST_FLIPS = 99, 4
# Directions along which rows are flipped: a quarter of those that the distance itself is taken along.
_DIRECTIONS = 32
_LEVEL = 0.95


def sign_flips(count: int, draws: int, seed: int) -> Floats:
    """(draws, count) random signs, +1 or -1."""
    if draws < 1:
        raise InputError(f"draws: expected at least 1 flip, got {draws}")
    return np.random.default_rng(seed).integers(0, 2, (draws, count)).astype(np.float64) * 2 - 1


def flip_p(value: float, flipped: Floats) -> float:
    """The share of flips (D,), the data themselves among them, that read no less than the data do."""
    slack = 1e-12 + 1e-9 * abs(value)  # sums in another order are no difference
    return float(1 + (flipped >= value - slack).sum()) / (1 + len(flipped))


def centroid_flips(linear: KernelSums, seed: int, draws: int = FLIPS) -> dict[str, Floats]:
    """The centroid gaps (D,) of every flip."""
    return centroid_metrics(linear.flipped(sign_flips(len(linear.sizes), draws, seed)))


def divergence_flips(
    kernels: Mapping[float, KernelSums], bandwidths: Sequence[float], seed: int, draws: int = FLIPS
) -> dict[str, Floats]:
    """D_CS, MMD and the energy distance (D,) of every flip."""
    signs = sign_flips(len(next(iter(kernels.values())).sizes), draws, seed)
    return divergence_metrics({s: kernel.flipped(signs) for s, kernel in kernels.items()}, bandwidths)


def purity_flips(nearest: Ints, seed: int, draws: int = FLIPS) -> Floats:
    """The modality purity (D,) of every flip; nearest (2n, k): the rows nearest to each, images before texts.

    Who is near whom does not change with the swaps, only which modality a row belongs to.
    """
    rows, k = nearest.shape
    graph = sparse.csr_array(
        (np.ones(nearest.size), nearest.ravel(), np.arange(0, nearest.size + 1, k)), shape=(rows, rows)
    )
    signs = sign_flips(rows // 2, draws, seed)
    of_rows = np.concatenate([signs, -signs], axis=1).T
    purity: Floats = 0.5 + ((graph @ of_rows) * of_rows).sum(axis=0) / (2 * nearest.size)
    return purity


def sliced_flips(along: Tensor, seed: int, draws: int = FEW_FLIPS) -> Floats:
    """The sliced 2-Wasserstein distance of the data and of every flip, (1 + D,); along (2n, L): rows along directions.

    Images come first in ``along``, of which the first 32 directions are taken.

    The rows are sorted once: a swap only changes which of them are taken for images.
    """
    n = len(along) // 2
    values, order = (part.numpy() for part in along[:, :_DIRECTIONS].T.sort(dim=1))
    found = np.empty(1 + draws)
    for draw, signs in enumerate(np.concatenate([np.ones((1, n)), sign_flips(n, draws, seed)])):
        image = np.concatenate([signs > 0, signs < 0])[order]
        # numpy's own selection by a mask is several times faster than torch's, and all directions have n of each.
        apart = values[image] - values[~image]
        found[draw] = float(np.square(apart).mean()) ** 0.5
    return found


def frechet_level(x: Tensor, y: Tensor, seed: int) -> float:
    """The mean of Frechet's covariance part over a few flips of the centred rows: too dear for a test."""
    a, b = (z.numpy() for z in (x - x.mean(dim=0), y - y.mean(dim=0)))
    n, every = len(a), a.T @ a + b.T @ b
    values = []
    for signs in sign_flips(n, _FEWEST_FLIPS, seed):
        kept = signs[:, None] > 0
        flipped = np.where(kept, a, b)
        # What one cloud gains by a flip the other loses, and their means are opposite.
        products, means = flipped.T @ flipped, n * np.outer(flipped.mean(axis=0), flipped.mean(axis=0))
        value = frechet_of_covariances((products - means) / (n - 1), (every - products - means) / (n - 1))
        if value is None:
            value = frechet_covariance(*map(torch.from_numpy, (flipped, np.where(kept, b, a))))
        values.append(value)
    return float(np.mean(values))


def band(flipped: Floats) -> float:
    """What 95% of the flips stay below."""
    return float(np.quantile(flipped, _LEVEL))
