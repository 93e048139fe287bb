"""Intervals of the gap's metrics: group sums, bootstrap draws, paired differences, R@1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import random_rows

from cs_aligner_cli.gap import measure
from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.groups import Groups, kernel_sums, linear_sums, random_groups
from cs_aligner_cli.gap.kernel_metrics import DISTANCE, divergence_metrics
from cs_aligner_cli.gap.null import split_halves
from cs_aligner_cli.gap.recall import recall_draws
from cs_aligner_cli.gap.results import interval
from cs_aligner_cli.report.headline import changes, headline
from cs_aligner_cli.retrieval import evaluate_retrieval


def uneven_groups(n: int, starts: list[int], seed: int = 0) -> Groups:
    return Groups(np.random.default_rng(seed).permutation(n), np.array(starts))


def plain_means(kernel, counts, groups):
    """A resampled mean with loops: pairs of rows from two groups, and pairs within one at their share of the sample."""
    parts = np.split(groups.order, groups.starts[1:])
    result = []
    for within in (True, True, False):
        k = kernel[len(result)]
        apart, apart_pairs, inside, inside_pairs, own, every = 0.0, 0, 0.0, 0, 0, 0
        for g, rows in enumerate(parts):
            for h, columns in enumerate(parts):
                pairs = [(i, j) for i in rows for j in columns if not (within and i == j)]
                total = sum(k[i, j] for i, j in pairs)
                every += len(pairs)
                if g == h:
                    own += len(pairs)
                    inside, inside_pairs = inside + counts[g] * total, inside_pairs + counts[g] * len(pairs)
                else:
                    weight = counts[g] * counts[h]
                    apart, apart_pairs = apart + weight * total, apart_pairs + weight * len(pairs)
        share = own / every
        result.append((1 - share) * apart / apart_pairs + share * (inside / inside_pairs if own else 0.0))
    return result


@pytest.mark.parametrize("starts", [[0, 3, 4, 9], list(range(11))])
def test_resampled_means_equal_loops_over_rows(starts):
    x, y = random_rows(0, 11, 4), random_rows(1, 11, 4)
    groups = uneven_groups(11, starts)
    counts = np.random.default_rng(3).multinomial(len(starts), np.full(len(starts), 1 / len(starts)), size=3)
    counts = np.concatenate([np.ones((1, len(starts))), counts])
    sums = kernel_sums(torch.from_numpy(x), torch.from_numpy(y), groups, [0.4, 1.5])
    distances = [np.linalg.norm(a[:, None] - b[None], axis=2) for a, b in ((x, x), (y, y), (x, y))]
    kernels = {s: [np.exp(-(d**2) / (2 * s * s)) for d in distances] for s in (0.4, 1.5)}
    kernels[DISTANCE] = [-d for d in distances]
    for s, kernel in kernels.items():
        means = sums[s].resampled(counts)
        expected = np.array([plain_means(kernel, c, groups) for c in counts]).T
        for found, plain in zip(means[:3], expected, strict=True):
            assert found * np.exp(means.log_unit) == pytest.approx(plain, rel=1e-10)
    linear = linear_sums(x, y, groups).resampled(counts)
    cosines = [x @ x.T, y @ y.T, x @ y.T]
    expected = np.array([plain_means(cosines, c, groups) for c in counts]).T
    for found, plain in zip(linear[:3], expected, strict=True):
        assert found == pytest.approx(plain, rel=1e-10)


def test_halves_of_one_cloud_are_samples_of_their_own():
    x, y = random_rows(2, 12, 5), random_rows(3, 12, 5)
    groups = uneven_groups(12, [0, 2, 5, 9])
    sums = kernel_sums(torch.from_numpy(x), torch.from_numpy(y), groups, [0.7])
    first, second = split_halves(4, 1, seed=0)
    parts = np.split(groups.order, groups.starts[1:])
    for cloud, side in zip((x, y), range(2), strict=True):
        a, b = (cloud[np.concatenate([parts[g] for g in np.flatnonzero(half[0])])] for half in (first, second))
        means = {s: kernel.halves(first, second)[side] for s, kernel in sums.items()}
        found = divergence_metrics(means, [0.7])
        from cs_aligner_cli.objectives import cs_divergence, energy_distance, mmd

        for name, function in (("cs_divergence", cs_divergence), ("mmd", mmd)):
            for estimator in ("v", "u"):
                expected = float(function(torch.from_numpy(a), torch.from_numpy(b), 0.7, estimator=estimator))
                assert float(found[f"{name}_{estimator}@0.7"][0]) == pytest.approx(expected, rel=1e-9)
            assert float(found["energy_u"][0]) == pytest.approx(
                float(energy_distance(torch.from_numpy(a), torch.from_numpy(b), "u"))
            )


def test_many_pairs_share_200_groups_of_equal_size():
    groups = random_groups(1003, seed=4)
    assert len(groups.starts) == 200
    assert set(groups.sizes) == {5.0, 6.0}
    assert sorted(groups.order) == list(range(1003))
    values = np.arange(1003.0)
    assert groups.sums(values).sum() == values.sum()


def noisy_pairs(rng, n, d=16, gap=0.5):
    signal = rng.standard_normal((n, d))
    return signal + rng.standard_normal((n, d)) + gap, signal + rng.standard_normal((n, d)) - gap


def test_intervals_cover_the_value_of_the_population_about_as_often_as_they_say():
    """24 samples of 80 pairs: a 95% interval may miss a few times, and must not be trivially wide."""
    population = measure(*noisy_pairs(np.random.default_rng(0), 3000)).values
    keys = ["centroid_gap_debiased", "paired_cosine", "rmg", "cs_divergence_u@0.7071", "mmd_u@1", "energy_u"]
    hits, widths = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0.0)
    for seed in range(1, 25):
        found = measure(*noisy_pairs(np.random.default_rng(seed), 80))
        for key in keys:
            low, high = found.intervals[key]
            hits[key] += low <= population[key] <= high
            widths[key] = max(widths[key], high - low)
    assert all(19 <= count <= 24 for count in hits.values()), hits
    assert all(widths[key] < population[key] for key in keys), widths


def test_every_interval_holds_its_value_and_no_gap_stays_no_gap():
    rng = np.random.default_rng(5)
    found = measure(rng.standard_normal((300, 8)), rng.standard_normal((300, 8)))
    for key, (low, high) in found.intervals.items():
        # Clones in a draw would push all of these up and away from their value.
        assert low - 1e-9 <= found.values[key] <= high + 1e-9, key
    assert found.intervals["cs_divergence_u@0.5"][0] < 0 < found.intervals["cs_divergence_u@0.5"][1]
    assert set(found.samples) == set(found.values) - {"pairs"}
    assert set(found.null) < set(found.values)


def test_shuffled_pairs_are_the_floor_of_metrics_of_pairs():
    rng = np.random.default_rng(6)
    image, text = noisy_pairs(rng, 400, d=8)
    found = measure(image, text)
    shuffled = [measure(image, text[rng.permutation(400)]).values for _ in range(6)]
    for key in ("paired_cosine", "paired_distance", "alignment", "mutual_knn", "linear_cka"):
        assert found.null[key] == pytest.approx(np.mean([s[key] for s in shuffled]), rel=0.3, abs=0.02), key
        assert abs(found.null[key] - found.values[key]) > 0.03, key


def test_differences_are_of_the_same_draws():
    rng = np.random.default_rng(7)
    image, text = noisy_pairs(rng, 200)
    near = text + 0.9 * (image - text)
    stores = {"far": measure(image, text), "near": measure(image, near), "same": measure(image, near)}
    values, draws = ({name: getattr(found, part) for name, found in stores.items()} for part in ("values", "draws"))
    rows = {(row["store"], row["metric"]): row for row in differences(values, draws, "near")}
    cosine = rows["far", "paired_cosine"]
    assert cosine["difference"] == values["near"]["paired_cosine"] - values["far"]["paired_cosine"]
    assert cosine["interval"] == interval(draws["near"]["paired_cosine"] - draws["far"]["paired_cosine"])
    assert cosine["clear"] is True
    assert rows["same", "paired_cosine"] == {
        "store": "same",
        "metric": "paired_cosine",
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "clear": False,
    }
    assert ("near", "paired_cosine") not in rows


def test_headline_and_changes_are_laid_out_alike():
    spans = {"centroid_gap": [0.1, 0.3], "cs_divergence_u@0.5": [0.0, 0.2]}
    values = {"centroid_gap": 0.2, "paired_cosine": -0.5, "cs_divergence_u@0.5": 0.1}
    report = {
        "stores": {"frozen": {}, "a": values, "b": values},
        "kinds": {"a": "baseline", "b": "store"},
        "intervals": {"a": spans, "b": spans},
        "retrieval": {"a": {"i2t": {"R@1": 0.25}, "t2i": {"R@1": 0.5}}},
        "recall_intervals": {"a": {"i2t": [0.2, 0.3]}},
        "subject": "b",
        "differences": [
            {"store": "a", "metric": "R@1", "difference": -0.021, "interval": [-0.03, -0.01], "clear": True}
        ],
    }
    table = headline(report)
    assert [row["store"] for row in table["rows"]] == ["a", "b"]
    assert [c["title"] for c in table["columns"]][-1] == "CS divergence, U, at 0.5"
    first = [(cell.shown.replace("\N{MINUS SIGN}", "-"), cell.interval) for cell in table["rows"][0]["cells"]]
    assert first == [
        ("25.0%", "20.0 to 30.0"),
        ("50.0%", ""),
        ("0.200", "0.100 to 0.300"),
        ("-0.500", ""),
        ("0.100", "0.000 to 0.200"),
    ]
    (row,) = changes(report)["rows"]
    assert row["cells"][0].shown.replace("\N{MINUS SIGN}", "-") == "-2.1 points"
    assert row["cells"][0].clear
    assert changes({**report, "differences": []}) == {}


def test_recall_draws_are_over_images_with_all_their_captions():
    rng = np.random.default_rng(8)
    image = rng.standard_normal((30, 6))
    owner = np.append(np.repeat(np.arange(30), 2), -1)
    text = np.concatenate([image[owner[:-1]] + rng.standard_normal((60, 6)), rng.standard_normal((1, 6))])
    found = recall_draws(image, text, owner, draws=50, seed=0)
    plain = evaluate_retrieval(image, text, owner, ks=(1,))
    assert {way: found[way][0] for way in ("i2t", "t2i")} == {way: plain[way]["R@1"] for way in ("i2t", "t2i")}
    assert found["mean"][0] == pytest.approx((plain["i2t"]["R@1"] + plain["t2i"]["R@1"]) / 2)
    counts = random_groups(30, 0).counts(50, 0)
    cosines = image @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T / np.linalg.norm(image, axis=1)[:, None]
    hits = owner[cosines.argmax(axis=1)] == np.arange(30)
    assert found["i2t"][7] == pytest.approx((counts[7] * hits).sum() / 30)
