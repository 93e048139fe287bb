"""Approximate Cauchy-Schwarz divergences against the exact one, scikit-learn, plain formulas and their limits."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.kernel_approximation import Nystroem

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import approximation, cs_divergence
from cs_aligner_cli.objectives.approximation import nystroem_cs, nystroem_error, rff_cs

Matrix = npt.NDArray[np.float64]


def random_rows(seed: int, rows: int, width: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, width))


def unit_rows_with_a_gap(m: int, n: int, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows whose spectrum falls and whose centroids lie 0.87 apart: nearly the D_CS of CLIP's rows."""
    rng = np.random.default_rng(0)
    scales, common, gap = np.arange(1, width + 1) ** -0.5, rng.normal(size=width), rng.normal(size=width)
    scales, common, gap = (vector / np.linalg.norm(vector) for vector in (scales, common, gap))

    def cloud(rows, sign):
        x = rng.normal(size=(rows, width)) * scales + 1.2 * common + sign * 0.75 * gap
        return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))

    return cloud(m, 1), cloud(n, -1)


X, Y = unit_rows_with_a_gap(400, 350)


def few_landmarks(x, y, bandwidth):
    return nystroem_cs(x, y, bandwidth, 24)


def few_features(x, y, bandwidth):
    return rff_cs(x, y, bandwidth, 512)


APPROXIMATIONS = [few_landmarks, few_features]


def mixture_kernel(x: Matrix, y: Matrix, sigmas) -> Matrix:
    squared = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return np.mean([np.exp(-squared / (2 * s**2)) for s in sigmas], axis=0)


def mixture_cs(x: Matrix, y: Matrix, sigmas) -> float:
    xx, yy, xy = (mixture_kernel(a, b, sigmas).mean() for a, b in ((x, x), (y, y), (x, y)))
    return math.log(xx) + math.log(yy) - 2 * math.log(xy)


def relative_error(approximate, sigma: float, size: int, draws: int = 4) -> float:
    """Root mean square over draws."""
    exact = cs_divergence(X, Y, sigma).item()
    with torch.no_grad():
        errors = [approximate(X, Y, sigma, size, seed).item() / exact - 1 for seed in range(draws)]
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize(
    ("sigma", "bands"),
    [
        (0.3, {64: 0.074, 128: 0.056, 256: 0.040}),
        (0.5, {64: 0.064, 128: 0.031, 256: 0.013}),
        (0.707, {64: 0.044, 128: 0.018, 256: 0.007}),
        (1.0, {64: 0.032, 128: 0.013, 256: 0.004}),
        (2.0, {64: 0.023, 128: 0.008, 256: 0.002}),
    ],
)
def test_nystroem_errors_keep_to_the_bands_measured_on_clip(sigma, bands):
    for landmarks, band in bands.items():
        assert relative_error(nystroem_cs, sigma, landmarks) < 1.2 * band


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_rff_errors_keep_to_the_theory(sigma):
    """Where a mean shift m makes the divergence, it is a mean of F / 2 squares (w.m)^2: relative error 2 / sqrt F."""
    for features in (1024, 4096):
        assert relative_error(rff_cs, sigma, features, draws=8) < 1.6 * 2 / math.sqrt(features)
    exact = cs_divergence(X[:60], Y[:60], sigma).item()  # and the mean over draws shows no bias
    mean = np.mean([rff_cs(X[:60], Y[:60], sigma, 2**14, seed).item() for seed in range(16)])
    assert mean == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("bandwidth", [0.3, 1, 3.0, (0.3, 1.0, 2.0), [0.5]])
def test_with_all_rows_as_landmarks_nystroem_is_exact(bandwidth):
    x, y = random_rows(0, 30, 3) * 0.4, random_rows(1, 20, 3) * 0.4 + 0.3
    x[:5] = x[5:10]  # duplicates make the landmarks' kernel singular
    sigmas = bandwidth if isinstance(bandwidth, tuple | list) else (bandwidth,)
    expected = mixture_cs(x, y, sigmas)
    for landmarks in (50, 1000):
        assert nystroem_cs(x, y, bandwidth, landmarks).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_with_all_rows_as_landmarks_the_gradient_is_the_exact_ones(sigma):
    x, y = X[:20].clone().requires_grad_(), Y[:15].clone().requires_grad_()
    grads = [torch.autograd.grad(value, (x, y)) for value in (nystroem_cs(x, y, sigma), cs_divergence(x, y, sigma))]
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)


def test_gradients_against_finite_differences():
    x, y = X[:5, :6].clone().requires_grad_(), Y[:4, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rff_cs(a, b, (0.5, 1.0), 32), (x, y))
    # Nystroem's gradient holds the landmarks fixed, as rows that are not moved: y has more rows than are drawn here.
    landmarks = Y[:6, :6]

    def with_fixed_landmarks(a, b):
        means = (approximation.mean_gaussian(rows, landmarks, (0.3, 0.6)).mean(dim=0) for rows in (a, b))
        return approximation.cs_of_landmarks(*means, landmarks, (0.3, 0.6))

    assert torch.autograd.gradcheck(with_fixed_landmarks, (x, y))


def test_nystroem_is_the_one_of_scikit_learn():
    z = approximation._landmarks(X, Y, 40, seed=5).numpy()
    theirs = Nystroem(gamma=1 / (2 * 0.7**2), n_components=len(z)).fit(z)
    mx, my = (theirs.transform(rows.numpy()).mean(axis=0) for rows in (X, Y))
    expected = math.log(mx @ mx) + math.log(my @ my) - 2 * math.log(mx @ my)
    assert nystroem_cs(X, Y, 0.7, 40, seed=5).item() == pytest.approx(expected, rel=1e-8)


def test_rff_is_a_mean_of_cosines_over_its_frequencies():
    x, y, sigmas = X[:7].numpy(), Y[:5].numpy(), (0.5, 2.0)
    normal = torch.randn(x.shape[1], 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).numpy()

    def mean_kernel(a, b):
        return np.mean([np.cos((s - t) @ normal / sigma) for s in a for t in b for sigma in sigmas])

    expected = math.log(mean_kernel(x, x)) + math.log(mean_kernel(y, y)) - 2 * math.log(mean_kernel(x, y))
    assert rff_cs(x, y, sigmas, 32, seed=9).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_properties(approximate):
    value = approximate(X, Y, 0.8).item()
    assert value > 0
    assert approximate(X, Y, 0.8).item() == value  # one seed, one draw
    assert approximate(X, X.clone(), 0.8).item() == pytest.approx(0, abs=1e-12)
    assert approximate(X + 1e5, Y + 1e5, 0.8).item() == pytest.approx(value, rel=1e-6)
    assert approximate(X[:1], Y[:1], 0.8).item() == pytest.approx(
        cs_divergence(X[:1], Y[:1], 0.8).item(), rel=1e-9 if approximate is few_landmarks else 0.2
    )


def test_nystroem_is_symmetric_and_rotates_with_its_landmarks():
    assert nystroem_cs(Y, X, 0.8, 750).item() == pytest.approx(nystroem_cs(X, Y, 0.8, 750).item(), rel=1e-8)
    rotation = torch.linalg.qr(torch.from_numpy(random_rows(0, 128, 128))).Q
    rotated = nystroem_cs(X @ rotation, Y @ rotation, 0.8, 64).item()
    assert rotated == pytest.approx(nystroem_cs(X, Y, 0.8, 64).item(), rel=1e-8)
    assert rff_cs(Y, X, 0.8).item() == pytest.approx(rff_cs(X, Y, 0.8).item(), rel=1e-12)


def test_landmarks_are_shared_out_between_small_and_large_samples():
    def shares(m, n, count):
        x, y = torch.arange(m).float().unsqueeze(1), -1 - torch.arange(n).float().unsqueeze(1)
        z = approximation._landmarks(x.requires_grad_(), y, count, seed=0)
        assert not z.requires_grad
        assert z.dtype == torch.float64
        assert len(z.unique()) == len(z)
        return int((z >= 0).sum()), int((z < 0).sum())

    assert shares(100, 100, 10) == (5, 5)
    assert shares(100, 100, 11) == (5, 6)
    assert shares(2, 100, 10) == (2, 8)
    assert shares(100, 3, 10) == (7, 3)
    assert shares(4, 3, 10) == (4, 3)
    # So 30 rows next to 350 are as well approximated as 400 are.
    exact = cs_divergence(X[:30], Y, 1.0).item()
    assert nystroem_cs(X[:30], Y, 1.0, 128).item() == pytest.approx(exact, rel=0.013)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_dtypes_and_autocast(approximate):
    assert approximate(X, Y.float(), 0.8).dtype == approximate(X.float(), Y, 0.8).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, y = X.to(dtype).requires_grad_(), Y.to(dtype)
        value = approximate(x, y, 0.8)
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(approximate(x.detach().double(), y.double(), 0.8).item(), rel=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert approximate(x, y, 0.8).item() == value.item()
        value.backward()
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0
    assert approximate(X.numpy(), Y.numpy(), 0.8).item() == approximate(X, Y, 0.8).item()


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_blocks_change_nothing(approximate, monkeypatch):
    whole = approximate(X, Y, 0.8).item()
    sizes = []
    monkeypatch.setattr(approximation, "_BLOCK", 64)
    mean_features = approximation._mean_features
    monkeypatch.setattr(
        approximation,
        "_mean_features",
        lambda x, feature_map: mean_features(x, lambda rows: sizes.append(len(rows)) or feature_map(rows)),
    )
    assert approximate(X, Y, 0.8).item() == pytest.approx(whole, rel=1e-9)
    assert sizes == [64] * 6 + [16] + [64] * 5 + [30]


def test_memory_stays_at_the_rows_and_a_block():
    """Features of all 200,000 rows would be 400 MB; a peak counts only in a process of its own."""
    code = """
import resource, torch
from cs_aligner_cli.objectives.approximation import nystroem_cs
x, y = torch.randn(100_000, 4), torch.randn(100_000, 4) + 1
nystroem_cs(x[:5000], y[:5000], 1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert nystroem_cs(x, y, 1.0) > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80


def test_nystroem_error_is_the_spread_over_draws():
    values = [nystroem_cs(X, Y, 0.8, 32, seed).item() for seed in (7, 8, 9)]
    mean, deviation = nystroem_error(X, Y, 0.8, 32, repeats=3, seed=7)
    assert (type(mean), type(deviation)) == (float, float)
    assert mean == pytest.approx(np.mean(values), rel=1e-9)
    assert deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert nystroem_error(X[:20], Y[:20], 0.8, 100)[1] == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match=r"^repeats: a standard deviation needs at least 2, got 1$"):
        nystroem_error(X, Y, 0.8, 32, repeats=1)


def test_nystroem_errs_downwards_by_more_than_its_spread_and_less_than_its_rise():
    exact = cs_divergence(X, Y, 0.5).item()
    (half, _), (mean, deviation) = (nystroem_error(X, Y, 0.5, landmarks) for landmarks in (64, 128))
    assert exact - mean > 4 * deviation
    assert half < mean < exact < mean + (mean - half)


def test_on_even_rows_with_a_small_gap_features_beat_landmarks():
    x, y = (torch.nn.functional.normalize(torch.from_numpy(random_rows(s, 800, 256)) + (0.1 - 0.2 * s)) for s in (0, 1))
    exact = cs_divergence(x, y, 1.0).item()
    assert nystroem_cs(x, y, 1.0).item() < 0.8 * exact
    assert rff_cs(x, y, 1.0).item() == pytest.approx(exact, rel=0.1)


def test_sums_lost_in_noise_are_refused():
    apart = torch.zeros(4, 8, dtype=torch.float64), torch.full((4, 8), 9.0, dtype=torch.float64)
    for x, y, sigma in ((*apart, 0.5), (X, -X, 0.05)):
        with pytest.raises(InputError, match=r"^nystroem with sigma .* cross sum <mu_x, mu_y> is .*, its noise\nTake"):
            nystroem_cs(x, y, sigma, 64)
    # Features keep no distance apart; a cross sum of chance, positive or negative, is refused alike.
    refused = 0
    for seed in range(20):
        try:
            rff_cs(*apart, 0.5, 64, seed)
        except InputError as error:
            assert "rff with sigma 0.5 and 64 features: the cross sum" in str(error)
            refused += 1
    assert refused >= 17
    for bad in (math.nan, math.inf):
        broken = X.clone()
        broken[3, 1] = bad
        for approximate in APPROXIMATIONS:
            with pytest.raises(InputError, match=r"^x: the rows hold NaN or infinity$"):
                approximate(broken, Y, 0.8)


def test_error_texts():
    for approximate in (nystroem_cs, rff_cs):
        for bad in (0, -1.0, math.nan, math.inf, (1.0, 0.0)):
            with pytest.raises(InputError, match=r"^bandwidth: expected a finite number above 0 or \"median\", got"):
                approximate(X, Y, bad)
        with pytest.raises(InputError, match=r"^bandwidth: a mixture needs at least one sigma, got none$"):
            approximate(X, Y, ())
        with pytest.raises(InputError, match="differ in dimension: 128 against 2"):
            approximate(X, Y[:, :2], 1.0)
    with pytest.raises(InputError, match=r"^landmarks: expected at least 2, got 1$"):
        nystroem_cs(X, Y, 1.0, 1)
    for bad in (0, 2, 7):
        with pytest.raises(InputError, match=r"^features: expected an even number of at least 4, got"):
            rff_cs(X, Y, 1.0, bad)
    with pytest.raises(InputError, match=r"^rff: expected a sigma of at least 0.5, got 0.4\n.*; use nystroem\.$"):
        rff_cs(X, Y, (0.4, 2.0))
