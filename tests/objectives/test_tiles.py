"""Sums over tiles against whole matrices and autograd: uneven tiles, every kernel, memory, extremes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import tensor_rows
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import (
    cs_divergence,
    energy_distance,
    generalized_cs_divergence,
    hoelder_divergence,
    infonce,
    mmd,
    nystroem_cs,
    sinkhorn,
    tiles,
)

Loss = Callable[[Tensor, Tensor], Tensor]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances of all pairs, with gradient 0 where they are 0."""
    squares = (x.unsqueeze(1) - y).square().sum(-1)
    return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)


def mean_kernel(kernel: Tensor, diagonal: bool) -> Tensor:
    if diagonal:
        return kernel.mean()
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))


def whole(kernel: Callable[[Tensor, Tensor], Tensor], diagonal: bool, log: bool) -> Loss:
    """A divergence of kernel sums from its three whole matrices."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        means = [mean_kernel(kernel(x, x), diagonal), mean_kernel(kernel(y, y), diagonal), kernel(x, y).mean()]
        xx, yy, xy = [mean.log() for mean in means] if log else means
        return xx + yy - 2 * xy

    return loss


def gaussians(*sigmas: float) -> Callable[[Tensor, Tensor], Tensor]:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.exp(-distances(x, y).square() / (2 * s**2)) for s in sigmas]).mean(0)

    return kernel


CASES: dict[str, tuple[Loss, Loss]] = {
    "cs": (lambda x, y: cs_divergence(x, y, 0.7), whole(gaussians(0.7), True, True)),
    "cs u": (lambda x, y: cs_divergence(x, y, 0.7, "u"), whole(gaussians(0.7), False, True)),
    "cs mixture": (lambda x, y: cs_divergence(x, y, [0.4, 1.1]), whole(gaussians(0.4, 1.1), True, True)),
    "mmd": (lambda x, y: mmd(x, y, 0.7), whole(gaussians(0.7), True, False)),
    "mmd u mixture": (lambda x, y: mmd(x, y, [0.4, 1.1], "u"), whole(gaussians(0.4, 1.1), False, False)),
    "energy": (energy_distance, whole(lambda x, y: -distances(x, y), True, False)),
    "energy u": (lambda x, y: energy_distance(x, y, "u"), whole(lambda x, y: -distances(x, y), False, False)),
}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that do not divide the rows of these tests, of which only some fit the budget."""
    monkeypatch.setattr(tiles, "_TILE", {"cpu": (4, 7)})
    monkeypatch.setattr(tiles, "_KEPT_BYTES", 3 * 4 * 7 * 8)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("m", "n"), [(13, 18), (4, 7), (8, 2), (9, 9)])
def test_tiles_equal_whole_matrices_in_value_and_gradient(name: str, m: int, n: int) -> None:
    tiled, direct = CASES[name]
    x, y = tensor_rows(0, m, 5).requires_grad_(), (tensor_rows(1, n, 5) + 0.2).requires_grad_()
    value, expected = tiled(x, y), direct(x, y)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    found, wanted = (torch.autograd.grad(loss, (x, y)) for loss in (value, expected))
    for grad, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [3.0, 300.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_tiled_infonce_equals_whole_matrices(scale: float, grouped: bool) -> None:
    """Both forms of the softmax sums: with one exponential for rows and columns, and with running maxima."""
    image, text = tensor_rows(0, 19, 5).requires_grad_(), tensor_rows(1, 19, 5).requires_grad_()
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    groups = torch.arange(19) // (3 if grouped else 1)
    same = (groups.unsqueeze(1) == groups) & ~torch.eye(19, dtype=torch.bool)
    logits = (logit_scale * image @ text.T).masked_fill(same, -math.inf)
    direct = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    tiled = infonce(image, text, logit_scale, groups)
    torch.testing.assert_close(tiled, direct, rtol=1e-12, atol=1e-14)
    leaves = (image, text, logit_scale)
    found, wanted = (torch.autograd.grad(loss, leaves) for loss in (tiled, direct))
    for grad, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("scale", "width", "noise"), [(100.0, 8, 0.1), (100.0, 16, 0.5), (30.0, 32, 1.0)])
def test_infonce_of_nearly_solved_pairs_keeps_its_digits(scale: float, width: int, noise: float) -> None:
    """Logits near 100 have five decimals in float32, and what is left of such a loss may be no larger."""
    image = tensor_rows(0, 900, width).float()
    text = torch.nn.functional.normalize(image + noise * tensor_rows(1, 900, width).float(), dim=1)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = image.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()
        loss = infonce(*leaves, scale)
        results.append((loss.double(), torch.cat(torch.autograd.grad(loss, leaves)).double()))
    (exact, exact_grad), (value, grad) = results
    assert exact < 0.2
    assert abs(value - exact) < 2e-5 * exact
    assert (grad - exact_grad).norm() < 1e-4 * exact_grad.norm()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", CASES)
def test_tiled_gradients_are_finite_differences(name: str) -> None:
    x, y = tensor_rows(0, 6, 3).requires_grad_(), (tensor_rows(1, 5, 3) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(CASES[name][0], (x, y))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.sampled_from(["cs", "mmd", "energy"]))
def test_v_statistics_are_symmetric_nonnegative_invariant_and_zero_on_equal_samples(
    seed: int, m: int, n: int, name: str
) -> None:
    loss = CASES[name][0]
    x, y = tensor_rows(seed, m, 4), tensor_rows(seed + 1, n, 4) * 1.5
    value = loss(x, y)
    assert value >= -1e-12
    assert abs(loss(x, x.clone())) < 1e-7  # energy: the root of a rounded 0 among the cross pairs
    torch.testing.assert_close(loss(y, x), value, rtol=1e-9, atol=1e-12)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=x.dtype))[0]
    torch.testing.assert_close(loss(x.flip(0) @ rotation + 3, y @ rotation + 3), value, rtol=1e-9, atol=1e-12)


def test_closed_forms_of_gaussian_samples() -> None:
    """Between N(0, v I) and N(m, v I) in d dimensions, MMD^2 is 2 (s^2 / (s^2 + 2 v))^(d/2) (1 - exp(-|m|^2 / ...))."""
    generator = torch.Generator().manual_seed(0)
    v, sigma, d, n = 0.3, 0.8, 3, 4000
    shift = torch.tensor([0.6, -0.2, 0.4], dtype=torch.float64)
    x, y = (math.sqrt(v) * torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    y += shift
    width = sigma**2 + 2 * v
    expected = 2 * (sigma**2 / width) ** (d / 2) * (1 - math.exp(-float(shift @ shift) / (2 * width)))
    assert mmd(x, y, sigma, "u").item() == pytest.approx(expected, rel=0.06)
    # In one dimension the energy distance of N(0, 1) and N(m, 1), m large, tends to 2 m - 4 / sqrt(pi).
    a, b = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    assert energy_distance(a, b + 8, "u").item() == pytest.approx(16 - 4 / math.sqrt(math.pi), rel=0.01)


def test_one_row_duplicates_and_far_clouds() -> None:
    one, other = tensor_rows(0, 1, 4), tensor_rows(1, 1, 4)
    assert energy_distance(one, other).item() == pytest.approx(2 * (one - other).norm().item())
    assert mmd(one, other, 0.5).item() == pytest.approx(2 - 2 * math.exp(-2 * (one - other).square().sum().item()))
    same = tensor_rows(0, 1, 4).float().repeat(9, 1).requires_grad_()
    far = tensor_rows(1, 600, 4).float().requires_grad_()  # more rows than one tile has
    for loss, _ in CASES.values():
        value = loss(same, 1000 * far)
        grads = torch.autograd.grad(value, (same, far))
        assert value.isfinite()
        assert all(grad.isfinite().all() for grad in grads)
    for loss in (lambda x, y: cs_divergence(x, y, 1.0, "u"), lambda x, y: cs_divergence(x, y, [0.5, 1.0])):
        assert loss(1000 * far, 1000 * far.flip(0) + 1).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_rows_are_widened(name: str, dtype: torch.dtype) -> None:
    x, y = tensor_rows(0, 12, 16).to(dtype).requires_grad_(), tensor_rows(1, 12, 16).to(dtype)
    value = CASES[name][0](x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CASES[name][0](x.detach().float(), y.float()))
    value.backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


def test_bf16_products_keep_their_stated_error() -> None:
    torch.manual_seed(0)
    offset = 0.03 * torch.randn(256)
    x, y = (torch.nn.functional.normalize(torch.randn(700, 256) + s * offset, dim=1) for s in (20, -20))
    for sigma in (0.5, 0.7071, 1.0):
        results = []
        for products in ("fp32", "bf16"):
            leaf = x.clone().requires_grad_()
            value = cs_divergence(leaf, y, sigma, products=products)  # type: ignore[arg-type]
            results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        (exact, grad), (rounded, rounded_grad) = results
        assert 0 < abs(rounded - exact) < 2e-3 * exact
        assert 0 < (rounded_grad - grad).norm() < 5e-3 * grad.norm()


@pytest.mark.usefixtures("small_tiles")
def test_hoelder_generalises_cs_and_is_no_longer_symmetric() -> None:
    x, y = tensor_rows(0, 13, 5).requires_grad_(), (tensor_rows(1, 9, 5) + 0.4).requires_grad_()
    ours, cs = hoelder_divergence(x, y, 0.6), cs_divergence(x, y, 0.6)
    torch.testing.assert_close(ours, cs)
    for grad, reference in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(cs, (x, y)), strict=True):
        torch.testing.assert_close(grad, reference)
    for alpha, gamma in ((2.0, 1.0), (3.0, 2.0), (1.5, 1.5)):
        assert torch.autograd.gradcheck(lambda a, b: hoelder_divergence(a, b, 0.6, alpha, gamma), (x, y))  # noqa: B023
        assert hoelder_divergence(x, x.clone(), 0.6, alpha, gamma).abs() < 1e-12
        assert hoelder_divergence(x, y, [0.6, 1.2], alpha, gamma) > 0
    swapped = hoelder_divergence(y, x, 0.6, 1.5, 2.0)  # alpha 3 and 1.5 are each other's conjugates
    torch.testing.assert_close(hoelder_divergence(x, y, 0.6, 3.0, 2.0), swapped)
    assert abs(hoelder_divergence(y, x, 0.6, 3.0, 2.0) - swapped) > 1e-4


def test_hoelder_of_gaussian_samples_reaches_its_closed_form() -> None:
    """int p^a q^b of N(0, v) and N(m, v) in one dimension, with a + b = gamma, against the kernel's wider v."""
    generator = torch.Generator().manual_seed(0)
    v, sigma, m, alpha, gamma, n = 1.0, 0.3, 1.2, 3.0, 1.5, 6000
    x, y = (math.sqrt(v) * torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = gamma / alpha, gamma * (1 - 1 / alpha)
    # -2 log of exp(-a b m^2 / (2 gamma w)) for densities of variance w; the estimate has w between v and v + sigma^2.
    exact = 2 * a * b * m**2 / (2 * gamma * v)
    assert hoelder_divergence(x, y + m, sigma, alpha, gamma).item() == pytest.approx(exact, rel=0.12)


@pytest.mark.usefixtures("small_tiles")
def test_the_generalised_divergence_of_three_samples_is_its_definition() -> None:
    clouds = [(tensor_rows(seed, rows, 3) + 0.2 * seed).requires_grad_() for seed, rows in ((0, 9), (1, 6), (2, 11))]
    kernel = gaussians(0.7)
    density = {(s, t): kernel(x, y).mean(1) for s, x in enumerate(clouds) for t, y in enumerate(clouds)}
    product = sum((density[t, (t + 1) % 3] * density[t, (t + 2) % 3]).mean() for t in range(3)) / 3
    expected = sum(density[t, t].square().mean().log() for t in range(3)) - 3 * product.log()
    found = generalized_cs_divergence(clouds, 0.7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(generalized_cs_divergence([clouds[2], clouds[0], clouds[1]], 0.7), found)
    for grad, reference in zip(torch.autograd.grad(found, clouds), torch.autograd.grad(expected, clouds), strict=True):
        torch.testing.assert_close(grad, reference)
    same = clouds[0].detach()
    assert generalized_cs_divergence([same, same.flip(0), same], 0.7).abs() < 1e-12
    torch.testing.assert_close(generalized_cs_divergence(clouds[:2], 0.7), cs_divergence(*clouds[:2], 0.7))


def test_far_densities_stay_finite() -> None:
    x, y = tensor_rows(0, 8, 4).float().requires_grad_(), tensor_rows(1, 8, 4).float() + 100
    value = hoelder_divergence(x, y, 0.05, 3.0, 2.0)
    assert value.isfinite()
    assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_error_texts() -> None:
    x, y = tensor_rows(0, 4, 3), tensor_rows(1, 5, 3)
    with pytest.raises(InputError, match="products: unknown name 'bf61'; did you mean bf16"):
        cs_divergence(x, y, 1.0, products="bf61")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bandwidth: a mixture needs at least one sigma, got none"):
        mmd(x, y, [])
    with pytest.raises(InputError, match='bandwidth: expected a finite number above 0 or "median", got -1'):
        mmd(x, y, [1.0, -1.0])
    with pytest.raises(InputError, match=r"bandwidth: expected a sigma from 1e-09 to 1e\+150, got 1e-200"):
        cs_divergence(x, y, 1e-200)
    for divergence in (cs_divergence, nystroem_cs, hoelder_divergence):
        with pytest.raises(InputError, match=r"bandwidth: expected a sigma of at most 1e\+150, got 1e\+200"):
            divergence(x, y, [1.0, 1e200])
    with pytest.raises(InputError, match=r"blur: expected at most 1e\+150, got 1e\+200"):
        sinkhorn(x, y, blur=1e200)
    with pytest.raises(InputError, match="alpha: expected a number above 1, got 1"):
        hoelder_divergence(x, y, 1.0, alpha=1.0)
    with pytest.raises(InputError, match="gamma: expected a number above 0, got 0"):
        hoelder_divergence(x, y, 1.0, gamma=0.0)
    with pytest.raises(InputError, match="samples: expected at least two, got 1"):
        generalized_cs_divergence([x], 1.0)
    with pytest.raises(InputError, match='estimator "u" needs at least 2 rows'):
        energy_distance(x[:1], y, "u")


_MEMORY = """
import resource, sys, torch
from cs_aligner_cli.objectives import Clouds, Logits, Term, cs_divergence, energy_distance, evaluate_terms
from cs_aligner_cli.objectives import hoelder_divergence, infonce, on_clouds, on_pairs, siglip
from cs_aligner_cli.objectives.divergences import gram_divergence

torch.manual_seed(0)
rows, which = int(sys.argv[1]), sys.argv[2]
image, text = (torch.nn.functional.normalize(torch.randn(rows, 8), dim=1) for _ in range(2))
logits = Logits(torch.tensor(50.0), torch.tensor(-10.0))
pair = [
    Term("infonce", 1.0, on_pairs(lambda i, t, l, g: infonce(i, t, l.scale, g)), sums="infonce"),
    Term("cs", 1.0, on_clouds(lambda i, t: cs_divergence(i, t, 0.7)), sums=gram_divergence("cs", (0.7,))),
]
others = [
    Term("siglip", 1.0, on_pairs(lambda i, t, l, g: siglip(i, t, *l))),
    Term("energy", 1.0, on_clouds(energy_distance)),
    Term("hoelder", 1.0, on_clouds(lambda i, t: hoelder_divergence(i, t, 0.7))),
]
terms, separate = {"together": (pair, False), "others": (others, True)}[which]
evaluate_terms(terms, Clouds.of_pairs(image[:600], text[:600]), logits, separate=separate)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate_terms(terms, Clouds.of_pairs(image, text), logits, separate=separate)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("which", ["together", "others"])
def test_memory_is_linear_in_the_rows(which: str) -> None:
    """One matrix of 9,000 x 9,000 would be 324 MB; the tiles and what is kept of them are a constant."""
    run = [sys.executable, "-c", _MEMORY, "9000", which]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) / 1024
    assert grown < 320
