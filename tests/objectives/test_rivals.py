"""Divergences of moments and of transport against closed forms, POT, geomloss, torch and finite differences."""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import ot
import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch.distributions import MultivariateNormal, kl_divergence

from cs_aligner_cli.common.errors import InputError, NotConvergedError
from cs_aligner_cli.objectives import row_blocks, sinkhorn, sliced_wasserstein
from cs_aligner_cli.objectives.moments import coral, frechet, gaussian_kl, jeffreys

Matrix = npt.NDArray[np.float64]


def one_draw(x, y, **options):
    """sliced_wasserstein with the same directions at every call."""
    return sliced_wasserstein(x, y, 16, generator=torch.Generator().manual_seed(0), **options)


def wide_sinkhorn(x, y):
    return sinkhorn(x, y, blur=1.0, tolerance=1e-12)


MOMENTS = [gaussian_kl, jeffreys, frechet, coral]
ALL = [*MOMENTS, one_draw, wide_sinkhorn]
SYMMETRIC = [jeffreys, frechet, coral, one_draw, wide_sinkhorn]


def random_rows(seed: int, rows: int, width: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, width))


def tensor_rows(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.from_numpy(random_rows(seed, rows, width))


def random_covariance(seed: int, width: int) -> Matrix:
    factor = random_rows(seed, width, width)
    return factor @ factor.T / width + 0.2 * np.eye(width)


def rows_with_moments(seed: int, rows: int, mean: Matrix, covariance: Matrix) -> Matrix:
    """A sample whose own mean and unbiased covariance are exactly these."""
    z = random_rows(seed, rows, len(mean))
    z = z - z.mean(axis=0)
    whitening = np.linalg.inv(np.linalg.cholesky(z.T @ z / (rows - 1)))
    return mean + z @ whitening.T @ np.linalg.cholesky(covariance).T


def shrunk(covariance: Matrix, shrinkage: float) -> Matrix:
    width = len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)


def two_gaussians(width: int = 5) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    mean_x, mean_y = random_rows(0, 2, width)
    return mean_x, random_covariance(1, width), mean_y, random_covariance(2, width)


@pytest.mark.parametrize("shrinkage", [1e-6, 0.1, 1.0])
def test_gaussian_kl_and_jeffreys_are_those_of_torch_distributions(shrinkage):
    mean_x, cov_x, mean_y, cov_y = two_gaussians()
    x, y = rows_with_moments(3, 40, mean_x, cov_x), rows_with_moments(4, 17, mean_y, cov_y)
    p, q = (
        MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(shrunk(cov, shrinkage)))
        for mean, cov in ((mean_x, cov_x), (mean_y, cov_y))
    )
    forth, back = kl_divergence(p, q).item(), kl_divergence(q, p).item()
    assert abs(forth - back) > 0.01  # so that a swapped direction shows
    assert gaussian_kl(x, y, shrinkage).item() == pytest.approx(forth, rel=1e-9)
    assert gaussian_kl(y, x, shrinkage).item() == pytest.approx(back, rel=1e-9)
    assert jeffreys(x, y, shrinkage).item() == pytest.approx(forth + back, rel=1e-9)


@pytest.mark.parametrize("shrinkage", [1e-6, 0.1, 1.0])
def test_frechet_is_pots_bures_wasserstein(shrinkage):
    mean_x, cov_x, mean_y, cov_y = two_gaussians()
    x, y = rows_with_moments(3, 40, mean_x, cov_x), rows_with_moments(4, 17, mean_y, cov_y)
    theirs = ot.gaussian.bures_wasserstein_distance(mean_x, mean_y, shrunk(cov_x, shrinkage), shrunk(cov_y, shrinkage))
    assert frechet(x, y, shrinkage).item() == pytest.approx(theirs**2, rel=1e-9)


def test_moments_of_one_dimension_in_closed_form():
    x = rows_with_moments(0, 9, np.array([1.0]), np.array([[4.0]]))
    y = rows_with_moments(1, 6, np.array([-2.0]), np.array([[9.0]]))
    assert gaussian_kl(x, y).item() == pytest.approx(math.log(3 / 2) + (4 + 9) / (2 * 9) - 0.5)
    assert frechet(x, y).item() == pytest.approx(3**2 + (3 - 2) ** 2)
    assert coral(x, y).item() == pytest.approx((9 - 4) ** 2 / 4)


def test_coral_is_deep_corals_loss_by_loops():
    x, y = random_rows(0, 7, 3), 2 * random_rows(1, 5, 3)

    def covariance(z, j, k):
        means = [math.fsum(z[:, c]) / len(z) for c in (j, k)]
        return math.fsum((row[j] - means[0]) * (row[k] - means[1]) for row in z) / (len(z) - 1)

    squares = [(covariance(x, j, k) - covariance(y, j, k)) ** 2 for j in range(3) for k in range(3)]
    assert coral(x, y).item() == pytest.approx(math.fsum(squares) / (4 * 9), rel=1e-12)
    assert coral(x, x + 5).item() == pytest.approx(0, abs=1e-12)  # blind to a shift


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 12), st.floats(0.01, 100))
def test_properties_of_a_divergence(seed, m, n, scale):
    """Width 6, so that samples smaller than the dimension, with singular covariances, are among them."""
    x, y = scale * random_rows(seed, m, 6), scale * (1.5 * random_rows(seed + 1, n, 6) + 0.3)
    unit = {gaussian_kl: 1, jeffreys: 1, coral: scale**4}
    rng = np.random.default_rng(seed)
    rotation, shift = np.linalg.qr(rng.normal(size=(6, 6)))[0], scale * rng.normal(size=6)
    for divergence in MOMENTS:
        tiny = 1e-9 * unit.get(divergence, scale**2)
        value = divergence(x, y).item()
        assert value >= -tiny
        assert divergence(x, x.copy()).item() == pytest.approx(0, abs=tiny)
        close = pytest.approx(value, rel=1e-6, abs=tiny)
        assert divergence(x @ rotation + shift, y @ rotation + shift).item() == close
        assert divergence(rng.permutation(x), rng.permutation(y)).item() == close
    for divergence in (gaussian_kl, jeffreys):
        assert divergence(x / scale, y / scale).item() == pytest.approx(divergence(x, y).item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("divergence", SYMMETRIC)
def test_symmetry(divergence):
    x, y = random_rows(0, 9, 4), random_rows(1, 5, 4) + 0.5
    assert divergence(x, y).item() == pytest.approx(divergence(y, x).item(), rel=1e-9)


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize(("m", "n"), [(6, 4), (3, 3)])
def test_gradients_against_finite_differences(divergence, m, n):
    x, y = tensor_rows(0, m, 4).requires_grad_(), (tensor_rows(1, n, 4) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (x, y))


@pytest.mark.parametrize("divergence", ALL)
def test_gradient_where_the_samples_are_equal_or_hold_duplicates(divergence):
    x = tensor_rows(0, 6, 4)
    for pair in ((x, x.clone()), (x[[0, 0, 1, 1, 2]], x[[3, 3, 3, 0]])):
        leaves = [rows.clone().requires_grad_() for rows in pair]
        value = divergence(*leaves)
        assert value.isfinite()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("divergence", ALL)
def test_dtypes_and_autocast(divergence):
    x, y = tensor_rows(0, 12, 8), tensor_rows(1, 9, 8) + 0.3
    assert divergence(x, y.float()).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rounded_x, rounded_y = x.to(dtype).requires_grad_(), y.to(dtype)
        value = divergence(rounded_x, rounded_y)
        assert value.shape == ()
        assert value.dtype == torch.float32
        exact = divergence(rounded_x.detach().double(), rounded_y.double())
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert divergence(rounded_x, rounded_y).item() == value.item()
        value.backward()
        assert rounded_x.grad.dtype == dtype
        assert rounded_x.grad.isfinite().all()
    assert divergence(x.numpy(), y.numpy()).item() == divergence(x, y).item()


@pytest.mark.parametrize("divergence", ALL)
def test_far_clouds_are_finite_and_rows_that_are_not_give_nan(divergence):
    x, y = tensor_rows(0, 8, 4).float().requires_grad_(), tensor_rows(1, 8, 4).float() * 1e-3 + 1e4
    value = divergence(x, y)
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert grad.isfinite().all()
    for bad in (math.nan, math.inf):
        y = y.clone()
        y[3, 1] = bad
        value = divergence(x, y)
        value.backward()  # the training loop names the term that is not finite: there has to be a graph
        assert value.isnan() or (value.isinf() and divergence is one_draw)


@pytest.mark.parametrize("divergence", [gaussian_kl, jeffreys, frechet])
def test_a_covariance_that_overflows_gives_nan(divergence):
    assert divergence(random_rows(0, 6, 3) * 1e200, random_rows(1, 5, 3)).isnan()


@pytest.mark.parametrize("divergence", [gaussian_kl, jeffreys, frechet])
def test_error_texts_of_fitted_gaussians(divergence):
    x, y = random_rows(0, 6, 3), random_rows(1, 5, 3)
    for bad in (0, -0.1, 1.5, math.nan):
        with pytest.raises(InputError, match=r"^shrinkage: expected a number above 0 and up to 1, got"):
            divergence(x, y, bad)
    with pytest.raises(InputError, match=r"^y: all 4 rows coincide, so no Gaussian can be fitted \(collapsed"):
        divergence(x, np.repeat(y[:1], 4, axis=0))
    with pytest.raises(InputError, match=r"^x: the covariance is singular with shrinkage 1e-30\nSet a larger"):
        divergence(x[:2], y, 1e-30)


@pytest.mark.parametrize("divergence", ALL)
def test_error_texts_of_rows(divergence):
    x, y = random_rows(0, 6, 3), random_rows(1, 5, 3)
    with pytest.raises(InputError, match="differ in dimension: 3 against 2"):
        divergence(x, y[:, :2])
    with pytest.raises(InputError, match=r"y: expected a non-empty .* got shape \(0, 3\)"):
        divergence(x, y[:0])
    if divergence in MOMENTS:
        with pytest.raises(InputError, match=r"^y: a covariance needs at least 2 rows, got 1$"):
            divergence(x, y[:1])


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("m", "n"), [(8, 8), (5, 12), (7, 3), (1, 4)])
def test_sliced_wasserstein_is_pots(p, m, n):
    x, y = random_rows(0, m, 6), random_rows(1, n, 6) + 0.4
    directions = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).T
    directions = directions / directions.norm(dim=0)
    theirs = ot.sliced_wasserstein_distance(x, y, projections=directions.numpy(), p=p)
    ours = sliced_wasserstein(x, y, 20, p, torch.Generator().manual_seed(3)).item()
    assert ours == pytest.approx(theirs**p, rel=1e-9)


def test_sliced_wasserstein_in_closed_form():
    x, y = random_rows(0, 11, 1), random_rows(1, 7, 1) * 3
    assert one_draw(x, y, p=1).item() == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)
    # The quantile functions of M and N rows are those of rows repeated to a common number.
    x, y = random_rows(0, 6, 4), random_rows(1, 4, 4)
    repeated = np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0)
    assert one_draw(x, y).item() == pytest.approx(one_draw(*repeated).item(), rel=1e-12)
    # A shift moves every projection by u.m, and E (u.m)^2 = ||m||^2 / d.
    shift = np.array([1.0, -2.0, 0.5, 3.0])
    generator = torch.Generator().manual_seed(0)
    moved = sliced_wasserstein(x, x + shift, 20_000, generator=generator).item()
    assert moved == pytest.approx(shift @ shift / 4, rel=0.03)
    assert one_draw(x, x[::-1].copy()).item() == pytest.approx(0, abs=1e-24)


def test_sliced_wasserstein_draws_new_directions_at_every_call():
    x, y = random_rows(0, 9, 5), random_rows(1, 9, 5)
    torch.manual_seed(0)
    first, second = sliced_wasserstein(x, y).item(), sliced_wasserstein(x, y).item()
    assert first != second
    torch.manual_seed(0)
    assert sliced_wasserstein(x, y).item() == first
    one_draw(x, y)  # a generator of one's own leaves the global one alone
    assert sliced_wasserstein(x, y).item() == second


def test_sliced_wasserstein_rotates_in_the_mean():
    x, y = random_rows(0, 30, 4), random_rows(1, 20, 4) * np.array([2.0, 1, 1, 0.5]) + np.array([1.0, 0, 0, 0])
    rotation = np.linalg.qr(random_rows(2, 4, 4))[0]
    generator = torch.Generator().manual_seed(0)
    plain = sliced_wasserstein(x, y, 10_000, generator=generator).item()
    rotated = sliced_wasserstein(x @ rotation + 1, y @ rotation + 1, 10_000, generator=generator).item()
    assert rotated == pytest.approx(plain, rel=0.05)


def test_transport_error_texts():
    x, y = random_rows(0, 6, 3), random_rows(1, 5, 3)
    for divergence in (sliced_wasserstein, sinkhorn):
        with pytest.raises(InputError, match=r"^p: expected 1 or 2, got 3$"):
            divergence(x, y, p=3)
    with pytest.raises(InputError, match=r"^projections: expected at least 1, got 0$"):
        sliced_wasserstein(x, y, 0)
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"^blur: expected a finite number above 0, got"):
            sinkhorn(x, y, bad)
    for bad in (0, 1, math.nan):
        with pytest.raises(InputError, match=r"^scaling: expected a number between 0 and 1, got"):
            sinkhorn(x, y, scaling=bad)
    with pytest.raises(InputError, match=r"^tolerance: expected a finite number above 0, got 0$"):
        sinkhorn(x, y, tolerance=0)


def dense_sinkhorn(x: torch.Tensor, y: torch.Tensor, blur: float, p: int, iterations: int) -> torch.Tensor:
    """The debiased divergence by plain iterations over M x N matrices, as a function that autograd sees."""

    def transport(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squares = (a[:, None] - b[None]).square().sum(dim=2)
        cost = squares / 2 if p == 2 else torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        epsilon, f, g = blur**p, torch.zeros(len(a)).double(), torch.zeros(len(b)).double()
        for _ in range(iterations):
            f = -epsilon * (((g[None] - cost) / epsilon).logsumexp(dim=1) - math.log(len(b)))
            g = -epsilon * (((f[:, None] - cost) / epsilon).logsumexp(dim=0) - math.log(len(a)))
        return f.mean() + g.mean()

    return transport(x, y) - transport(x, x) / 2 - transport(y, y) / 2


@pytest.mark.parametrize(("p", "blocks"), [(1, False), (2, True)])
def test_sinkhorn_and_its_gradient_are_those_of_autograd_through_the_dense_iterations(monkeypatch, p, blocks):
    if blocks:  # of two rows, of which the kernel and the costs keep three
        monkeypatch.setattr(row_blocks, "_BLOCK_ENTRIES", 12)
        monkeypatch.setattr(row_blocks, "_KEPT_BYTES", 3 * 12 * 8)
    x, y = tensor_rows(0, 9, 4).requires_grad_(), (tensor_rows(1, 6, 4) + 0.5).requires_grad_()
    expected = dense_sinkhorn(x, y, 0.6, p, 400)
    found = sinkhorn(x, y, 0.6, p, tolerance=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for grad, dense in zip(torch.autograd.grad(3 * found, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        torch.testing.assert_close(grad, 3 * dense, rtol=1e-7, atol=1e-9)
    loose = sinkhorn(x, y, 0.6, p, tolerance=0.01)
    assert loose.item() == pytest.approx(expected.item(), rel=1e-3)


def test_sinkhorn_is_near_geomlosses_where_that_has_converged():
    x, y = tensor_rows(0, 20, 16), tensor_rows(1, 15, 16) + 0.2
    theirs = SamplesLoss("sinkhorn", p=2, blur=0.5, scaling=0.99, backend="tensorized")(x, y)
    assert sinkhorn(x, y, 0.5).item() == pytest.approx(theirs.item(), rel=1e-3)


def test_sinkhorn_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(sys.modules["cs_aligner_cli.objectives.sinkhorn"], "_ROUNDS", 1)
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotConvergedError, match="after 1 rounds"):
        sinkhorn(x + 1, x.flip(0) * 2 - 1, blur=0.003, tolerance=1e-12)


def test_sinkhorn_goes_on_until_it_has_converged():
    """On a sphere of three dimensions one annealing at 0.5, geomloss's default, ends a fifth too low."""
    x, y = tensor_rows(0, 40, 3), tensor_rows(1, 40, 3) + 0.5
    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (x, y))
    expected = dense_sinkhorn(x, y, 0.1, 2, 400).item()
    once = SamplesLoss("sinkhorn", p=2, blur=0.1, scaling=0.5, backend="tensorized")(x, y)
    assert once.item() < 0.9 * expected
    assert sinkhorn(x, y, 0.1).item() == pytest.approx(expected, rel=1e-3)
    assert sinkhorn(x, y, 0.1, scaling=1e-6).item() == pytest.approx(expected, rel=1e-3)  # without any annealing
    with pytest.raises(InputError, match="sinkhorn: the plan's marginals are still off by"):
        sinkhorn(x[:2], y[:3], 0.1, tolerance=1e-30)


def test_sinkhorn_between_wasserstein_and_the_centroid_gap():
    x, y = random_rows(0, 12, 3), random_rows(1, 12, 3) + 1
    costs = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    exact = costs[linear_sum_assignment(costs)].mean()
    assert sinkhorn(x, y, 0.01).item() == pytest.approx(exact / 2, rel=1e-2)
    gap = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    assert sinkhorn(x, y, 100.0).item() == pytest.approx(gap / 2, rel=1e-2)
    assert sinkhorn(x, x.copy()).item() == pytest.approx(0, abs=1e-9)
    one = sinkhorn(np.zeros((1, 2)), np.array([[3.0, 4.0]]))
    assert one.item() == pytest.approx(25 / 2)


def test_sinkhorn_is_invariant_under_a_far_shift_and_a_rotation():
    x, y = random_rows(0, 10, 4), random_rows(1, 7, 4) + 0.5
    value = sinkhorn(x, y, 0.2).item()
    assert sinkhorn(x + 1e6, y + 1e6, 0.2).item() == pytest.approx(value, rel=1e-6)
    rotation = np.linalg.qr(random_rows(2, 4, 4))[0]
    assert sinkhorn(x @ rotation, y @ rotation, 0.2).item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("p", [1, 2])
def test_sinkhorn_of_rows_that_all_coincide_is_0(p):
    x = torch.full((4, 3), 0.5, requires_grad=True)
    value = sinkhorn(x, torch.full((5, 3), 0.5), p=p)
    assert value.item() == pytest.approx(0, abs=1e-9)
    value.backward()
    assert x.grad.isfinite().all()


def test_sinkhorn_leaves_the_callers_gradient_mode_alone():
    x, y = tensor_rows(0, 5, 3).requires_grad_(), tensor_rows(1, 5, 3)
    with torch.no_grad():
        assert not sinkhorn(x, y).requires_grad
        assert not torch.is_grad_enabled()
    assert sinkhorn(x, y).requires_grad
