"""No-training baselines: closed forms against their definitions, and what each must and must not change."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cs_aligner_cli.common.closed_forms import canonical_axes, cca_of_covariances
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap import measure_gap
from cs_aligner_cli.gap.baselines import BASELINES, ONE_SPACE, cca_shrinkage, fit_baseline
from cs_aligner_cli.gap.few_pair_baselines import RelativeMap
from cs_aligner_cli.recipe.gap_report import Baseline, Baselines
from cs_aligner_cli.retrieval import evaluate_retrieval


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cca(x, y, shrinkage):
    """Weighted canonical axes of centred rows."""
    return cca_of_covariances(x.T @ x / len(x), y.T @ y / len(y), x.T @ y / len(x), [shrinkage])[0]


def pairs(seed=0, n=400, d=10, e=10, gap=2.0):
    """Both modalities see one factor through maps of their own, with a mean of their own."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(99).standard_normal((2, 6, 16))
    factors = rng.standard_normal((n, 6))
    image = factors @ maps[0][:, :d] + 0.1 * rng.standard_normal((n, d)) + gap
    text = factors @ maps[1][:, :e] + 0.1 * rng.standard_normal((n, e)) - gap
    return image, text


def applied(kind, train, test):
    image_map, text_map = fit_baseline(kind, *train)
    return image_map(test[0]), text_map(test[1])


def test_the_recipe_names_every_baseline():
    assert set(get_args(Baseline)) == set(BASELINES) > set(Baselines().frozen)
    assert set(ONE_SPACE) < set(BASELINES)


@pytest.mark.parametrize("kind", ["centred", "mean_shift"])
def test_a_shift_takes_away_the_means_of_unit_rows(kind):
    image, text = pairs()
    x, y = applied(kind, (image, text), (image, text))
    shift_x, shift_y = unit(image).mean(axis=0), unit(text).mean(axis=0)
    if kind == "mean_shift":
        shift_x, shift_y = (shift_x - shift_y) / 2, (shift_y - shift_x) / 2
    assert np.allclose(x, unit(image) - shift_x, atol=1e-6)
    assert np.allclose(y, unit(text) - shift_y, atol=1e-6)
    assert np.allclose(x.mean(axis=0), y.mean(axis=0), atol=1e-6)


def test_whitened_rows_have_no_covariance_left():
    rng = np.random.default_rng(2)
    image, text = (rng.standard_normal((500, 10)) @ rng.standard_normal((10, 10)) + 1 for _ in range(2))
    for rows in applied("whitened", (image, text), (image, text)):
        covariance = np.cov(rows.T)
        # The shrinkage leaves the smallest axes a little short.
        assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.05
        assert np.diag(covariance) == pytest.approx(1, abs=0.2)


def test_procrustes_is_the_best_rotation():
    """Rows that are rotated and shifted copies coincide again; distances among images do not change."""
    rng = np.random.default_rng(1)
    image = unit(rng.standard_normal((200, 7)))
    rotation, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    x, y = applied("procrustes", (image, image @ rotation), (image, image @ rotation))
    assert np.allclose(x, y, atol=1e-5)
    assert np.allclose(np.linalg.norm(x[:1] - x, axis=1), np.linalg.norm(image[:1] - image, axis=1), atol=1e-5)


def test_cca_finds_scikit_learns_correlations_where_nothing_is_shrunk(monkeypatch):
    from sklearn.cross_decomposition import CCA

    from cs_aligner_cli.gap import baselines

    monkeypatch.setattr(baselines, "SHRINKAGES", (1e-9,))
    image, text = (unit(rows) for rows in pairs(d=5, e=4, n=300))
    x, y = applied("cca", (image, text), (image, text))
    ours = [abs(np.corrcoef(x[:, i], y[:, i])[0, 1]) for i in range(3)]
    theirs = CCA(3, max_iter=5000, tol=1e-12).fit(image, text).transform(image, text)
    expected = [abs(np.corrcoef(theirs[0][:, i], theirs[1][:, i])[0, 1]) for i in range(3)]
    assert ours == pytest.approx(expected, abs=1e-4)
    # Axes count by their correlations.
    assert [x[:, i].std() for i in range(3)] == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("kind", list(BASELINES))
def test_baselines_close_the_gap_on_rows_they_were_not_fitted_on(kind):
    train, test = pairs(seed=0), pairs(seed=1, n=100)
    x, y = applied(kind, train, test)
    assert x.dtype == y.dtype == np.float32
    assert measure_gap(x, y)["centroid_gap"] < 0.5 * measure_gap(*test)["centroid_gap"]


def test_ccas_shrinkage_is_what_retrieves_held_out_pairs():
    """The last fifth of the pairs is held out, one caption of each image."""
    for count in (150, 1000):
        image, text = (unit(rows) for rows in pairs(n=count, d=16, e=16))
        # Five captions stand behind each image, as in a data set.
        repeated = np.repeat(image, 5, axis=0), np.repeat(text, 5, axis=0)
        rng = np.random.default_rng(1)
        noisy = repeated[1] + 0.15 * rng.standard_normal(repeated[1].shape)
        chosen = cca_shrinkage(repeated[0], noisy)
        cut = 4 * len(noisy) // 5
        held = cut + 5 * np.arange((len(noisy) - cut) // 5)
        recalls = {}
        for shrinkage in (0.01, 0.1, 1.0, 10.0):
            maps = cca(repeated[0][:cut] - repeated[0][:cut].mean(0), noisy[:cut] - noisy[:cut].mean(0), shrinkage)
            x = (repeated[0][held] - repeated[0][:cut].mean(0)) @ maps[0]
            y = (noisy[held] - noisy[:cut].mean(0)) @ maps[1]
            scores = unit(x) @ unit(y).T
            ranks = [(s.argmax(axis=1) == np.arange(len(held))).mean() for s in (scores, scores.T)]
            recalls[shrinkage] = sum(ranks)
        assert recalls[chosen] == max(recalls.values())
    for few in (1, 2, 50):
        assert cca_shrinkage(*(unit(rows)[:few] for rows in pairs(n=50))) == 1.0


@pytest.mark.parametrize(("d", "e"), [(9, 5), (5, 9), (6, 6)])
def test_weighted_axes_are_those_of_the_singular_value_decomposition(d, e):
    """Axes may be turned where correlations are equal, and change their sign: what they bring together may not."""
    x, y = (z - z.mean(axis=0) for z in pairs(n=40, d=d, e=e))
    for shrinkage in (1e-3, 1.0):
        left, right, rho = canonical_axes(x, y, [shrinkage])[0]
        image, text = cca(x, y, shrinkage)
        assert np.allclose(image @ text.T, (left * rho**2) @ right.T, atol=1e-10)
        assert np.allclose(np.abs(image), np.abs(left * rho), atol=1e-6)


@pytest.mark.parametrize("width", [8, 300])
def test_cca_stays_finite_where_one_side_coincides_and_exact_where_it_nearly_does(width):
    rng = np.random.default_rng(0)
    x, one = rng.normal(size=(200, 64)), rng.normal(size=(1, width))
    image, text = fit_baseline("cca", x, np.repeat(one, 200, axis=0))
    assert all(np.isfinite(m(rows)).all() for m, rows in ((image, x), (text, np.repeat(one, 200, axis=0))))
    near = unit(one + 1e-5 * rng.normal(size=(200, width)))
    maps = fit_baseline("cca", x, near)
    centred = unit(x) - unit(x).mean(0), near - near.mean(0)
    expected = cca(*centred, cca_shrinkage(unit(x), near))
    for found, wanted, rows in zip(maps, expected, centred, strict=True):
        scale = abs(rows @ wanted).max()
        np.testing.assert_allclose(abs(rows @ found.weight), abs(rows @ wanted), atol=1e-6 * scale)


@pytest.mark.parametrize(("kind", "width"), [("procrustes", 8), ("cca", 8), ("csa", 10), ("asif", 400)])
def test_towers_of_other_dimensions_get_a_shared_space_that_retrieves(kind, width):
    x, y = applied(kind, pairs(d=12, e=8), pairs(seed=1, n=100, d=12, e=8))
    assert x.shape == y.shape == (100, width)
    assert evaluate_retrieval(x, y, np.arange(100), ks=(1,))["i2t"]["R@1"] > 0.2


def test_csas_cosines_are_canonical_coordinates_weighted_by_correlations():
    """The definition, by hand: unit canonical coordinates, products weighted by the correlations."""
    train, (image, text) = pairs(n=60, d=7, e=5), pairs(seed=1, n=9, d=7, e=5)  # too few to hold any out
    x, y = applied("csa", train, (image, text))
    means = [unit(z).mean(axis=0) for z in train]
    left, right, rho = canonical_axes(*(unit(z) - m for z, m in zip(train, means, strict=True)), [1.0])[0]
    a, b = unit((unit(image) - means[0]) @ left), unit((unit(text) - means[1]) @ right)
    assert np.allclose(x @ y.T, (a * rho) @ b.T, atol=1e-5)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6) and np.allclose(np.linalg.norm(y, axis=1), 1, atol=1e-6)


def test_asifs_coordinates_are_the_largest_similarities_to_the_pairs():
    anchors = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [-1, 0, 0]], np.float32)
    row = RelativeMap(anchors, kept=2, power=2.0)(np.array([[5.0, 0, 1]]))
    expected = unit(np.array([[1.0, 0.8**2, 0, 0]]))
    assert np.allclose(row, expected, atol=1e-6)
    # On the far side of all anchors, and so near to none that the power leaves nothing: the nearest one.
    far = RelativeMap(anchors[:3], kept=2, power=8.0)(np.array([[-1.0, -1, -0.1], [-1.0, 0, 1e-6]]))
    assert (far == np.eye(3)[[2, 2]]).all()
    train = pairs(n=400)
    x, y = applied("asif", train, train)
    assert x.shape == y.shape == (400, 400)
    assert evaluate_retrieval(x, y, np.arange(400), ks=(1,))["i2t"]["R@1"] > 0.5


@pytest.mark.parametrize("kind", list(BASELINES))
def test_rows_that_all_coincide_are_taken(kind):
    for rows in applied(kind, (np.ones((20, 3)), np.eye(3)[[0] * 20]), (np.eye(3), np.eye(3))):
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("kind", "image", "text", "message"),
    [
        ("centered", np.ones((5, 3)), np.ones((5, 3)), "unknown baseline 'centered'; did you mean centred"),
        (
            "whitened",
            np.ones((5, 3)),
            np.ones((5, 4)),
            "whitened: .* 3 against 4\nBaselines .*: procrustes, cca, csa, asif",
        ),
        ("cca", np.ones((5, 3)), np.ones((6, 4)), "not row-paired: 5 image rows against 6 text rows"),
        ("cca", np.zeros((5, 3)), np.ones((5, 4)), "image: 5 of 5 rows are all zeros"),
    ],
)
def test_unusable_rows_are_refused(kind, image, text, message):
    with pytest.raises(InputError, match=message):
        fit_baseline(kind, image, text)
