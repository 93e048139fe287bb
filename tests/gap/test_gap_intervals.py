"""Intervals and tests: group sums against loops, the jackknife, U statistics of pairs, sign flips, families, R@K."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from gap_statistics import DOCS, topics_table, wrong_over_runs
from samples import random_rows

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.estimates import Estimate, holm
from cs_aligner_cli.gap import METRICS, measure
from cs_aligner_cli.gap.bounds import _BOUNDS, metric_bounds
from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.groups import CENTRED_SQUARE, DISTANCE, Groups, kernel_sums, linear_sums, random_groups, without
from cs_aligner_cli.gap.kernel_metrics import centroid_metrics, divergence_metrics
from cs_aligner_cli.gap.metrics import measure_headline
from cs_aligner_cli.gap.neighbours import nearest_rows, neighbour_metrics
from cs_aligner_cli.gap.null import divergence_flips, flip_p, purity_flips, sign_flips, sliced_flips
from cs_aligner_cli.gap.recall import mixed_recalls, recall_spreads
from cs_aligner_cli.gap.results import Measurement, Spread, interval, jackknife, score_interval
from cs_aligner_cli.gap.seeds import seed_differences
from cs_aligner_cli.gap.separability import separability
from cs_aligner_cli.gap.transport import projected, sliced_distance
from cs_aligner_cli.report.headline import changes, headline
from cs_aligner_cli.retrieval import evaluate_mixed, evaluate_retrieval, true_ranks


def uneven_groups(n: int, starts: list[int], seed: int = 0) -> Groups:
    return Groups(np.random.default_rng(seed).permutation(n), np.array(starts))


def kernels_of(x, y):
    """(image, text, across) matrices of every kernel, spelled out."""
    distances = [np.linalg.norm(a[:, None] - b[None], axis=2) for a, b in ((x, x), (y, y), (x, y))]
    found = {s: [np.exp(-(d**2) / (2 * s * s)) for d in distances] for s in (0.4, 1.5)}
    found[DISTANCE] = [-d for d in distances]
    return found


def plain_means(matrices):
    others = ~np.eye(len(matrices[0]), dtype=bool)
    return [*(k[others].mean() for k in matrices), np.diag(matrices[2]).mean()]


@pytest.mark.parametrize("starts", [[0, 3, 4, 9], list(range(11))])
def test_means_without_groups_equal_those_of_the_rows_that_are_left(starts):
    x, y = random_rows(0, 11, 4), random_rows(1, 11, 4)
    groups, count = uneven_groups(11, starts), len(starts)
    parts = np.split(groups.order, groups.starts[1:])
    kept = [[*range(count)], *([i for i in range(count) if i != g] for g in range(count))]
    kept += [[i for i in range(count) if i not in two] for two in combinations(range(count), 2)]
    sums = kernel_sums(torch.from_numpy(x), torch.from_numpy(y), groups, [0.4, 1.5])
    for s, matrices in kernels_of(x, y).items():
        found = sums[s].left_out()
        for at, groups_kept in enumerate(kept):
            rows = np.concatenate([parts[g] for g in groups_kept])
            if len(rows) < 2:
                continue
            expected = plain_means([k[np.ix_(rows, rows)] for k in matrices])
            assert [means[at] * np.exp(found.log_unit) for means in found[:4]] == pytest.approx(expected, rel=1e-9)
    across = ((x - x.mean(0)) @ (y - y.mean(0)).T) ** 2
    centred = sums[CENTRED_SQUARE].left_out()
    assert [centred.cross[0], centred.pair[0]] == pytest.approx(plain_means([across] * 3)[2:], rel=1e-9)
    linear = linear_sums(groups.sums(x), groups.sums(y), groups.sums((x * y).sum(1)), groups.sizes).left_out()
    expected = plain_means([x @ x.T, y @ y.T, x @ y.T])
    assert [means[0] for means in linear[:4]] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("starts", [[0, 3, 4, 9], list(range(11))])
def test_flipped_means_equal_those_of_swapped_rows(starts):
    x, y = random_rows(0, 11, 4), random_rows(1, 11, 4)
    groups = uneven_groups(11, starts)
    sums = kernel_sums(torch.from_numpy(x), torch.from_numpy(y), groups, [0.4, 1.5])
    signs = sign_flips(len(starts), 5, seed=3)
    for at, of_groups in enumerate(signs):
        kept = (of_groups[groups.members] > 0)[:, None]
        swapped = np.where(kept, x, y), np.where(kept, y, x)
        for s, matrices in kernels_of(*swapped).items():
            found = sums[s].flipped(signs)
            values = [np.broadcast_to(means, 5)[at] * np.exp(found.log_unit) for means in found[:4]]
            assert values == pytest.approx(plain_means(matrices), rel=1e-9)


def test_flips_of_neighbours_transport_and_classifier_equal_those_of_swapped_rows():
    x, y = (torch.from_numpy(random_rows(seed, 30, 5)) for seed in (0, 1))
    near = nearest_rows(x, y)
    purity = purity_flips(near.pooled[:, : near.k], seed=4, draws=3)
    sliced = sliced_flips(projected(x, y, 0), seed=4, draws=3)
    signs = sign_flips(30, 3, seed=4)
    accuracy, _ = separability(x, y, signs)
    for at, kept in enumerate(torch.from_numpy(signs > 0)[:, :, None]):
        swapped = torch.where(kept, x, y), torch.where(kept, y, x)
        assert purity[at] == pytest.approx(neighbour_metrics(nearest_rows(*swapped))["neighbour_purity"])
        theirs = sliced_flips(projected(*swapped, 0), seed=4, draws=1)[0]
        assert sliced[1 + at] == pytest.approx(theirs)
        assert accuracy[:, at].mean() == pytest.approx(separability(*swapped, np.ones((1, 30)))[0].mean())
    assert sliced[0] == pytest.approx(sliced_distance(x, y, 0), rel=0.3)  # along a quarter of the directions


def test_many_pairs_share_groups_of_equal_size():
    for n, count, sizes in ((1003, 167, {6.0, 7.0}), (250, 125, {2.0}), (5000, 200, {25.0}), (200, 200, {1.0})):
        groups = random_groups(n, seed=4)
        assert len(groups.starts) == count
        assert set(groups.sizes) == sizes
        assert sorted(groups.order) == list(range(n))
    values = np.arange(200.0)
    assert random_groups(200, 0).sums(values).sum() == values.sum()


def audited_pairs(n, seed, d=16):
    """Pairs alike but for noise, whose population has a CS divergence of .064 at 0.7071."""
    rng = np.random.default_rng(seed)
    shared, shift = rng.standard_normal((n, d)), np.zeros(d)
    shift[0] = 0.35
    return tuple(shared + 0.3 * rng.standard_normal((n, d)) + sign * shift for sign in (1, -1))


@pytest.mark.parametrize("metric", ["cs_divergence_u@0.7071", "mmd_u@0.7071", "energy_u", "squared_gap_debiased"])
def test_u_estimates_of_pairs_do_not_depend_on_the_sample_size(metric):
    """Those that keep the pairs (i, i) across, as for two independent samples, are below 0 here at n = 50."""
    truth = measure_headline(*audited_pairs(4000, 0), exact_pairs=2000).values[metric]
    for n, runs in ((50, 60), (150, 20)):
        found = [measure_headline(*audited_pairs(n, seed)) for seed in range(1, 1 + runs)]
        values = [f.values[metric] for f in found]
        error = np.std(values) / runs**0.5
        assert np.mean(values) == pytest.approx(truth, abs=4 * error)
        assert np.mean(values) > 0.5 * truth


def test_the_jackknife_is_exact_for_means_and_halves_what_it_counts_twice():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40)
    mean = jackknife(without(values) / without(np.ones(40)), 40)
    assert mean.variance == pytest.approx(values.var(ddof=1) / 40, rel=0.02)
    # A degenerate U statistic, mean of a_i . a_j over i != j: the variance is 2 tr(S^2) / n^2.
    truth = 2 * 5 / (40 * 39)
    found = []
    for _ in range(200):
        a = rng.standard_normal((40, 5))
        gram = a @ a.T
        np.fill_diagonal(gram, 0)
        n = without(np.ones(40))
        found.append(jackknife(without(gram) / (n * (n - 1)), 40))
    assert np.mean([spread.variance for spread in found]) == pytest.approx(truth, rel=0.2)
    assert np.mean([spread.first @ spread.first for spread in found]) == pytest.approx(2 * truth, rel=0.2)


def test_spreads_of_equal_stores_leave_nothing():
    spread = Spread(np.array([1.0, -2.0, 1.0]), np.array([0.1, 0.2, 0.3], np.float32), 3)
    assert spread.less(spread).error == 0
    assert spread.times(2).variance == pytest.approx(4 * spread.variance)
    assert interval(5.0, spread)[0] < 5 < interval(5.0, spread)[1]


def test_score_intervals_keep_their_width_at_the_ends():
    """Wilson's interval of 100 of 100: 96.3 to 100%."""
    ends = score_interval(1.0, Spread(np.zeros(100), None, 100))
    assert ends == pytest.approx([0.9621, 1.0], abs=0.002)
    hits = np.array([1.0] * 30 + [0.0] * 70)
    middle = score_interval(0.3, Spread((hits - 0.3) / 100, None, 100))
    assert middle == pytest.approx([0.219, 0.396], abs=0.004)


def test_no_gap_is_seldom_told_a_gap_and_a_gap_always():
    rng = np.random.default_rng(5)
    p_values = []
    for _ in range(60):
        shared = rng.standard_normal((60, 8))
        x, y = (torch.from_numpy(shared + rng.standard_normal((60, 8))) for _ in range(2))
        x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
        sums = kernel_sums(x, y, random_groups(60, 0), [0.7])
        value = divergence_metrics({s: kernel.left_out() for s, kernel in sums.items()}, [0.7])["cs_divergence_u@0.7"]
        p_values.append(flip_p(float(value[0]), divergence_flips(sums, [0.7], 0, draws=99)["cs_divergence_u@0.7"]))
    assert np.mean(np.array(p_values) < 0.05) < 0.15
    assert 0.35 < np.mean(p_values) < 0.65
    with pytest.raises(InputError, match="draws: expected at least 1 flip, got 0"):
        sign_flips(4, 0, 0)


def test_the_level_without_a_gap_is_that_of_the_residuals():
    """sqrt(mean squared residual / (N - 1)), residuals being those of pairs with each modality's mean taken away."""
    found = measure(*audited_pairs(120, 1))
    assert found.null["centroid_gap"] == pytest.approx((found.values["paired_residual"] / 119) ** 0.5)
    assert found.null["squared_gap_debiased"] == found.null["mmd_u@1"] == 0
    assert found.tests["centroid_gap"] == 0.001
    assert found.bands["centroid_gap"] < found.values["centroid_gap"]


def test_every_interval_holds_its_value_and_no_gap_stays_no_gap():
    rng = np.random.default_rng(5)
    found = measure(rng.standard_normal((300, 8)), rng.standard_normal((300, 8)))
    for key, (low, high) in found.intervals.items():
        assert low - 1e-9 <= found.values[key] <= high + 1e-9, key
    assert found.intervals["cs_divergence_u@0.5"][0] < 0 < found.intervals["cs_divergence_u@0.5"][1]
    assert set(found.samples) == set(found.values) - {"pairs"}
    assert set(found.null) < set(found.values)
    assert set(found.tests) < set(found.null)


def test_no_level_of_what_is_never_negative_is_below_zero():
    for seed in range(12):
        rows = np.random.default_rng(seed).normal(size=(4 + seed, 5))
        levels = measure_headline(rows, rows, bandwidths=(0.3, 0.5)).null  # V and U differ by rounding alone
        assert all(level >= 0 for key, level in levels.items() if "_v" in key or key == "centroid_gap"), levels


def test_shuffled_pairs_are_the_level_of_metrics_of_pairs():
    rng = np.random.default_rng(6)
    signal = rng.standard_normal((400, 8))
    image, text = signal + rng.standard_normal((400, 8)) + 0.5, signal + rng.standard_normal((400, 8)) - 0.5
    found = measure(image, text)
    shuffled = [measure(image, text[rng.permutation(400)]).values for _ in range(3)]
    for key in (
        "paired_cosine",
        "paired_distance",
        "alignment",
        "mutual_knn",
        "linear_cka",
        "margin",
        "residual_ratio",
    ):
        assert found.null[key] == pytest.approx(np.mean([s[key] for s in shuffled]), rel=0.3, abs=0.03), key
        assert abs(found.null[key] - found.values[key]) > 0.03, key


def test_differences_are_of_the_same_pairs_and_one_family():
    image, text = audited_pairs(150, 7)
    near = text + 0.9 * (image - text)
    stores = {"far": measure(image, text), "near": measure(image, near), "same": measure(image, near)}
    measured = {name: Measurement(found.values, found.spreads) for name, found in stores.items()}
    rows = {(row["store"], row["metric"]): row for row in differences(measured, "near", ["margin", "paired_cosine"])}
    cosine = rows["far", "paired_cosine"]
    difference = stores["near"].values["paired_cosine"] - stores["far"].values["paired_cosine"]
    spread = stores["near"].spreads["paired_cosine"].less(stores["far"].spreads["paired_cosine"])
    assert (cosine["difference"], cosine["interval"]) == (difference, interval(difference, spread))
    assert cosine["clear"] is True
    assert cosine["p_holm"] >= cosine["p"]
    assert rows["same", "margin"]["difference"] == 0
    assert (rows["same", "margin"]["p"], rows["same", "margin"]["clear"]) == (1.0, False)
    other = rows["far", "alignment"]
    assert (other["headline"], other["p_holm"], other["clear"]) == (False, None, False)
    assert ("near", "paired_cosine") not in rows


def test_no_interval_goes_beyond_what_its_metric_can_be():
    wide = Spread(np.array([3.0, -3.0, 1.0, -1.0]), None, 4)
    ends = {"R@1": 1.0, "mixed_R@10": 1.0, "centroid_gap": 2.0, "paired_cosine": 2.0, "cs_divergence_v@0.5": np.inf}
    sides = [Measurement(dict.fromkeys(ends, value), dict.fromkeys(ends, wide)) for value in (0.1, 0.7)]
    sides[1] = sides[1]._replace(spreads=dict.fromkeys(ends, wide.times(0.3)))
    rows = differences(dict(zip(("a", "b"), sides, strict=True)), "b", [])
    over_seeds = seed_differences(
        [dict(zip(("a", "b"), side, strict=True)) for side in (sides, sides[::-1])], "b", ends
    )
    for row in (*rows, *over_seeds):
        end = ends[row["metric"]]
        assert row["interval"] == [-end, end] if end < np.inf else row["interval"][1] > 2, row
    pushed = [np.sign(np.random.default_rng(0).standard_normal((4, 2))) for _ in range(2)]
    rows = np.random.default_rng(0).standard_normal((40, 8))
    equal = np.repeat(np.sign(rows[:6, :3] + 0.1), 5, axis=0)
    clouds = [pushed, (rows, rows), (rows, -rows), (rows, rows[::-1].copy()), (equal, equal), (rows[:5], 2 * rows[:5])]
    for found in (measure(image, text, sweep=[0.3]) for image, text in clouds):
        assert all(row[f"{name}_v"] >= 0 for row in found.sweep for name in ("cs_divergence", "mmd"))
        for key, value in found.values.items():
            low, high = found.intervals.get(key, (value, value))
            least, most = metric_bounds(key)
            assert least <= low <= value <= high <= most, key
    assert {key for key in _BOUNDS if not key.endswith("R")} < {*METRICS}


def test_holm_corrects_by_rank_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_over_seeds_add_the_variance_of_seeds_to_that_of_pairs():
    spread = Spread(np.full(4, 0.05), None, 4)
    still = Spread(np.zeros(4), None, 4)
    runs = [
        {"control": Measurement({"m": 0.0}, {"m": still}), "aligned": Measurement({"m": value}, {"m": spread})}
        for value in (1.0, 2.0, 3.0)
    ]
    (row,) = seed_differences(runs, "aligned", ["m", "missing"])
    assert (row["store"], row["difference"], row["values"]) == ("control", 2.0, [1.0, 2.0, 3.0])
    expected = Estimate(2.0, 1 / 3, 2.0, 0.01, "seeds and images")
    assert row["interval"] == pytest.approx([*expected.interval]) and row["p"] == pytest.approx(expected.p)
    equal = [{name: Measurement({"m": 1.0}, {"m": still}) for name in ("control", "aligned")}] * 2
    assert seed_differences(equal, "aligned", ["m"])[0]["p"] == 1.0


def test_headline_and_changes_are_laid_out_alike():
    spans = {"centroid_gap": [0.1, 0.3], "cs_divergence_u@0.5": [0.0, 0.2]}
    values = {"centroid_gap": 0.2, "margin": -0.5, "cs_divergence_u@0.5": 0.1}
    tested = {"interval": [-0.03, -0.01], "p": 0.01, "p_holm": 0.02, "headline": True, "clear": True}
    report = {
        "stores": {"frozen": {}, "a": values, "b": values},
        "kinds": {"a": "baseline", "b": "store"},
        "intervals": {"a": spans, "b": spans},
        "null": {"a": {"centroid_gap": 0.02}},
        "tests": {"a": {"centroid_gap": 0.0}},
        "retrieval": {"a": {"i2t": {"R@1": 0.25}, "t2i": {"R@1": 0.5}}},
        "recall_intervals": {"a": {"i2t": {"R@1": [0.2, 0.3]}}},
        "subject": "b",
        "differences": [{"store": "a", "metric": "R@1", "difference": -0.021, **tested}],
    }
    table = headline(report)
    titles = [column["title"] for column in table["columns"]]
    assert titles == ["R@1 image to text", "R@1 text to image", "Centroid gap", "Margin", "CS divergence, U, at 0.5"]
    first, second = table["rows"]
    assert (first["store"], first["kind"], second["kind"]) == ("a", "baseline", "store")
    assert [cell.shown for cell in first["cells"]] == ["25.0%", "50.0%", "0.200", "\N{MINUS SIGN}0.500", "0.100"]
    assert first["cells"][0].interval == "20.0 to 30.0"
    assert first["cells"][2].note == "no gap: 0.020, p < 0.001"
    assert second["cells"][0].shown == "\N{EN DASH}"
    (row,) = changes(report)["rows"]
    (cell,) = row["cells"]
    assert (cell.shown, cell.clear, cell.note) == ("\N{MINUS SIGN}2.1 points", True, "p = 0.020")
    assert changes({**report, "differences": []}) == {}


def test_recall_spreads_are_over_images_with_all_their_captions():
    image = random_rows(8, 30, 6)
    owner = np.repeat(np.arange(30), 3)
    text = image[owner] + 0.6 * random_rows(9, 90, 6)
    plain = evaluate_retrieval(image, text, owner)
    found = recall_spreads(true_ranks(image, text, owner), owner, len(image), (1, 5), seed=0)
    for direction in ("i2t", "t2i"):
        for k in ("R@1", "R@5"):
            assert found[direction][k][0] == pytest.approx(plain[direction][k])
    assert found["mean"]["R@1"][0] == pytest.approx((plain["i2t"]["R@1"] + plain["t2i"]["R@1"]) / 2)
    # Captions of an image are one thing: all three of an image count together.
    hits = (true_ranks(image, text, owner)["t2i"].ranks == 1).reshape(30, 3).mean(axis=1)
    assert found["t2i"]["R@1"][1].variance == pytest.approx(hits.var(ddof=1) / 30)
    assert found["i2t"]["R@5"][1].units == 30


def test_mixed_recalls_are_those_of_evaluate_mixed_and_vary_over_images():
    image = random_rows(8, 40, 6)
    owner = np.repeat(np.arange(40), 3)
    text = image[owner] + random_rows(9, 120, 6)
    plain = evaluate_mixed(image, text, owner, (1, 10))
    found, spreads = mixed_recalls(image, text, owner, (1, 10), seed=0)
    assert found == plain
    value, spread = spreads["R@1"]
    assert (value, spread.units) == (pytest.approx(plain["R@1"]), 40)
    # Five corpora ask for the same images again: the error is that of 40 images at most, not of 200 queries.
    binomial = (value * (1 - value) / 40) ** 0.5
    assert 0.3 * binomial < spread.error < 1.1 * binomial
    assert mixed_recalls(image, image, np.arange(40), (1,), seed=0) == ({}, {})


def test_the_centroid_gap_of_a_flip_is_that_of_the_flipped_differences():
    x, y = random_rows(0, 12, 4), random_rows(1, 12, 4)
    groups = random_groups(12, 0)
    linear = linear_sums(x, y, (x * y).sum(1), groups.sizes)
    signs = sign_flips(12, 4, seed=0)
    found = centroid_metrics(linear.flipped(signs))["centroid_gap"]
    assert found == pytest.approx(np.linalg.norm(signs @ (x - y) / 12, axis=1))


@pytest.mark.parametrize("of_seed", [0.0, 0.3])
def test_intervals_over_few_runs_hold_the_truth(of_seed: float) -> None:
    """Satterthwaite's degrees of freedom err in 11% for 5% where two runs differ."""
    trials = 300
    assert wrong_over_runs(2, of_seed, trials, pairs=100) <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_the_page_has_the_metrics_whose_intervals_are_simulated_over_topics():
    shown = DOCS.read_text().split("<!-- simulated topics: begin -->")[1].split("<!-- simulated topics: end -->")[0]
    names = [[line.split("|")[1] for line in text.strip().splitlines()] for text in (shown, topics_table(2))]
    assert names[0] == names[1]
