"""The Cauchy-Schwarz divergence of very large samples, by Nystroem landmarks or random Fourier features."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, double, same_width
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth

# Rows whose features are held at a time.
_BLOCK = 4096
# Eigenvalues of the landmarks' kernel below this share of the largest are rounding or duplicates.
_CUTOFF = 1e-12
# A cosine of two mean embeddings below this, a divergence above 55, is rounding.
_ROUNDING = 1e-12
# Below, random Fourier features fail on unit rows: relative errors of 10 to 70%, negative cross sums.
_MIN_RFF_SIGMA = 0.5


def nystroem_cs(x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, landmarks: int = 256, seed: int = 0) -> Tensor:
    """Return an approximation of ``cs_divergence(x, y, bandwidth)`` (V-statistic) in time linear in the rows.

    With landmarks Z, ``a = mean_i k(x_i, Z)``, ``b = mean_j k(y_j, Z)``, the inner products of the RKHS mean
    embeddings are ``<mu_x, mu_y> ~ a^T K_ZZ^+ b`` (Williams & Seeger 2001; Chatalic et al., arXiv 2201.13055), and
    D = log <mu_x, mu_x> + log <mu_y, mu_y> - 2 log <mu_x, mu_y>. x is (M, d), y (N, d); ``bandwidth`` is sigma of
    the Gaussian kernel, or several for the mean of their kernels. The ``landmarks`` are random rows, half of x and
    half of y as far as they go, drawn with ``seed``; M + N or more of them are all rows, and exact.

    The error is what the landmarks do not span: small where the rows' spectrum falls and the samples lie apart, as
    CLIP's do, but half of the value and more where rows fill many dimensions evenly and nearly share a mean; there
    ``rff_cs`` is the better one.

    Symmetric only up to the draw of landmarks; never negative; 0 for equal samples. The gradient holds the
    landmarks fixed. Without a gradient, memory is a block of rows times landmarks beside the rows; with one, all
    rows times landmarks.

    Computed in float64 whatever the autocast; returned in float32, or in float64 where x or y is. Raises
    InputError for rows that do not fit together or are not finite, options out of range, and where the cross sum
    is not positive or is lost in rounding (a divergence above 55), that is where the bandwidth is too small for
    the samples.
    """
    x, y = _finite(x, y)
    sigmas = resolve_bandwidth(bandwidth, x, y)
    if landmarks < 2:
        raise InputError(f"landmarks: expected at least 2, got {landmarks}")
    z = _landmarks(x, y, landmarks, seed)
    centre = z.mean(dim=0)  # distances from a Gram matrix cancel far from the origin
    of_x, of_y = (
        _mean_features(rows, lambda block: mean_gaussian(block - centre, z - centre, sigmas)) for rows in (x, y)
    )
    return cs_of_landmarks(of_x, of_y, z, sigmas).to(torch.promote_types(x.dtype, y.dtype))


def cs_of_landmarks(of_x: Tensor, of_y: Tensor, z: Tensor, sigmas: Sequence[float]) -> Tensor:
    """``nystroem_cs`` from what it needs of the rows: ``of_x = mean_i k(x_i, z)``, ``of_y = mean_j k(y_j, z)``, (m,).

    z (m, d) are the landmarks, k is the mean of the Gaussian kernels of ``sigmas``; all in float64. Means over any
    number of rows can be taken block by block, and those of several bandwidths in one pass. Raises InputError where
    the cross sum is lost in rounding.
    """
    roots = _nystroem_roots(z, sigmas)
    mean_x, mean_y = of_x @ roots, of_y @ roots
    noise = _ROUNDING * float((mean_x.norm() * mean_y.norm()).detach())
    setting = f"nystroem with sigma {_listed(sigmas)} and {len(z)} landmarks"
    remedy = "Take more landmarks or a larger bandwidth, or the exact cs divergence."
    return _cs_of_means(mean_x, mean_y, noise, setting, remedy)


def nystroem_error(
    x: ArrayLike,
    y: ArrayLike,
    bandwidth: Bandwidth,
    landmarks: int,
    repeats: int = 4,
    seed: int = 0,
) -> tuple[float, float]:
    """Return mean and standard deviation of ``nystroem_cs`` over ``repeats`` independent draws of landmarks.

    The draws have the seeds ``seed`` to ``seed + repeats - 1``; the deviation is that of a single draw. It does
    not see what all draws have in common, which is most of the error: landmarks span less than the samples do, so
    on unit rows with a gap the value is too low, by many standard deviations. How much the value rises from half
    the landmarks to all of them is a better measure of that. Raises InputError as ``nystroem_cs`` does, and for
    fewer than two repeats.
    """
    if repeats < 2:
        raise InputError(f"repeats: a standard deviation needs at least 2, got {repeats}")
    with torch.no_grad():
        values = [float(nystroem_cs(x, y, bandwidth, landmarks, seed + i)) for i in range(repeats)]
    return statistics.fmean(values), statistics.stdev(values)


def rff_cs(x: ArrayLike, y: ArrayLike, bandwidth: Bandwidth, features: int = 4096, seed: int = 0) -> Tensor:
    """Return an approximation of ``cs_divergence(x, y, bandwidth)`` (V-statistic) by random Fourier features.

    The Gaussian kernel is ``E_w cos(w.(a - b))`` over w ~ N(0, I / sigma^2) (Rahimi & Recht 2007): with F / 2
    frequencies w, drawn with ``seed``, the F ``features`` of a row are ``cos(w.a)`` and ``sin(w.a)``, for every
    sigma where ``bandwidth`` names several. D_CS follows from the two mean feature vectors.

    Symmetric; never negative; 0 for equal samples; invariant under a common shift. Where a shift of the mean makes
    the divergence, the relative error is about ``2 / sqrt(features)``. Memory and precision are those of
    ``nystroem_cs``, which is the more exact one where a modality gap is wide. So are the errors, but the cross sum
    must exceed twice its standard error over frequencies, and a sigma below 0.5 is refused: on unit rows it fails
    there.
    """
    x, y = _finite(x, y)
    sigmas = resolve_bandwidth(bandwidth, x, y)
    if features < 4 or features % 2:
        raise InputError(f"features: expected an even number of at least 4, got {features}")
    if min(sigmas) < _MIN_RFF_SIGMA:
        raise InputError(
            f"rff: expected a sigma of at least {_MIN_RFF_SIGMA}, got {min(sigmas):g}",
            "Random Fourier features are too noisy for a narrow kernel; use nystroem.",
        )
    normal = torch.randn(x.shape[1], features // 2, dtype=torch.float64, generator=_generator(seed)).to(x.device)
    frequencies = torch.cat([normal / sigma for sigma in sigmas], dim=1)

    def feature_map(rows: Tensor) -> Tensor:
        phases = rows @ frequencies
        return torch.cat([phases.cos(), phases.sin()], dim=1) / math.sqrt(frequencies.shape[1])

    mean_x, mean_y = _mean_features(x, feature_map), _mean_features(y, feature_map)
    # The cross sum is a mean over independent frequencies, so it knows its own sampling error.
    per_frequency = (mean_x * mean_y).detach().view(2, len(sigmas), -1).sum(dim=(0, 1))
    noise = 2 * float(per_frequency.std()) * math.sqrt(features // 2)
    setting = f"rff with sigma {_listed(sigmas)} and {features} features"
    remedy = "Take more features or a larger bandwidth, or nystroem."
    return _cs_of_means(mean_x, mean_y, noise, setting, remedy).to(torch.promote_types(x.dtype, y.dtype))


def _finite(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
    """Both samples as tensors, once they are seen to fit and to be finite."""
    x, y = as_rows(x, "x"), as_rows(y, "y")
    same_width(x, y)
    for name, rows in (("x", x), ("y", y)):
        if not all(block.detach().isfinite().all() for block in _blocks(rows)):
            raise InputError(f"{name}: the rows hold NaN or infinity")
    return x, y


def _generator(seed: int) -> torch.Generator:
    """Of the CPU on every device, so that one seed draws the same everywhere."""
    return torch.Generator().manual_seed(seed)


def _landmarks(x: Tensor, y: Tensor, count: int, seed: int) -> Tensor:
    """At most ``count`` random rows, detached, float64: half from each sample, or more where the other has too few.

    Rows of both drawn as one pool would leave a small sample next to a large one with hardly any landmarks.
    """
    generator = _generator(seed)
    from_x = min(len(x), max(count // 2, count - len(y)))
    from_y = min(len(y), count - from_x)
    drawn = [
        rows.detach()[torch.randperm(len(rows), generator=generator)[:share].to(rows.device)]
        for rows, share in ((x, from_x), (y, from_y))
    ]
    return double(torch.cat(drawn))


def _nystroem_roots(z: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The matrix (m, r), r <= m, with ``(k(s, z) @ roots) . (k(t, z) @ roots) = k(s, z) K_zz^+ k(z, t)``."""
    z = z - z.mean(dim=0)
    eigenvalues, eigenvectors = torch.linalg.eigh(mean_gaussian(z, z, sigmas))
    kept = eigenvalues > _CUTOFF * eigenvalues[-1]
    roots: Tensor = eigenvectors[:, kept] / eigenvalues[kept].sqrt()
    return roots


def mean_gaussian(x: Tensor, z: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(M, m) mean over sigmas of ``exp(-||x_i - z_j||^2 / (2 sigma^2))``."""
    squared = (x.square().sum(dim=1).unsqueeze(1) + z.square().sum(dim=1) - 2 * (x @ z.T)).clamp(min=0)
    kernels = [torch.exp(squared / (-2 * sigma**2)) for sigma in sigmas]
    return kernels[0] if len(kernels) == 1 else torch.stack(kernels).mean(dim=0)


def _blocks(x: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(x), _BLOCK):
        yield x[start : start + _BLOCK]


def _mean_features(x: Tensor, feature_map: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean feature vector of the rows x (M, d), widened to float64 block by block."""
    return torch.stack([feature_map(double(block)).sum(dim=0) for block in _blocks(x)]).sum(dim=0) / len(x)


def _cs_of_means(mean_x: Tensor, mean_y: Tensor, noise: float, setting: str, remedy: str) -> Tensor:
    """D_CS from finite mean embeddings; raises InputError where the cross sum does not stand out of its noise."""
    cross = mean_x @ mean_y
    found = float(cross.detach())
    if not found > noise:
        raise InputError(
            f"{setting}: the cross sum <mu_x, mu_y> is {found:.3g}, not above {noise:.3g}, its noise", remedy
        )
    return (mean_x @ mean_x).log() + (mean_y @ mean_y).log() - 2 * cross.log()


def _listed(sigmas: Sequence[float]) -> str:
    return ", ".join(f"{sigma:g}" for sigma in sigmas)
