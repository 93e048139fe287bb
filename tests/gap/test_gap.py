"""The gap room: metrics against plain numpy, the null floor, figures and the page."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import subprocess
import sys
from html import unescape
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import skew

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap import METRICS, measure, measure_gap
from cs_aligner_cli.gap.glossary import describe, in_report_order
from cs_aligner_cli.gap.groups import kernel_sums, random_groups
from cs_aligner_cli.gap.kernel_metrics import divergence_metrics
from cs_aligner_cli.gap.paired_rows import DEFAULT_BANDWIDTHS, paired_rows
from cs_aligner_cli.gap.separability import separability
from cs_aligner_cli.objectives import conflict_sweep, cs_divergence
from cs_aligner_cli.report.curves import conflict_curves, divergence_curve, training_curves
from cs_aligner_cli.report.figures import cosine_histograms, projection, spectra
from cs_aligner_cli.report.markdown import render_summary
from cs_aligner_cli.report.page import format_number, render_page, report_rows
from cs_aligner_cli.report.tradeoff import gap_against_recall


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(n=40, d=6, gap=0.6, noise=0.5, seed=0):
    """Pairs that share a signal, pushed apart along the first axis; rows are not of unit length."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, d))
    push = np.eye(d)[0] * gap
    return tuple(signal + noise * rng.standard_normal((n, d)) + sign * push for sign in (1, -1))


# Plain implementations: one loop per sum in the formulas of the papers that measure_gap names.


def mean_over(x, y, function, diagonal=True):
    return np.mean([function(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if diagonal or i != j])


def plain_metrics(image, text, bandwidths):
    x, y = unit(np.asarray(image, np.float64)), unit(np.asarray(text, np.float64))
    n = len(x)
    cosine, distance = np.dot, lambda u, v: (1 - np.dot(u, v)) / 2
    squared_gap = mean_over(x, x, cosine, False) + mean_over(y, y, cosine, False) - 2 * mean_over(x, y, cosine, False)
    paired = np.mean([a @ b for a, b in zip(x, y, strict=True)])
    strangers = [x[i] @ y[j] for i in range(n) for j in range(n) if i != j]
    centred = [(x[i] - x.mean(0)) @ (y[j] - y.mean(0)) for i in range(n) for j in range(n) if i != j]
    apart = mean_over(x, x, lambda a, b: math.dist(a, b) ** 2, False) + mean_over(
        y, y, lambda a, b: math.dist(a, b) ** 2, False
    )
    m = np.mean([distance(a, b) for a, b in zip(x, y, strict=True)])
    within = (mean_over(x, x, distance, False) + mean_over(y, y, distance, False)) / 2
    found = {
        "pairs": n,
        "centroid_gap": math.sqrt(np.sum((x.mean(0) - y.mean(0)) ** 2)),
        "squared_gap_debiased": squared_gap,
        "margin": paired - np.mean(strangers),
        "margin_standardised": (paired - np.mean(strangers)) / np.mean(np.square(centred)) ** 0.5,
        "residual_ratio": 1 - (paired - np.mean(strangers)) / (apart / 4),
        "centroid_share": math.dist(x.mean(0), y.mean(0)) ** 2
        / np.mean([math.dist(a, b) ** 2 for a, b in zip(x, y, strict=True)]),
        "paired_distance": np.mean([math.dist(a, b) for a, b in zip(x, y, strict=True)]),
        "paired_residual": np.mean([math.dist(a - x.mean(0), b - y.mean(0)) ** 2 for a, b in zip(x, y, strict=True)]),
        "paired_cosine": np.mean([a @ b for a, b in zip(x, y, strict=True)]),
        "rmg": m / (within + m),
        "alignment": np.mean([math.dist(a, b) ** 2 for a, b in zip(x, y, strict=True)]),
    }
    for name, z in (("image", x), ("text", y)):
        potentials = [math.exp(-2 * math.dist(z[i], z[j]) ** 2) for i in range(n) for j in range(i + 1, n)]
        found[f"uniformity_{name}"] = math.log(np.mean(potentials))
    pooled = np.concatenate([x, y])
    potentials = [math.exp(-2 * math.dist(a, b) ** 2) for i, a in enumerate(pooled) for b in pooled[i + 1 :]]
    found["uniformity_pooled"] = math.log(np.mean(potentials))
    found |= {f"conformity_{name}": mean_over(z, z, cosine, False) for name, z in (("image", x), ("text", y))}
    for estimator in ("v", "u"):
        keep = estimator == "v"
        found[f"energy_{estimator}"] = (
            2 * mean_over(x, y, math.dist, keep) - mean_over(x, x, math.dist, keep) - mean_over(y, y, math.dist, keep)
        )
        for s in bandwidths:

            def kernel(a, b, s=s):
                return math.exp(-(math.dist(a, b) ** 2) / (2 * s * s))

            found[f"mmd_{estimator}@{s:.4g}"] = (
                mean_over(x, x, kernel, keep) + mean_over(y, y, kernel, keep) - 2 * mean_over(x, y, kernel, keep)
            )
            found[f"cs_divergence_{estimator}@{s:.4g}"] = (
                math.log(mean_over(x, x, kernel, keep))
                + math.log(mean_over(y, y, kernel, keep))
                - 2 * math.log(mean_over(x, y, kernel, keep))
            )
    losses = []
    for temperature in (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5):
        logits = [[float(a @ b) / temperature for b in y] for a in x]
        sums = [math.log(sum(map(math.exp, row))) for row in (*logits, *zip(*logits, strict=True))]
        losses.append(sum(sums) / (2 * n) - sum(logits[i][i] for i in range(n)) / n)
    found["mutual_information"] = max(0, math.log(n) - min(losses))
    return found | plain_neighbours(x, y) | plain_shapes(x, y)


def plain_neighbours(x, y, k=10):
    """Neighbours by sorting every row's distances."""
    n, k = len(x), min(k, len(x) - 1)
    pooled = np.concatenate([x, y])

    def nearest(rows, i):
        return set(sorted((j for j in range(len(rows)) if j != i), key=lambda j: math.dist(rows[i], rows[j]))[:k])

    shared = [len(nearest(x, i) & nearest(y, i)) / k for i in range(n)]
    pure = [np.mean([(j < n) == (i < n) for j in nearest(pooled, i)]) for i in range(2 * n)]
    found = {"mutual_knn": np.mean(shared), "neighbour_purity": np.mean(pure)}
    for name, gallery, queries in (("image", x, y), ("text", y, x)):
        lists = [sorted(range(n), key=lambda j, q=q: math.dist(q, gallery[j]))[:k] for q in queries]
        found[f"hubness_{name}"] = skew(np.bincount(np.concatenate(lists), minlength=n))
    return {key: 0.0 if math.isnan(value) else value for key, value in found.items()}


def plain_shapes(x, y):
    """Covariances and Gram matrices spelled out; the matrix root is scipy's."""
    from scipy.linalg import sqrtm

    (sx, sy), xc, yc = (np.cov(z.T) for z in (x, y)), x - x.mean(0), y - y.mean(0)
    found = {"frechet_covariance": np.trace(sx + sy) - 2 * np.real(np.trace(sqrtm(sx @ sy)))}
    k, m = xc @ xc.T, yc @ yc.T
    found["linear_cka"] = np.sum(k * m) / math.sqrt(np.sum(k * k) * np.sum(m * m))
    for name, z in (("image", x), ("text", y), ("raw_image", x), ("raw_text", y)):
        z = z if name.startswith("raw") else z - z.mean(0)
        roots = np.sqrt(np.maximum(np.linalg.eigvalsh(z.T @ z), 0))
        p = roots[roots > 1e-6] / roots[roots > 1e-6].sum()
        found[f"effective_rank_{name}"] = math.exp(-sum(p * np.log(p)))
    return found


# What is drawn or fitted has tests of its own.
DRAWN = {
    "linear_separability",
    "separability_dimensions",
    "sliced_wasserstein",
    "cluster_pairs",
    "cluster_ari",
    "cluster_v_measure",
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("n", [4, 23])
def test_every_metric_equals_its_plain_formula(n, seed):
    image, text = clouds(n=n, seed=seed)
    found = measure_gap(image, text, bandwidths=(0.3, 0.5, 1.0))
    expected = plain_metrics(image, text, (0.3, 0.5, 1.0))
    assert set(found) - set(expected) == DRAWN
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-7, abs=1e-7)
    exact = [key for key in expected if not key.startswith(("frechet", "effective"))]
    assert {key: found[key] for key in exact} == pytest.approx({key: expected[key] for key in exact}, rel=1e-9)
    assert ["pairs", *in_report_order(found)] == list(found)
    assert 0 <= found["linear_separability"] <= 1


def test_default_bandwidths_name_the_keys():
    keys = [key for key in measure_gap(*clouds()) if key.startswith("cs_divergence_u")]
    assert keys == ["cs_divergence_u@0.5", "cs_divergence_u@0.7071", "cs_divergence_u@1"]


def test_numpy_and_torch_single_and_double_agree():
    image, text = (rows.astype(np.float32) for rows in clouds())
    from_numpy = measure_gap(image, text)
    from_torch = measure_gap(torch.tensor(image, requires_grad=True), torch.tensor(text).double())
    assert from_torch == pytest.approx(from_numpy, rel=1e-12)
    assert all(type(value) in (int, float) for value in from_numpy.values())


def test_blocks_of_rows_change_nothing():
    """600 pairs are 1,200 pooled rows: three blocks of 512 with an uneven last one."""
    image, text = clouds(n=600, d=8)
    # The nearest rows come last, after sums relative to a larger distance.
    text[-1] = text[-2] + 1e-6
    x, y = paired_rows(image, text)
    found = measure_gap(image, text, bandwidths=(0.1, 0.5))
    for s in (0.1, 0.5):
        assert found[f"cs_divergence_v@{s:.4g}"] == pytest.approx(float(cs_divergence(x, y, s)), rel=1e-10)
        k, m, c = (torch.cdist(a, b).square().div(-2 * s * s).exp() for a, b in ((x, x), (y, y), (x, y)))
        others = ~torch.eye(600, dtype=torch.bool)
        expected = k[others].mean().log() + m[others].mean().log() - 2 * c[others].mean().log()
        assert found[f"cs_divergence_u@{s:.4g}"] == pytest.approx(float(expected), rel=1e-8)
    distances = torch.pdist(x).square()
    assert found["uniformity_image"] == pytest.approx(math.log((-2 * distances).exp().mean()), rel=1e-10)


def test_narrow_kernels_do_not_underflow():
    """At bandwidth 0.05 every kernel value of these rows is below exp(-200): sums need a common scale."""
    x, y = paired_rows(np.eye(8)[:4], np.eye(8)[4:])
    groups = random_groups(4, seed=0)
    sums = kernel_sums(x, y, groups, [0.05])
    divergence = divergence_metrics({s: kernel.left_out() for s, kernel in sums.items()}, [0.05])
    # Orthogonal rows all lie at squared distance 2, so the exponent is 2 / (2 * 0.0025) = 400.
    assert float(divergence["cs_divergence_v@0.05"][0]) == pytest.approx(2 * 400 - 2 * math.log(4))
    assert float(divergence["cs_divergence_u@0.05"][0]) == pytest.approx(0, abs=1e-9)


# Closed forms


def test_identical_clouds_have_no_gap():
    image, _ = clouds()
    found = measure_gap(image, image)
    zero = ["centroid_gap", "squared_gap_debiased", "paired_distance", "rmg", "alignment", "residual_ratio"]
    zero += [key for key in found if key.startswith(("cs_divergence", "mmd", "energy"))]
    assert {key: found[key] for key in zero} == pytest.approx(dict.fromkeys(zero, 0.0), abs=1e-12)
    assert found["paired_cosine"] == pytest.approx(1)
    assert found["linear_separability"] == 0.5


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.8])
def test_two_points_at_a_cosine(cosine):
    """All images on one point, all texts on another: D_CS = 2 (1 - c) / sigma^2, gap = sqrt(2 - 2c)."""
    image = np.tile([1.0, 0.0], (5, 1))
    text = np.tile([cosine, math.sqrt(1 - cosine**2)], (5, 1))
    found = measure_gap(image, text)
    for s in DEFAULT_BANDWIDTHS:
        for estimator in ("v", "u"):
            assert found[f"cs_divergence_{estimator}@{s:.4g}"] == pytest.approx(2 * (1 - cosine) / s**2)
    gap = math.sqrt(2 - 2 * cosine)
    expected = {"centroid_gap": gap, "squared_gap_debiased": gap**2, "paired_distance": gap, "rmg": 1.0}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["uniformity_image"] == pytest.approx(0, abs=1e-12)


def test_rmg_is_a_half_where_pairs_are_strangers():
    """Simplices in orthogonal subspaces: every row lies at cosine 0 to every other, of either modality."""
    found = measure_gap(np.eye(8)[:4], np.eye(8)[4:])
    assert found["rmg"] == pytest.approx(0.5)


def test_all_rows_on_one_point():
    found = measure_gap(np.ones((5, 3)), np.ones((5, 3)))
    assert found["rmg"] == 0.0
    assert found["uniformity_text"] == pytest.approx(0, abs=1e-12)


def test_wide_kernels_read_only_the_centroid_gap():
    found = measure_gap(*clouds(n=200), bandwidths=(50.0,))
    assert found["cs_divergence_v@50"] * 50**2 == pytest.approx(found["centroid_gap"] ** 2, rel=1e-2)


def test_centring_closes_the_gap_and_leaves_pairs_apart():
    """Why the page warns: subtracting the means takes the gap away, but strangers stay strangers."""
    rng = np.random.default_rng(0)
    image, text = unit(rng.standard_normal((2, 300, 16)).reshape(-1, 16)).reshape(2, 300, 16)
    image, text = image + np.eye(16)[0], text - np.eye(16)[0]
    before, after = measure_gap(image, text), measure_gap(image - image.mean(0), text - text.mean(0))
    assert after["centroid_gap"] < 0.1 * before["centroid_gap"]
    assert abs(after["paired_cosine"]) < 0.1


# Invariance and sampling


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 30), d=st.integers(2, 12))
def test_rotation_order_and_length_do_not_matter(seed, n, d):
    image, text = clouds(n=n, d=d, seed=seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    order, lengths = rng.permutation(n), rng.uniform(1e-3, 1e3, (n, 1))
    before = measure_gap(image, text)
    after = measure_gap((lengths * image @ rotation)[order], (text @ rotation)[order])
    # Folds, directions and first clusters are drawn by row number or axis, so these alone see order and rotation.
    kept = {key: value for key, value in before.items() if key not in DRAWN}
    assert {key: after[key] for key in kept} == pytest.approx(kept, rel=1e-6, abs=1e-6)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 30), d=st.integers(1, 12), gap=st.floats(0, 3))
def test_bounds_hold_for_any_clouds(seed, n, d, gap):
    image, text = clouds(n=n, d=d, gap=gap, seed=seed)
    found = measure_gap(image, text)
    assert 0 <= found["centroid_gap"] <= 2
    assert found["squared_gap_debiased"] <= found["centroid_gap"] ** 2 + 1e-12
    assert -1 - 1e-12 <= found["paired_cosine"] <= 1 + 1e-12
    assert 0 <= found["rmg"] <= 1 + 1e-12
    assert found["alignment"] == pytest.approx(2 - 2 * found["paired_cosine"], abs=1e-9)
    assert found["centroid_gap"] <= found["paired_distance"] + 1e-12  # the mean of differences, by Jensen
    assert all(found[f"cs_divergence_v@{s:.4g}"] >= -1e-12 for s in DEFAULT_BANDWIDTHS)
    swapped = measure_gap(text, image)
    assert swapped["cs_divergence_v@0.5"] == pytest.approx(found["cs_divergence_v@0.5"], abs=1e-12)


def test_debiased_gap_is_flat_in_n_where_the_plug_in_gap_is_not():
    def means(n):
        runs = [measure_gap(*clouds(n=n, d=64, gap=0.5, noise=2.0, seed=seed)) for seed in range(8)]
        return [np.mean([run[key] for run in runs]) for key in ("centroid_gap", "squared_gap_debiased")]

    (plug_small, flat_small), (plug_large, flat_large) = means(16), means(128)
    assert plug_small > plug_large + 0.1
    assert abs(flat_small - flat_large) < 0.01


def test_a_huge_and_a_tiny_row_are_rows_like_others():
    image, text = clouds()
    scaled = image.copy()
    scaled[0] *= 1e200
    scaled[1] *= 1e-200
    assert measure_gap(scaled, text) == pytest.approx(measure_gap(image, text), rel=1e-9)


# Linear separability


def test_linear_separability_of_far_and_of_equal_clouds():
    far = measure_gap(*clouds(n=100, gap=8.0))["linear_separability"]
    same = measure_gap(*clouds(n=400, gap=0.0, noise=3.0))["linear_separability"]
    assert far == 1.0
    assert abs(same - 0.5) < 0.06


def test_separability_is_held_out():
    """With more dimensions than rows, any labels can be learnt by heart; only held-out rows show chance."""
    rng = np.random.default_rng(0)
    pair = paired_rows(rng.standard_normal((60, 200)), rng.standard_normal((60, 200)))
    accuracy = separability(*pair, np.ones((1, 60)))[0]
    assert abs(accuracy.mean() - 0.5) < 0.15
    assert (separability(*pair, np.ones((1, 60)))[0] == accuracy).all()


def test_pairs_never_straddle_a_fold():
    """Both rows of a pair are equal here: a twin seen in training would mislead about the held-out one."""
    assert separability(*paired_rows(np.eye(20), np.eye(20)), np.ones((1, 20)), seed=3)[0].mean() == 0.5


# Errors


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (np.ones((5, 3)), np.ones((6, 3)), r"not row-paired: 5 image rows against 6 text rows"),
        (np.ones((5, 3)), np.ones((5, 4)), r"differ in dimension: 3 against 4"),
        (np.ones((3, 3)), np.ones((3, 3)), r"at least 4 pairs, got 3"),
        (
            np.ones((4, 3)),
            np.diag([1.0, 1, np.nan, np.inf])[:, :3] + 1,
            r"text: 1 of 4 rows .* first is row 2",
        ),
        (np.diag([1.0, 0, 1, 1]), np.ones((4, 4)), r"image: 1 of 4 rows are all zeros .* first is row 1"),
        (np.ones((4, 3), int), np.ones((4, 3)), r"image: expected floating-point values"),
        (np.ones(4), np.ones((4, 3)), r"image: expected a non-empty \(rows, dimensions\) array"),
    ],
)
def test_unusable_rows_are_refused(image, text, message):
    with pytest.raises(InputError, match=message):
        measure_gap(image, text)


@pytest.mark.parametrize("pairs", [0, 3])
def test_too_few_exact_pairs_are_refused(pairs):
    with pytest.raises(InputError, match=f"exact_pairs: expected at least 10, got {pairs}"):
        measure_gap(*clouds(), exact_pairs=pairs)


@pytest.mark.parametrize("bandwidths", [(0.0,), (-1.0,), (math.nan,), (math.inf,), (0.5, 0.50001)])
def test_unusable_bandwidths_are_refused(bandwidths):
    with pytest.raises(InputError, match="bandwidths: "):
        measure_gap(*clouds(), bandwidths)


def test_importing_the_room_loads_neither_matplotlib_nor_sklearn():
    code = (
        "import sys, cs_aligner_cli.gap, cs_aligner_cli.report.figures, cs_aligner_cli.report.page;"
        "sys.exit(bool({'matplotlib', 'sklearn', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_above_exact_pairs_kernels_take_evenly_spaced_pairs():
    image, text = clouds(n=1500, d=12, gap=2.0)
    large = measure(image, text, exact_pairs=500)
    kept = np.linspace(0, 1499, 500).round().astype(int)
    sampled = measure(image[kept], text[kept])
    for key in ("cs_divergence_u@0.5", "mmd_v@1", "uniformity_image", "mutual_information", "linear_separability"):
        assert large.values[key] == sampled.values[key]
        assert large.samples[key] == 500
    assert large.intervals["energy_u"] == sampled.intervals["energy_u"]
    assert large.samples["centroid_gap"] == 1500


# Glossary


def test_the_glossary_explains_every_metric_in_the_order_of_measure_gap():
    keys = [key for key in measure_gap(*clouds()) if key != "pairs"]
    large = measure_gap(*clouds(), exact_pairs=20, labels=["a", "b"] * 20)
    families = dict.fromkeys(key.partition("@")[0] for key in [*keys, *large] if key != "pairs")
    assert set(families) == set(METRICS)
    assert in_report_order([*large])[-1] == "separability_dimensions"
    assert in_report_order(reversed(keys)) == keys
    assert describe("cs_divergence_u@0.5").label == "CS divergence, U, bandwidth 0.5"


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"'centroid_gpa'; did you mean centroid_gap\?"):
        in_report_order(["centroid_gpa"])


# Figures


def opened(picture):
    assert b"<svg" in picture.svg
    image = Image.open(io.BytesIO(picture.drawn("png")))
    image.load()
    assert image.format == "PNG"
    assert 600 <= image.width <= 1500
    assert 400 <= image.height <= 1300
    colours = image.convert("RGB").getcolors(image.width * image.height)
    assert len(colours) > 50, "blank figure"
    return image


def sweeps(stores):
    return divergence_curve({name: measure(*pair, sweep=(0.3, 1.0, 2.0)).sweep for name, pair in stores.items()})


def spectra_of(stores):
    return spectra({name: measure(*pair).spectra for name, pair in stores.items()})


DRAWN_FROM_ROWS = [projection, cosine_histograms, sweeps, spectra_of]


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("draw", DRAWN_FROM_ROWS)
def test_figures_are_pictures_of_a_sane_size(draw, count):
    stores = {f"store ${n}": clouds(n=30, d=5 + n, gap=n, seed=n) for n in range(count)}
    opened(draw(stores))


@pytest.mark.parametrize("draw", DRAWN_FROM_ROWS)
def test_figures_take_degenerate_stores(draw):
    """One dimension, equal clouds, one point, a flat line: nothing may warn or divide by zero."""
    image, _ = clouds(n=12)
    point = np.ones((6, 2)), np.ones((6, 2))
    for stores in (
        {"equal": (image, image), "point": point},
        {"line": (np.ones((6, 1)), -np.ones((6, 1)))},
        {"point": point},
    ):
        assert b"<svg" in draw(stores).svg


def test_figures_are_reproducible_and_leave_the_style_alone():
    import matplotlib as mpl

    before, had_pyplot = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    stores = {"a": clouds(n=30)}
    assert projection(stores).svg == projection(stores).svg
    assert mpl.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_image_is_on_the_left_of_the_projection():
    from cs_aligner_cli.report.figures import _plane

    for seed in range(12):
        x, y = (rows.numpy() for rows in paired_rows(*clouds(n=50, gap=0.4, seed=seed)))
        points, shares = _plane(x, y)
        assert points[:50, 0].mean() < points[50:, 0].mean()
        assert 1 >= shares[0] >= shares[1] >= 0


@pytest.mark.parametrize("count", [1, 3])
def test_conflict_curves_are_pictures_and_take_degenerate_stores(count):
    sweeps = {f"store {n}": conflict_sweep(*clouds(n=20, gap=n)) for n in range(count)}
    opened(conflict_curves(sweeps))
    opened(conflict_curves({"point": conflict_sweep(np.ones((4, 3)), np.ones((4, 3)))}))


def test_training_curves_leave_out_what_was_not_logged():
    step = {"step": 10, "terms": {"infonce": 5.0, "cs": 0.3}, "weights": {"infonce": 1, "cs": 1}, "logit_scale": 100.0}
    ends = {"step": 11, "val_R@1": {"i2t": 0.1, "t2i": 0.2}}
    later = {**step, "step": 20, "grad_norm_ratio": {"cs": 0.4}}
    opened(training_curves({"aligned": [step, ends, later], "a ${run": [step], "no log": []}))
    with pytest.raises(InputError, match="expected at least one run with logged steps"):
        training_curves({"a": [ends]})


def test_figures_without_a_store_are_refused():
    for draw in (projection, cosine_histograms, divergence_curve, spectra, conflict_curves, gap_against_recall):
        with pytest.raises(InputError, match="expected at least one store"):
            draw({})


def test_gap_against_recall_takes_marks_that_coincide():
    point = {"gap": 0.0, "r1_i2t": 0.0, "r1_t2i": 0.0}
    far = {
        **point,
        "gap": 1.9,
        "r1_i2t": 1.0,
        "kind": "baseline",
        "gap_interval": [1.8, 2.0],
        "r1_interval": [0.4, 0.6],
    }
    opened(gap_against_recall({"one": point, "the same": point, "far": far, "run": {**point, "kind": "run"}}))


def test_labels_keep_clear_of_each_other_and_of_marks():
    """Nor does an error bar or the arrow from the first to the last go through a label."""
    from cs_aligner_cli.report.canvas import Mark, label_marks, panels

    marks = {
        f"store_{k}": Mark(0.4 + 0.04 * k, 40.0 + 2 * k, (0.2 + 0.04 * k, 0.75), (38.0, 42.0 + 2 * k)) for k in range(4)
    }
    with panels([""]) as (figure, (ax,)):
        ax.set(xlim=(0, 1.2), ylim=(20, 60))
        label_marks(figure, ax, marks, [(marks["store_0"], marks["store_3"])])
        boxes = [text.get_window_extent() for text in ax.texts]
        assert len(boxes) == 4
        assert not any(a.overlaps(b) for a, b in pairwise(sorted(boxes, key=lambda box: box.y0)))
        bars = [ax.transData.transform([(m.across[0], m.y), (m.across[1], m.y)]) for m in marks.values()]
        for box in boxes:
            assert not any(box.y0 < y < box.y1 and left < box.x1 and box.x0 < right for (left, y), (right, _) in bars)


# Page


def report():
    stores = {"pairwise_only": clouds(n=30, gap=2.0), "aligned": clouds(n=30, gap=0.1, noise=0.4)}
    recall = {"R@1": 0.5, "R@5": 0.75, "R@10": 0.8125, "median_rank": 1.5, "mean_rank": 3.25}
    return {
        "name": "flickr8k",
        "split": "dev",
        "pairs": 1030,
        "note": ["frozen: image 1280-d and text 384-d share no space."],
        "stores": {"frozen": {}, **{name: measure_gap(*pair) for name, pair in stores.items()}},
        "null": {name: measure(*pair).null for name, pair in stores.items()},
        "tests": {name: measure(*pair).tests for name, pair in stores.items()},
        "retrieval": {
            "pairwise_only": {"i2t": recall, "t2i": recall},
            "aligned": {"i2t": {**recall, "R@1": 0.45}, "t2i": {**recall, "R@1": 0.53}},
        },
        "provenance": {"csalign": "0.1.0", "seed": 0, "recipe": "train:\n  lr: 1e-3\n", "command": "csalign"},
    }


def words(html):
    """The page's text without tags, styles, scripts and entities."""
    return unescape(re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", html, flags=re.DOTALL))


def test_page_shows_every_number():
    data = report()
    text = words(render_page(data, {}))
    for source in ("stores", "null"):
        for values in data[source].values():
            for key, value in values.items():
                shown = format_number(value) if key != "pairs" else "1,030"
                assert shown in text, key
    for shown in ("50.0", "75.0", "81.2", "45.0", "53.0", "1.5", "3.2", "0.1.0", "lr: 1e-3", data["note"][0]):
        assert shown in text
    assert "No column for frozen" in text


def test_page_loads_nothing_and_runs_nothing():
    figure = gap_against_recall({"a": {"gap": 1.0, "r1_i2t": 0.5, "r1_t2i": 0.4}})
    html = render_page(report(), {"gap_against_recall": figure, "odd_one": figure})
    targets = re.findall(r"(?:src|href|srcset|poster|action|data)\s*=\s*\"([^\"]*)", html)
    assert targets
    assert all(target.startswith("#") for target in targets)  # sections of the page, and marks of the figures
    assert html.count("<script") == 1
    assert "<link" not in html
    assert not re.search(r"url\((?!#)|@import|https?://(?!www.w3.org/)", html)
    (script,) = re.findall(r"<script>(.*)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert "What closing the gap cost" in html
    assert "<h3>Odd one</h3>" in html
    assert html.count('role="img" aria-label="What closing the gap cost. pairwise_only: gap ') == 1
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets} <= set(ids)


def test_a_figure_says_in_words_what_has_a_panel_and_nothing_else():
    drawn = {"projection": projection({"aligned": clouds(n=30)}), "gap_against_recall": gap_against_recall(
        {"a": {"gap": 1.0, "r1_i2t": 0.5, "r1_t2i": 0.4}})}  # fmt: skip
    html = render_page(report(), drawn)
    (of_panels,) = re.findall(r'aria-label="(Where the two clouds lie\. [^"]*)"', html)
    assert "aligned: the two" in of_panels and "pairwise_only" not in of_panels
    (of_all,) = re.findall(r'aria-label="(What closing the gap cost\. [^"]*)"', html)
    assert "pairwise_only: gap" in of_all and "aligned: gap" in of_all


def test_page_escapes_whatever_comes_from_data():
    evil = "<script>alert('x')</script>\"&"
    data = report()
    data["stores"][evil] = data["stores"].pop("aligned")
    data["null"][evil], data["retrieval"][evil] = (
        data["null"].pop("aligned"),
        data["retrieval"].pop("aligned"),
    )
    data |= {
        "name": evil,
        "split": evil,
        "note": [evil],
        "provenance": {"recipe": evil, evil: evil, "command": evil},
    }
    pair = {"image": {"id": evil, "photo": None}, "text": evil, "cosine": 0.5}
    query = {"query": evil, "results": [{"item": pair["image"], "cosine": 0.5, "hit": True}]}
    to_texts = {"query": pair["image"], "results": [{"item": evil, "cosine": 0.5, "hit": False}]}
    point = {"image": (1.0, 2.0), "points": (3.0, 4.0), "text": evil, "item": pair["image"]}
    shown = {
        "store": evil,
        "map": [point],
        "best": [pair],
        "worst": [pair],
        "to_images": [query],
        "to_texts": [to_texts],
    }
    figure = gap_against_recall({evil: {"gap": 1.0, "r1_i2t": 0.5, "r1_t2i": 0.4}})
    html = render_page(data, {evil: figure}, shown)
    assert "<script>alert" not in html
    assert '"&"' not in html
    assert words(html).count(evil) >= 18
    assert b"<script" not in figure.svg
    assert "<script" not in render_summary(data)


def test_page_of_a_report_without_the_optional_parts():
    html = render_page({"name": "n", "split": "s", "pairs": 4, "stores": {"frozen": {}}}, {})
    assert "no gap between them can be measured yet" in html
    assert "Retrieval" not in html
    assert "recipe" not in html


def test_page_refuses_an_unknown_metric():
    data = report()
    data["stores"]["aligned"]["rgm"] = 0.5
    with pytest.raises(InputError, match=r"unknown gap metric 'rgm'; did you mean rmg\?"):
        render_page(data, {})


def test_report_rows_are_long_and_complete():
    data = report()
    rows = report_rows(data)
    assert len(rows) == 2 * (len(data["stores"]["aligned"]) - 1)
    assert rows[0] == {
        "store": "pairwise_only",
        "metric": "centroid_gap",
        "value": data["stores"]["pairwise_only"]["centroid_gap"],
        "low": None,
        "high": None,
        "null": data["null"]["pairwise_only"]["centroid_gap"],
        "p": 0.001,
        "pairs": None,
    }
    assert {row["p"] for row in rows if row["metric"] == "paired_cosine"} == {None}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.0000"),
        (-0.5, "~0.5000"),
        (12.34567, "12.3457"),
        (0.00012, "0.0001"),
        (-2e-5, "~2.0e~05"),
        (None, "-"),
    ],
)
def test_numbers_are_printed_to_four_decimals(value, shown):
    """With a true minus sign, written ~ here, and a dash for what is absent."""
    assert format_number(value).replace("\N{MINUS SIGN}", "~").replace("\N{EN DASH}", "-") == shown
