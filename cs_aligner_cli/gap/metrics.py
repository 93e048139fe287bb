"""Modality-gap metrics of row-paired image and text features, with intervals and tests of no gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arguments import as_whole
from cs_aligner_cli.common.arrays import refuse_masked
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.bounds import metric_bounds
from cs_aligner_cli.gap.clusters import cluster_agreement, label_agreement
from cs_aligner_cli.gap.glossary import in_report_order
from cs_aligner_cli.gap.groups import (
    CENTRED_SQUARE,
    DISTANCE,
    KernelSums,
    Means,
    kernel_sums,
    linear_sums,
    random_groups,
    without,
)
from cs_aligner_cli.gap.kernel_metrics import (
    centroid_metrics,
    divergence_metrics,
    margin_metrics,
    no_gap_levels,
    uniformity_metrics,
)
from cs_aligner_cli.gap.neighbours import nearest_rows, neighbour_chance, neighbour_metrics, neighbour_spreads
from cs_aligner_cli.gap.null import (
    FEW_FLIPS,
    band,
    centroid_flips,
    divergence_flips,
    flip_p,
    frechet_level,
    purity_flips,
    sign_flips,
    sliced_flips,
)
from cs_aligner_cli.gap.paired_rows import (
    DEFAULT_BANDWIDTHS,
    PairedRows,
    RowsLike,
    check_bandwidths,
    check_exact_pairs,
    evenly_spaced,
)
from cs_aligner_cli.gap.results import Measured, Smooth, interval, jackknife
from cs_aligner_cli.gap.separability import separability
from cs_aligner_cli.gap.shape import effective_rank, linear_cka, shuffled_cka, spectrum
from cs_aligner_cli.gap.transport import frechet_covariance, projected, sliced_distance
from cs_aligner_cli.objectives import mutual_information

EXACT_PAIRS = 20_000
SWEEP = (0.3, 0.4, 0.5, 0.7071067811865476, 1.0, 1.414, 2.0)
# Metrics that cost more than a kernel sum are taken on so many pairs, which tell enough.
_FEW_PAIRS = 5000
# A spectrum of fewer rows per dimension is mostly sampling noise, and its first-order change says little: measured, it
# made intervals of ranks two to four times too narrow.
_ROWS_PER_DIMENSION = 5
_FEWEST_CLASSIFIED = 200
_POTENTIAL = 0.5  # exp(-2 d^2), uniformity's, is the Gaussian kernel of this bandwidth


def _nobody(what: str) -> None:
    """Hear nothing of the progress."""


def measure_gap(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Measure the gap between image (N, d) and text (N, d), row i of one belonging to row i of the other.

    An image with several captions is to stand there once, with one of them: repeated, it makes gaps that are none.
    Rows are scaled to unit L2 norm first and everything is computed in float64 on the CPU; a store's arrays
    (``Shards``) are read block by block. ``labels`` (N,), if any, name the class of each pair, "" for none. With x_i,
    y_i the unit rows and mx, my their means, the keys of the returned dict are ``pairs`` (N) and, as ``gap.METRICS``
    orders them:

    - ``centroid_gap``: ||mx - my|| (Liang et al., Mind the Gap, NeurIPS 2022).
    - ``squared_gap_debiased``: s_xx + s_yy - 2 s_xy with s the mean cosines over i != j, also across: the squared gap
      without its sampling bias. Where there is no gap it is as often below 0 as above; it is never clipped.
    - ``paired_distance``: mean_i ||x_i - y_i|| (L2I of Schrodi et al., Two Effects, One Trigger, 2024).
    - ``paired_cosine``: mean_i x_i . y_i; ``margin``: that less the mean cosine of strangers, x_i . y_j with i != j;
      ``margin_standardised``: that in standard deviations of strangers, (x_i - mx) . (y_j - my). The names are ours.
    - ``alignment``: mean_i ||x_i - y_i||^2 (Wang & Isola, ICML 2020, alpha = 2).
    - ``paired_residual``: mean_i ||(x_i - mx) - (y_i - my)||^2, so that alignment = centroid_gap^2 + paired_residual;
      ``centroid_share``: centroid_gap^2 / alignment; ``residual_ratio``: the mean squared distance of pairs over
      that of strangers, means taken away, 1 - 2 margin / (2 - s_xx - s_yy). The names are ours.
    - ``rmg``: m / ((dxx + dyy) / 2 + m) with d(u, v) = (1 - cos(u, v)) / 2, m = mean_i d(x_i, y_i), and dxx and dyy
      the means over i != j (the off-diagonal variant of Schrodi et al. 2024); 0.0 if pairs coincide.
    - ``cs_divergence_v@s``, ``cs_divergence_u@s`` per bandwidth s (printed with ``:.4g``): the Cauchy-Schwarz
      divergence log mean kxx + log mean kyy - 2 log mean kxy with a Gaussian kernel, over all (i, j) (V, Yin et al.,
      ICLR 2026: ``objectives.cs_divergence``) or over i != j, also across (U, which can be negative). Objectives take
      two samples for independent, and keep (i, i) across in their U; of pairs that would be too low.
    - ``mmd_v@s``, ``mmd_u@s``: squared MMD, ``energy_v``, ``energy_u``: energy distance, with the same two ways of
      taking means; U is Gretton's one-sample U statistic (JMLR 2012, equation 4).
    - ``sliced_wasserstein``: the 2-distance over 128 directions; ``frechet_covariance``: see ``gap.transport``; the
      squared Frechet distance is centroid_gap^2 + frechet_covariance.
    - ``uniformity_image``, ``_text``, ``_pooled``: log mean_{i<j} exp(-2 ||a_i - a_j||^2) (Wang & Isola, t = 2).
    - ``conformity_image``, ``_text``: the mean cosine of a row with the others of its modality.
    - ``effective_rank_image``, ``_text`` of centred rows, ``effective_rank_raw_image``, ``_raw_text`` of rows as they
      are: exp of the entropy of the singular values (Roy & Vetterli 2007).
    - ``linear_cka``: see ``gap.shape``; ``mutual_knn``, ``neighbour_purity``, ``hubness_image``, ``hubness_text``: see
      ``gap.neighbours``; ``cluster_pairs``, ``cluster_ari``, ``cluster_v_measure`` and, with labels, ``label_ari``,
      ``label_v_measure`` (of labels with ten pairs each on average): see ``gap.clusters``.
    - ``mutual_information``: the largest bound log N - InfoNCE over temperatures, in nats
      (``objectives.mutual_information``).
    - ``linear_separability``, ``separability_dimensions``: see ``gap.separability``.

    With more than ``exact_pairs`` pairs, what takes all pairs of rows is that of so many evenly spaced pairs: unbiased
    still, with a wider interval. What costs more (neighbours, clusters, CKA, ranks, transport, separability) takes at
    most 5,000.

    Raises InputError on unequal row counts or widths, fewer than 4 pairs, rows that are not finite or of zero length,
    bandwidths that are not positive or print alike, and unless there is a label for every pair.
    """
    return measure(image, text, bandwidths, as_whole(seed, "seed", 0), exact_pairs, labels=labels).values


def measure(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
    sweep: Sequence[float] = (),
    labels: Sequence[str] | None = None,
    tell: Callable[[str], None] = _nobody,
) -> Measured:
    """All of ``measure_gap`` with intervals, tests of no gap and a sweep over bandwidths; arguments and errors alike.

    docs/statistics.md says of every metric how its interval and its test come about, and what they were measured to be
    worth. ``null``: of metrics between the two clouds, what they read without a gap; of metrics of pairs, what shuffled
    pairs read. ``tell`` hears what is being measured, many times.
    """
    check_bandwidths(bandwidths)
    check_exact_pairs(exact_pairs)
    pairs = PairedRows(image, text)
    names = _labels(labels, len(pairs))
    found = Measured(values={"pairs": len(pairs)})
    _all_rows(found, pairs, seed, tell)
    kept = evenly_spaced(len(pairs), exact_pairs)
    x, y = pairs.take(kept)
    _all_pairs(found, x, y, bandwidths, sweep, seed, tell)
    few = evenly_spaced(len(x), _FEW_PAIRS)
    tell("neighbours, clusters and shapes")
    x, y = x[few], y[few]
    _neighbours(found, x, y, seed)
    _shapes(found, x, y, seed)
    _clusters(found, x, y, names[kept[few]], seed)
    found.put_in_order(["pairs", *in_report_order(found.values)])
    return found


def measure_headline(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
) -> Measured:
    """What ``measure`` says of centroids, pairs and kernels: all that a report's headline is made of, and cheap."""
    check_bandwidths(bandwidths)
    check_exact_pairs(exact_pairs)
    pairs = PairedRows(image, text)
    found = Measured(values={"pairs": len(pairs)})
    _all_rows(found, pairs, seed, _nobody)
    _all_pairs(found, *pairs.take(evenly_spaced(len(pairs), exact_pairs)), bandwidths, (), seed, _nobody)
    return found


def _labels(labels: Sequence[str] | None, pairs: int) -> npt.NDArray[np.str_]:
    if labels is None:
        return np.full(pairs, "")
    refuse_masked(labels, "labels")
    if len(labels) != pairs:
        raise InputError(f"labels: expected one for each of {pairs} pairs, got {len(labels)}")
    return np.array(labels, np.str_)


def _all_rows(found: Measured, pairs: PairedRows, seed: int, tell: Callable[[str], None]) -> None:
    """What takes one pass over the rows: centroids and pairs."""
    n = len(pairs)
    groups = random_groups(n, seed)
    members = torch.from_numpy(groups.members)
    per_pair = np.empty((n, 3))
    sums: list[Tensor] = []
    for rows, x, y in pairs.blocks():
        tell(f"centroids and pairs, {rows.stop:,} of {n:,}")
        sums = sums or [torch.zeros(len(groups.starts), z.shape[1], dtype=torch.float64) for z in (x, y)]
        for total, z in zip(sums, (x, y), strict=True):
            total.index_add_(0, members[rows], z)
        squared = (x - y).square().sum(dim=1)
        per_pair[rows] = torch.stack([squared.sqrt(), (x * y).sum(dim=1), squared], dim=1).numpy()
    distance, cosine, alignment = groups.sums(per_pair).T
    linear = linear_sums(sums[0].numpy(), sums[1].numpy(), cosine, groups.sizes)
    means = linear.left_out()
    drawn = centroid_metrics(means)
    drawn |= _pair_metrics(without(distance) / means.n, without(alignment) / means.n, means, drawn["centroid_gap"])
    found.add_left_out(drawn, len(groups.starts), n)
    # Without the cancellation that mean cosines bring where there is no gap.
    gap = float((sums[0] - sums[1]).sum(dim=0).norm()) / n
    found.add({"centroid_gap": gap}, {"centroid_gap": found.spreads["centroid_gap"]}, n)
    found.null.update(no_gap_levels({key: found.values[key] for key in ("centroid_gap", "squared_gap_debiased")}))
    flips = centroid_flips(linear, seed)
    found.tests.update({key: flip_p(float(drawn[key][0]), flipped) for key, flipped in flips.items()})
    found.bands["centroid_gap"] = band(flips["centroid_gap"])
    # What pairs of strangers read.
    strangers = float(means.cross[0])
    alignment_of, within = 2 - 2 * strangers, (1 - float(means.image[0] + means.text[0]) / 2) / 2
    found.null.update(
        paired_cosine=strangers,
        margin=0.0,
        alignment=alignment_of,
        paired_residual=max(alignment_of - gap**2, 0.0),
        rmg=alignment_of / 4 / (within + alignment_of / 4) if alignment_of > 0 else 0.0,
    )


def _pair_metrics(distance: Floats, alignment: Floats, linear: Means, gap: Floats) -> dict[str, Floats]:
    """From the mean distance and squared distance of pairs, mean cosines, and the centroid gap."""
    # On unit rows (1 - cos) / 2 = |x - y|^2 / 4, which does not cancel for near pairs.
    m = alignment / 4
    within = (1 - (linear.image + linear.text) / 2) / 2
    there = alignment > 0
    safe = np.where(there, alignment, 1.0)
    return {
        "paired_distance": distance,
        "paired_cosine": linear.pair,
        "margin": linear.pair - linear.cross,
        "alignment": alignment,
        "paired_residual": np.maximum(alignment - gap**2, 0.0),
        "centroid_share": np.where(there, np.minimum(gap**2 / safe, 1.0), 0.0),
        "rmg": np.where(there, m / np.where(there, within + m, 1.0), 0.0),
        "conformity_image": linear.image,
        "conformity_text": linear.text,
    }


def _all_pairs(
    found: Measured,
    x: Tensor,
    y: Tensor,
    bandwidths: Sequence[float],
    sweep: Sequence[float],
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """What takes all pairs of rows: kernel sums, and InfoNCE's bound."""
    n, groups = len(x), random_groups(len(x), seed)
    printed = {f"{s:.4g}" for s in bandwidths}
    swept = sorted([*bandwidths, *(s for s in sweep if f"{s:.4g}" not in printed)])
    sums = kernel_sums(x, y, groups, sorted({_POTENTIAL, *swept}), tell)
    means = {s: kernel.left_out() for s, kernel in sums.items()}
    drawn, flips = divergence_metrics(means, swept), divergence_flips(sums, swept, seed)
    levels = no_gap_levels({key: float(values[0]) for key, values in drawn.items()})
    wanted = [key for key in drawn if "@" not in key or key.partition("@")[2] in printed]
    cosine = (x * y).sum(dim=1).numpy()
    linear = linear_sums(groups.sums(x.numpy()), groups.sums(y.numpy()), groups.sums(cosine), groups.sizes).left_out()
    shown = {key: drawn[key] for key in wanted} | uniformity_metrics(means[_POTENTIAL])
    found.add_left_out(shown | margin_metrics(linear, means[CENTRED_SQUARE]), len(groups.starts), n)
    found.null.update({key: levels[key] for key in wanted})
    found.tests.update({key: flip_p(float(drawn[key][0]), flips[key]) for key in wanted})
    found.null["paired_distance"] = _stranger_distance(sums[DISTANCE])
    found.null.update(margin_standardised=0.0, residual_ratio=1.0, mutual_information=0.0)
    found.add_plain({"mutual_information": mutual_information(x, y)}, n)
    if sweep:
        found.sweep.extend(_swept(drawn, flips, s, len(groups.starts), n) for s in swept)


def _stranger_distance(distance: KernelSums) -> float:
    n = float(distance.sizes.sum())
    return -float(distance.cross.sum()) / (n * (n - 1))


def _swept(drawn: dict[str, Floats], flips: dict[str, Floats], s: float, groups: int, pairs: int) -> dict[str, Any]:
    row: dict[str, Any] = {"bandwidth": s, "pairs": pairs}
    for name in ("cs_divergence_v", "cs_divergence_u", "mmd_v", "mmd_u"):
        key = f"{name}@{s:.4g}"
        value = float(drawn[key][0])
        row |= {name: value, f"{name}_interval": interval(value, jackknife(drawn[key], groups), metric_bounds(key))}
        row |= {f"{name}_band": band(flips[key]), f"{name}_p": flip_p(value, flips[key])}
    return row


def _neighbours(found: Measured, x: Tensor, y: Tensor, seed: int) -> None:
    """Neighbourhoods, and a classifier."""
    n, groups = len(x), random_groups(len(x), seed)
    near = nearest_rows(x, y)
    shares, spreads = neighbour_metrics(near), neighbour_spreads(near, seed)
    found.add({key: shares[key] for key in spreads}, spreads, n, share=True)
    found.add_plain({key: value for key, value in shares.items() if key not in spreads}, n)
    signs = np.concatenate([np.ones((1, n)), sign_flips(n, FEW_FLIPS, seed)])
    correct, dimensions = separability(x, y, signs, seed)
    accuracy = Smooth(float(correct[:, 0].mean()), correct[:, 0] / n)
    # Below this the folds' classifiers differ by more than their held-out pairs tell.
    sure = n >= _FEWEST_CLASSIFIED
    of_accuracy = {"linear_separability": accuracy.spread(groups)._replace(units=n)} if sure else {}
    found.add({"linear_separability": accuracy.value}, of_accuracy, n, share=True)
    found.add_plain({"separability_dimensions": dimensions}, n)
    found.null.update({**neighbour_chance(n), "linear_separability": 0.5})
    purity = shares["neighbour_purity"]
    found.tests["neighbour_purity"] = flip_p(purity, purity_flips(near.pooled[:, : near.k], seed))
    found.tests["linear_separability"] = flip_p(accuracy.value, correct[:, 1:].mean(axis=0))


def _shapes(found: Measured, x: Tensor, y: Tensor, seed: int) -> None:
    """Transport, CKA and ranks."""
    n, groups = len(x), random_groups(len(x), seed)
    smooth = {"linear_cka": linear_cka(x, y)}
    few = n < _ROWS_PER_DIMENSION * x.shape[1]
    for name, z in (("image", x), ("text", y)):
        centred = spectrum(z, changes=not few)
        found.spectra[name] = centred.shares
        smooth[f"effective_rank_{name}"] = effective_rank(centred)
        smooth[f"effective_rank_raw_{name}"] = effective_rank(spectrum(z, centred=False, changes=not few))
    spreads = {name: metric.spread(groups) for name, metric in smooth.items() if not (few and "rank" in name)}
    found.add({name: metric.value for name, metric in smooth.items()}, spreads, n)
    distances = {"sliced_wasserstein": sliced_distance(x, y, seed), "frechet_covariance": frechet_covariance(x, y)}
    found.add_plain(distances, n)
    flips = sliced_flips(projected(x, y, seed), seed)
    found.null["sliced_wasserstein"] = float(flips[1:].mean())
    found.tests["sliced_wasserstein"] = flip_p(float(flips[0]), flips[1:])
    found.null["frechet_covariance"] = frechet_level(x, y, seed)
    found.null["linear_cka"] = shuffled_cka(x, y, seed)


def _clusters(found: Measured, x: Tensor, y: Tensor, labels: npt.NDArray[np.str_], seed: int) -> None:
    """Clusters of both modalities together, against each other and against labels."""
    of_pairs, null = cluster_agreement(x, y, seed)
    of_labels, label_null, labelled = label_agreement(x, y, labels, seed)
    found.add_plain(of_pairs, len(x))
    found.add_plain(of_labels, labelled)
    found.null.update({**null, **label_null})
