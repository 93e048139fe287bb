"""Objectives against plain double loops, closed forms, second implementations and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from samples import Matrix, random_rows, tensor_rows

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import auto_bandwidth, cs_divergence, infonce, median_bandwidth


def loop_log_mean(x: Matrix, y: Matrix, sigma: float, diagonal: bool) -> float:
    """Log of the mean kernel by a double loop; fsum after the largest exponent is taken out."""
    exponents = [
        -math.fsum((float(a) - float(b)) ** 2 for a, b in zip(xi, yj, strict=True)) / (2 * sigma**2)
        for i, xi in enumerate(x)
        for j, yj in enumerate(y)
        if diagonal or i != j
    ]
    top = max(exponents)
    return top + math.log(math.fsum(math.exp(e - top) for e in exponents) / len(exponents))


def loop_cs(x: Matrix, y: Matrix, sigma: float, estimator: str) -> float:
    diagonal = estimator == "v"
    within = loop_log_mean(x, x, sigma, diagonal) + loop_log_mean(y, y, sigma, diagonal)
    return within - 2 * loop_log_mean(x, y, sigma, True)


@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("m", "n", "unit"), [(9, 9, True), (2, 13, True), (11, 4, False)])
def test_cs_equals_a_double_loop(estimator, dtype, sigma, m, n, unit):
    x, y = (random_rows(seed, rows, 6, unit).astype(dtype) for seed, rows in ((0, m), (1, n)))
    expected = loop_cs(x, y, sigma, estimator)
    for given_x, given_y in ((x, y), (torch.from_numpy(x), torch.from_numpy(y))):
        value = cs_divergence(given_x, given_y, sigma, estimator)
        assert value.shape == ()
        assert value.dtype == (torch.float32 if dtype is np.float32 else torch.float64)
        assert value.item() == pytest.approx(expected, rel=1e-5 if dtype is np.float32 else 1e-12)


def test_cs_of_rows_far_from_the_origin_and_close_together():
    x, y = 1000 + 0.01 * random_rows(0, 8, 5), 1000 + 0.01 * random_rows(1, 6, 5)
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = loop_cs(x.astype(np.float64), y.astype(np.float64), 0.01, "v")
    assert cs_divergence(x, y, 0.01).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ["v", "u"])
def test_gaussian_samples_reach_the_closed_form(estimator):
    v, sigma, n = 0.3, 0.8, 3000
    shift = np.array([0.6, -0.2, 0.4])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) * math.sqrt(v)
    y = shift + rng.normal(size=(n, 3)) * math.sqrt(v)
    expected = float(shift @ shift) / (sigma**2 + 2 * v)
    assert cs_divergence(x, y, sigma, estimator).item() == pytest.approx(expected, rel=0.08)


@given(st.floats(-1, 1), st.floats(0.1, 5))
def test_one_pair_at_a_cosine(cosine, sigma):
    x, y = np.array([[1.0, 0.0]]), np.array([[cosine, math.sqrt(1 - cosine**2)]])
    expected = 2 * (1 - cosine) / sigma**2
    assert cs_divergence(x, y, sigma).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("estimator", ["v", "u"])
def test_large_bandwidth_leaves_the_centroid_gap(estimator):
    x, y = random_rows(0, 40, 8) + 0.5, random_rows(1, 30, 8)
    sigma = 300.0
    gap = np.linalg.norm(x.mean(0) - y.mean(0))
    spread = 0.0
    if estimator == "u":  # leaving the diagonal out multiplies each mean self distance by n / (n - 1)
        spread = sum(z.var(axis=0).sum() / (len(z) - 1) for z in (x, y))
    assert cs_divergence(x, y, sigma, estimator).item() * sigma**2 == pytest.approx(gap**2 - spread, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 10))
def test_cs_is_a_symmetric_nonnegative_invariant_divergence(seed, m, n, sigma):
    x, y = random_rows(seed, m, 5), random_rows(seed + 1, n, 5) * 1.5
    value = cs_divergence(x, y, sigma).item()
    close = pytest.approx(value, rel=1e-9, abs=1e-12)
    assert value >= -1e-12
    assert cs_divergence(x, x.copy(), sigma).item() == pytest.approx(0, abs=1e-12)
    assert cs_divergence(y, x, sigma).item() == close
    rng = np.random.default_rng(seed)
    assert cs_divergence(rng.permutation(x), rng.permutation(y), sigma).item() == close
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert cs_divergence(x @ rotation + 3, y @ rotation + 3, sigma).item() == close


@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_cs_gradient(estimator, sigma):
    x, y = tensor_rows(0, 5, 4).requires_grad_(), tensor_rows(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cs_divergence(a, b, sigma, estimator), (x, y))
    same = tensor_rows(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: cs_divergence(a, 2 * a.flip(0), sigma, estimator), (same,))


@pytest.mark.parametrize("estimator", ["v", "u"])
def test_tiny_bandwidth_on_far_rows_stays_finite(estimator):
    x = torch.nn.functional.normalize(tensor_rows(0, 16, 64).float() + 1, dim=1).requires_grad_()
    y = (-x.detach().roll(1, 0)).requires_grad_()
    assert torch.exp(-torch.cdist(x, y).square() / (2 * 0.05**2)).sum() == 0  # every kernel value underflows
    value = cs_divergence(x, y, 0.05, estimator)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()
    assert y.grad.isfinite().all()
    assert y.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    x, y = tensor_rows(0, 12, 16).to(dtype).requires_grad_(), tensor_rows(1, 12, 16).to(dtype)
    value, pairwise = cs_divergence(x, y, 0.5), infonce(x, y, 20.0)
    assert value.dtype == pairwise.dtype == torch.float32
    assert value.item() == pytest.approx(cs_divergence(x.detach().float(), y.float(), 0.5).item(), rel=1e-7)
    (value + pairwise).backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("scale", [20.0, torch.tensor(20.0)])
def test_autocast_changes_nothing(scale):
    x, y = tensor_rows(0, 12, 16).float(), tensor_rows(1, 12, 16).float()
    plain = cs_divergence(x, y, 0.2), infonce(x, y, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ y.T).dtype == torch.bfloat16
        cast = cs_divergence(x, y, 0.2), infonce(x, y, scale)
    assert [value.dtype for value in cast] == [torch.float32, torch.float32]
    assert [value.item() for value in cast] == [value.item() for value in plain]


def test_not_the_public_bug_of_logsumexp_over_kernel_values():
    """In code others published, logsumexp runs over K itself, which gives a fraction of the divergence."""
    x, y = tensor_rows(0, 30, 16) + 0.4, tensor_rows(1, 30, 16) - 0.4

    def log_mean_of_exp_kernel(a, b):
        kernel = torch.exp(-torch.cdist(a, b).square() / (2 * 0.5**2))
        return kernel.logsumexp((0, 1)) - math.log(kernel.numel())

    buggy = log_mean_of_exp_kernel(x, x) + log_mean_of_exp_kernel(y, y) - 2 * log_mean_of_exp_kernel(x, y)
    value = cs_divergence(x, y, 0.5).item()
    assert value == pytest.approx(loop_cs(x.numpy(), y.numpy(), 0.5, "v"), rel=1e-9)
    assert value > 5 * abs(buggy.item())


def test_median_bandwidth_is_the_median_distance_of_distinct_pairs():
    x, y = random_rows(0, 7, 5, unit=False), 3 * random_rows(1, 4, 5, unit=False)
    pooled = np.concatenate([x, y])
    distances = [np.linalg.norm(a - b) for i, a in enumerate(pooled) for b in pooled[:i]]
    assert median_bandwidth(x, y) == pytest.approx(np.median(distances), rel=1e-12)
    six = [np.linalg.norm(a - b) for i, a in enumerate(pooled[5:9]) for b in pooled[5 : 5 + i]]
    assert len(six) == 6  # an even number of pairs: the mean of the two middle ones
    assert median_bandwidth(x[5:], y[:2]) == pytest.approx(np.median(six), rel=1e-12)
    assert median_bandwidth(10 * x, 10 * y) == pytest.approx(10 * median_bandwidth(x, y))
    assert cs_divergence(x, y, "median").item() == cs_divergence(x, y, median_bandwidth(x, y)).item()


def test_median_bandwidth_takes_no_part_in_the_graph():
    x = tensor_rows(0, 6, 4).requires_grad_()
    y = tensor_rows(1, 5, 4)
    sigma = median_bandwidth(x, y)
    assert type(sigma) is float
    (by_median,) = torch.autograd.grad(cs_divergence(x, y, "median"), x)
    (by_number,) = torch.autograd.grad(cs_divergence(x, y, sigma), x)
    assert torch.equal(by_median, by_number)


def test_median_bandwidth_samples_evenly_and_without_chance():
    x, y = random_rows(0, 3000, 8), random_rows(1, 1000, 8) * 4
    sampled = median_bandwidth(x, y)
    assert sampled == median_bandwidth(x, y)
    assert sampled == median_bandwidth(torch.from_numpy(x), torch.from_numpy(y))
    assert sampled == pytest.approx(median_bandwidth(x, y, sample=2000), rel=0.05)


def test_median_bandwidth_of_collapsed_rows_is_an_error():
    same = np.repeat(random_rows(0, 1, 7).astype(np.float32), 9, axis=0)
    with pytest.raises(InputError, match='bandwidth "median" is 0: at least half of the pairs'):
        cs_divergence(same, same, "median")
    with pytest.raises(InputError, match="hold NaN or infinity"):
        median_bandwidth(np.array([[0.0, np.nan]]), same[:, :2])
    with pytest.raises(InputError, match="sample: expected at least 2 rows, got 1"):
        median_bandwidth(same, same, sample=1)


def test_cs_error_texts():
    x, y = random_rows(0, 4, 3), random_rows(1, 5, 3)
    for bad in (0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r'^bandwidth: expected a finite number above 0 or "median", got'):
            cs_divergence(x, y, bad)
    with pytest.raises(InputError, match="expected a number above 0 or \"median\", got 'mean'"):
        cs_divergence(x, y, "mean")
    with pytest.raises(InputError, match="estimator: unknown name 'w'; expected one of: u, v"):
        cs_divergence(x, y, 1.0, "w")
    with pytest.raises(InputError, match='estimator "u" needs at least 2 rows in x and in y, got 1 and 5'):
        cs_divergence(x[:1], y, 1.0, "u")
    with pytest.raises(InputError, match="differ in dimension: 3 against 2"):
        cs_divergence(x, y[:, :2], 1.0)
    with pytest.raises(InputError, match=r"x: expected a non-empty .* got shape \(0, 3\)"):
        cs_divergence(x[:0], y, 1.0)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_infonce_is_open_clips_loss(scale):
    image = tensor_rows(0, 10, 8).float().requires_grad_()
    text = tensor_rows(1, 10, 8).float().requires_grad_()
    logit_scale = torch.tensor(scale, requires_grad=True)
    leaves = (image, text, logit_scale)
    ours, theirs = infonce(image, text, logit_scale), ClipLoss()(image, text, logit_scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    for grad, expected in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)
    assert infonce(image.detach().numpy(), text.detach().numpy(), scale).item() == ours.item()


def loop_infonce(image: Matrix, text: Matrix, scale: float, groups: list[int]) -> float:
    n = len(image)
    losses = []
    for a, b in ((image, text), (text, image)):
        for i in range(n):
            logits = {j: scale * float(a[i] @ b[j]) for j in range(n) if j == i or groups[j] != groups[i]}
            losses.append(math.log(math.fsum(math.exp(value) for value in logits.values())) - logits[i])
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [7, 7, 3, 3, 3, -2], [4] * 6])
def test_rows_of_one_group_are_no_negatives(groups):
    image, text = random_rows(0, 6, 5), random_rows(1, 6, 5)
    expected = loop_infonce(image, text, 10.0, groups)
    for form in (np.array(groups), np.array(groups, dtype=np.int32), torch.tensor(groups)):
        assert infonce(image, text, 10.0, form).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 0, 1, 2]), torch.tensor([5, 5, 5, 5])])
def test_infonce_gradient(groups):
    inputs = (tensor_rows(0, 4, 3), tensor_rows(1, 4, 3), torch.tensor(5.0, dtype=torch.float64))
    inputs = tuple(leaf.requires_grad_() for leaf in inputs)
    assert torch.autograd.gradcheck(lambda i, t, s: infonce(i, t, s, groups), inputs)


def test_infonce_error_texts():
    image, text = random_rows(0, 4, 3), random_rows(1, 4, 3)
    with pytest.raises(InputError, match="image and text rows are not pairs: 4 against 3"):
        infonce(image, text[:3], 1.0)
    with pytest.raises(InputError, match="differ in dimension: 3 against 2"):
        infonce(image, text[:, :2], 1.0)
    for bad in (np.arange(3), np.zeros(4), np.zeros((4, 1), dtype=int), np.zeros(4, dtype=bool)):
        with pytest.raises(InputError, match=r"groups: expected 4 integers or strings, got (shape|float64|bool)"):
            infonce(image, text, 1.0, bad)


def test_auto_bandwidth_is_the_smallest_sigma_with_the_share_of_effective_pairs():
    x, y = random_rows(0, 60, 16), random_rows(1, 50, 16) + 0.3
    squares = ((x[:, None] - y) ** 2).sum(-1)

    def share(sigma):
        k = np.exp(-squares / (2 * sigma**2))
        return k.sum() ** 2 / (k**2).sum() / k.size

    for wanted in (0.1, 0.5, 0.9, 0.99):
        sigma = auto_bandwidth(x, y, wanted)
        assert share(sigma) == pytest.approx(wanted, abs=0.003)
        assert share(sigma) >= wanted > share(0.99 * sigma)
    assert auto_bandwidth(10 * x, 10 * y) == pytest.approx(10 * auto_bandwidth(x, y), rel=2e-3)
    large = auto_bandwidth(random_rows(0, 3000, 16), random_rows(1, 2000, 16) + 0.3)
    assert large == pytest.approx(auto_bandwidth(x, y), rel=0.1)


def test_auto_bandwidth_error_texts():
    x = random_rows(0, 5, 3)
    with pytest.raises(InputError, match="effective_share: expected a share between 0 and 1, got 1"):
        auto_bandwidth(x, x, 1.0)
    collapsed = np.tile(random_rows(0, 1, 3), (3, 1)), np.tile(random_rows(1, 1, 3), (3, 1))  # equal but for rounding
    for bad in ((np.ones((4, 3)),) * 2, (np.full((4, 3), np.nan),) * 2, collapsed):
        with pytest.raises(InputError, match='bandwidth "auto": the distances between the clouds are all equal or not'):
            auto_bandwidth(*bad)
    with pytest.raises(InputError, match='bandwidth "auto": one row of each cloud, expected more of either'):
        auto_bandwidth(x[:1], x[1:2])
