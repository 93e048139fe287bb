"""Metrics of whole samples: what the weight of a pair does to them, clusters against labels, rows read in blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, v_measure_score

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap import measure, measure_gap
from cs_aligner_cli.gap.clusters import adjusted_rand, cluster_agreement, label_agreement, v_measure
from cs_aligner_cli.gap.groups import random_groups
from cs_aligner_cli.gap.kmeans import k_means
from cs_aligner_cli.gap.metrics import measure_headline
from cs_aligner_cli.gap.neighbours import neighbour_chance
from cs_aligner_cli.gap.null import frechet_level, sign_flips
from cs_aligner_cli.gap.paired_rows import PairedRows, paired_rows
from cs_aligner_cli.gap.quick import BANDWIDTH, headline_gap
from cs_aligner_cli.gap.results import refuse_constant
from cs_aligner_cli.gap.shape import effective_rank, linear_cka, spectrum
from cs_aligner_cli.gap.transport import frechet_covariance, sliced_distance


def pairs(n, d=12, seed=0, gap=0.3):
    """Unit rows in float64 that share a signal, in unequal directions."""
    rng = np.random.default_rng(seed)
    scales = np.linspace(0.2, 2, d)
    signal = rng.standard_normal((n, d)) * scales
    sides = (signal**power + 0.5 * rng.standard_normal((n, d)) + sign * gap for sign, power in ((1, 1), (-1, 3)))
    return paired_rows(*sides)


METRICS = {
    "cka": linear_cka,
    "rank": lambda x, y: effective_rank(spectrum(x)),
    "raw rank": lambda x, y: effective_rank(spectrum(y, centred=False)),
}


@pytest.mark.parametrize(("name", "d"), [*((name, 12) for name in METRICS), ("cka", 150)])
def test_the_influence_of_a_pair_is_what_leaving_it_out_takes_away(name, d):
    """To first order; the second is of the size of d/n."""
    metric, (x, y) = METRICS[name], pairs(120, d)
    value, influence = metric(x, y)
    kept = [torch.arange(120) != i for i in range(120)]
    left_out = np.array([value - metric(x[rows], y[rows]).value for rows in kept])
    found, expected = influence - influence.mean(), left_out - left_out.mean()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
    assert np.dot(found, expected) / np.dot(found, found) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("name", METRICS)
def test_intervals_by_influence_are_as_wide_as_the_metric_varies(name):
    samples = [METRICS[name](*pairs(150, 8, seed)) for seed in range(40)]
    spread = np.std([sample.value for sample in samples], ddof=1)
    errors = [sample.spread(random_groups(150, 0)).error for sample in samples]
    assert np.mean(errors) == pytest.approx(spread, rel=0.35)


def test_spectra_of_few_rows_per_dimension_get_no_interval():
    spectral = {"effective_rank_image", "effective_rank_raw_text"}
    assert spectral <= set(measure(*pairs(60, 12)).intervals)
    few = measure(*pairs(59, 12))
    assert not spectral & set(few.intervals)
    assert spectral <= set(few.values)


def test_clouds_in_a_plane_are_as_far_apart_as_within_it():
    x, y = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plane = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q.T
    within = frechet_covariance(x, 3 * y)
    assert within > 1
    assert frechet_covariance(x @ plane, 3 * y @ plane) == pytest.approx(within, abs=1e-6)


def test_constant_clouds_have_no_shape():
    still = torch.ones(20, 5, dtype=torch.float64) / 5**0.5
    assert effective_rank(spectrum(still)) == (0.0, pytest.approx(np.zeros(20)))
    assert linear_cka(still, still).value == 0
    assert sliced_distance(still, still, 0) == frechet_covariance(still, still) == 0
    found = measure(still, still)
    assert np.isfinite([bound for span in found.intervals.values() for bound in span]).all()
    with pytest.raises(InputError, match=r"^image: all 20 rows are equal: .*\nLook at the encoder"):
        refuse_constant(found)


@pytest.mark.parametrize("centred", [True, False])
def test_shares_without_changes_are_the_same(centred):
    x = pairs(60, 12)[0]
    flat = torch.cat([x, x[:, :3]], dim=1)  # three dimensions that add nothing
    thin = x * torch.logspace(0, -8, 12, dtype=torch.float64)  # squares of the last ones are lost
    repeated = x[:5].repeat_interleave(3, dim=0)
    narrow = torch.eye(12, dtype=torch.float64)[0] + 1e-7 * x
    for rows in (x, x[:8], flat, thin, repeated, narrow):
        found, whole = spectrum(rows, centred, changes=False), spectrum(rows, centred)
        assert found.changes is None
        np.testing.assert_allclose(found.shares, whole.shares, rtol=1e-6, atol=1e-12)
    still = torch.ones(20, 5, dtype=torch.float64)
    assert spectrum(still, changes=False).shares.tolist() == [0] * 5


def test_frechets_level_is_that_of_rows_whose_members_change_places():
    for x, y in (
        pairs(60, 12),
        pairs(8, 12),
        [rows @ torch.eye(12, 14, dtype=torch.float64) for rows in pairs(60, 12)],
    ):
        a, b = x - x.mean(dim=0), y - y.mean(dim=0)
        flipped = []
        for signs in sign_flips(len(a), 4, seed=3):
            stays = torch.from_numpy(signs > 0)[:, None]
            flipped.append(frechet_covariance(torch.where(stays, a, b), torch.where(stays, b, a)))
        assert frechet_level(x, y, 3) == pytest.approx(np.mean(flipped), rel=1e-6)


def test_clusters_are_scikit_learns():
    rng = np.random.default_rng(5)
    for seed in range(12):
        rows = rng.standard_normal((rng.integers(12, 90), rng.integers(1, 9))) + 2 * rng.integers(0, 3, (1, 1))
        count = int(rng.integers(1, 9))
        found, theirs = k_means(rows, count, seed), KMeans(count, n_init=3, random_state=seed).fit_predict(rows)
        assert adjusted_rand_score(found, theirs) == 1
    twice = np.repeat([[0.0], [1.0], [9.0]], 2, axis=0)
    assert sorted(np.bincount(k_means(twice, 3, 0))) == [2, 2, 2]


def test_memory_does_not_grow_with_rows_times_clusters():
    rows = np.random.default_rng(0).standard_normal((5000, 2))
    tracemalloc.start()
    labels = k_means(rows, 1000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(labels)) == 1000
    assert peak < 100e6  # a table of rows and clusters of every start would have 120 MB, and was made thrice
    of_blocks = k_means(rows[:300], 40, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cs_aligner_cli.gap.kmeans._ENTRIES", 700)  # of two clusters, or of five rows, at a time
        assert (k_means(rows[:300], 40, 0) == of_blocks).all()


def test_agreement_of_a_table_is_scikit_learns():
    rng = np.random.default_rng(1)
    for a, b in ((rng.integers(0, 4, 60), rng.integers(0, 3, 60)), (np.arange(60) % 3, np.arange(60) % 3)):
        table = np.zeros((4, 3))
        np.add.at(table, (a, b), 1)
        table = torch.from_numpy(table)
        assert float(v_measure(table)) == pytest.approx(v_measure_score(a, b), abs=1e-12)
        assert float(adjusted_rand(table)) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    alone = torch.tensor([[7.0]], dtype=torch.float64)
    assert (float(v_measure(alone)), float(adjusted_rand(alone))) == (1, 1)


def labelled_pairs(classes=3, each=30, gap=0.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([f"class {i}" for i in range(classes)], each)
    centres = 4 * np.eye(8)[np.repeat(np.arange(classes), each)]
    push = gap * np.eye(8)[7]
    image, text = (centres + 0.3 * rng.standard_normal(centres.shape) + sign * push for sign in (1, -1))
    return image, text, labels


def test_clusters_follow_labels_where_there_is_no_gap_and_modalities_where_there_is():
    image, text, labels = labelled_pairs()
    near = measure(image, text, labels=labels.tolist())
    assert near.values["label_ari"] == near.values["label_v_measure"] == 1
    far = measure(*labelled_pairs(gap=20)[:2], labels=labels.tolist())
    assert far.values["label_v_measure"] < 0.8
    assert far.values["label_ari"] < 0.6
    assert far.null["label_ari"] == pytest.approx(0, abs=0.05)
    assert "label_ari" not in far.intervals
    assert near.samples["label_ari"] == 90


def test_pairs_without_a_label_stay_out_of_it():
    image, text, labels = labelled_pairs()
    labels[::3] = ""
    kept = labels != ""
    x, y = paired_rows(image, text)
    found, null, count = label_agreement(x, y, labels, seed=0)
    alone, _, _ = label_agreement(x[kept], y[kept], labels[kept], seed=0)
    assert count == 60
    assert found == alone
    assert set(null) == {"label_ari", "label_v_measure"}
    nearly_unique = np.array([f"{i // 9}" for i in range(90)])  # nine pairs each
    for few in (nearly_unique, np.full(90, ""), np.full(90, "one"), np.array(["a", "b"] + [""] * 88)):
        assert label_agreement(x, y, few, seed=0)[0] == {}
    with pytest.raises(InputError, match="labels: expected one for each of 90 pairs, got 3"):
        measure_gap(image, text, labels=["a", "b", "c"])
    with pytest.raises(InputError, match="image: expected a numpy array or a torch tensor, got a list"):
        measure_gap(image.tolist(), text)
    with pytest.raises(InputError, match=r"image: expected .* got a DataFrame\nPass its to_numpy"):
        measure_gap(pd.DataFrame(image), text)


def test_pairs_within_one_cluster_at_chance():
    x, y = pairs(400, gap=0)
    found, null = cluster_agreement(x, y, seed=0)
    shuffled = [cluster_agreement(x, y[np.random.default_rng(s).permutation(400)], seed=0)[0] for s in range(3)]
    for name, value in found.items():
        assert null[name] == pytest.approx(np.mean([other[name] for other in shuffled]), abs=0.04), name
        assert value > null[name] + 0.1


def test_hubness_at_chance_is_that_of_random_lists():
    rng = np.random.default_rng(2)
    counts = np.bincount(np.concatenate([rng.choice(500, 10, replace=False) for _ in range(500)]), minlength=500)
    centred = counts - counts.mean()
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
    assert neighbour_chance(500)["hubness_text"] == pytest.approx(skewness, abs=0.25)


class Recorded:
    """Rows that note how many of them were ever asked for at once."""

    def __init__(self, rows):
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def take(self, rows):
        self.most = max(self.most, len(rows))
        return self.rows[rows]


def test_rows_are_read_in_blocks_and_never_all_at_once():
    rng = np.random.default_rng(3)
    image, text = (rng.standard_normal((20_000, 6)).astype(np.float32) + sign for sign in (0.5, -0.5))
    stated = []
    readers = Recorded(image), Recorded(text)
    found = measure(*readers, bandwidths=(0.5, 1.0), exact_pairs=300, tell=stated.append)
    assert max(reader.most for reader in readers) == 8192
    assert found.values == measure(image, text, bandwidths=(0.5, 1.0), exact_pairs=300).values
    assert any("20,000 of 20,000" in what for what in stated)
    x, y = paired_rows(image, text)
    assert found.values["centroid_gap"] == pytest.approx(float((x.mean(0) - y.mean(0)).norm()), rel=1e-10)
    assert found.values["paired_cosine"] == pytest.approx(float((x * y).sum(1).mean()), rel=1e-10)


def test_an_unusable_row_far_down_is_named():
    rows = np.ones((9000, 3), np.float32)
    rows[[8500, 8999]] = 0
    with pytest.raises(InputError, match=r"^text: 2 of 9000 rows are all zeros .*; the first is row 8500$"):
        PairedRows(np.ones((9000, 3)), Recorded(rows))


def test_a_sweeps_headline_is_that_of_the_report_in_linear_memory():
    x, y = (rows.numpy() for rows in pairs(600))
    found, report = headline_gap(x, y), measure_headline(x, y, bandwidths=(BANDWIDTH,))
    assert found == pytest.approx({metric: report.values[metric] for metric in found}, abs=1e-12)
    x, y = (np.tile(rows, (5, 1)) for rows in (x, y))
    tracemalloc.start()
    headline_gap(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(x) ** 2  # bytes: a quarter of one matrix of all pairs
    x[3] = 0
    with pytest.raises(InputError, match=r"^image: 1 of 3000 rows are all zeros .* the first is row 3"):
        headline_gap(x, y)
