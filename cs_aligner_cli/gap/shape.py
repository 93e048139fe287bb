"""The shape of the clouds: Frechet's parts, sliced Wasserstein, effective rank, linear CKA, clusters of both."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.gap.groups import Floats
from cs_aligner_cli.objectives import sliced_wasserstein

_PROJECTIONS = 128
_CLUSTERS = 10
_PERMUTATIONS = 4


def frechet_covariance(x: Tensor, y: Tensor) -> float:
    """tr(Sx + Sy - 2 (Sx Sy)^(1/2)) of x (M, d) and y (N, d), S = centred^T centred / (rows - 1).

    The part of the squared Frechet distance (Dowson & Landau 1982, as in FID) that the means leave. Computed from the
    centred rows X, Y themselves: the trace of (Sx Sy)^(1/2) is the sum of the singular values of X Y^T, scaled, so no
    covariance has to be inverted or shrunk, and fewer rows than dimensions do no harm.
    """
    a, b = (_reduced(z - z.mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    value = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float(value.clamp(min=0))


def _reduced(centred: Tensor) -> Tensor:
    """R of a QR decomposition, (min(rows, d), d), where there are more rows than dimensions: equal R^T R."""
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def sliced_distance(x: Tensor, y: Tensor, seed: int) -> float:
    """The sliced 2-Wasserstein distance of x (M, d) and y (N, d), in the units of the rows (128 directions)."""
    generator = torch.Generator().manual_seed(seed)
    return math.sqrt(float(sliced_wasserstein(x, y, _PROJECTIONS, 2, generator)))


def spectrum(x: Tensor, centred: bool = True) -> Floats:
    """The singular values of x (N, d), largest first, as shares of their sum; zeros where all rows coincide."""
    values = torch.linalg.svdvals(_reduced(x - x.mean(dim=0) if centred else x)).numpy()
    total = values.sum()
    # Rows that coincide leave rounding behind when their mean is taken away.
    shares: Floats = values / total if total > 1e-9 * len(x) else np.zeros_like(values)
    return shares


def effective_rank(shares: Floats) -> float:
    """exp(H(p)) of a spectrum's shares p (Roy & Vetterli 2007); 0.0 for a cloud without extent."""
    p = shares[shares > 0]
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def linear_cka(x: Tensor, y: Tensor) -> float:
    """||Xc^T Yc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) of row-paired x (N, d), y (N, e); 0.0 for a constant one.

    Kornblith et al., ICML 2019. It is blind to the gap: centred, and free of rotations.
    """
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    own = _own(a, b)
    return float((a.T @ b).square().sum()) / own if own else 0.0


def shuffled_cka(x: Tensor, y: Tensor, seed: int) -> float:
    """The mean CKA after shuffling the pairs, which is far from 0 where dimensions are many and pairs few."""
    rng = np.random.default_rng(seed)
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    shuffled = [(a.T @ b[torch.from_numpy(rng.permutation(len(b)))]).square().sum() for _ in range(_PERMUTATIONS)]
    own = _own(a, b)
    return float(torch.stack(shuffled).mean()) / own if own else 0.0


def _own(a: Tensor, b: Tensor) -> float:
    """||a^T a||_F ||b^T b||_F of centred rows; 0.0 where rounding is all that is left of constant ones."""
    own = float((a.T @ a).norm() * (b.T @ b).norm())
    return own if own > 1e-18 * len(a) ** 2 else 0.0


def cluster_agreement(x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """k-means (10 clusters) over images and texts together: do the two rows of a pair get the same cluster?

    ``cluster_v_measure`` (0 to 1) and ``cluster_ari`` (0 at chance, 1 if equal) between the images' and the texts'
    assignments. A gap makes clusters of one modality each, and then neither says anything: see ``cluster_pairs``, the
    share of pairs within one cluster.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    rows = torch.cat([x, y]).numpy()
    count = min(_CLUSTERS, len(x) // 2, len(np.unique(rows.round(9), axis=0)))
    image, text = np.split(KMeans(count, n_init=3, random_state=seed).fit_predict(rows), 2)
    return {
        "cluster_pairs": float((image == text).mean()),
        "cluster_ari": float(adjusted_rand_score(image, text)),
        "cluster_v_measure": float(v_measure_score(image, text)),
    }
