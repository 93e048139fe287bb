"""Modality-gap metrics of row-paired image and text features, with bootstrap intervals and null floors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.clusters import cluster_agreement, label_agreement
from cs_aligner_cli.gap.glossary import in_report_order
from cs_aligner_cli.gap.groups import Groups, KernelSums, Means, kernel_sums, linear_sums_of, random_groups
from cs_aligner_cli.gap.kernel_metrics import DISTANCE, centroid_metrics, divergence_metrics, uniformity_metrics
from cs_aligner_cli.gap.neighbours import neighbour_chance, neighbour_metrics, occurrence_metrics
from cs_aligner_cli.gap.null import centroid_floor, divergence_floor, rows_floor
from cs_aligner_cli.gap.nystroem import approximate_divergences
from cs_aligner_cli.gap.paired_rows import DEFAULT_BANDWIDTHS, PairedRows, RowsLike, check_bandwidths, evenly_spaced
from cs_aligner_cli.gap.results import DRAWS, Measured, Smooth, interval
from cs_aligner_cli.gap.separability import separability
from cs_aligner_cli.gap.shape import effective_rank, linear_cka, shuffled_cka, spectrum
from cs_aligner_cli.gap.transport import frechet_between, frechet_covariance, sliced, sliced_distance
from cs_aligner_cli.objectives import mutual_information

EXACT_PAIRS = 20_000
SWEEP = (0.3, 0.4, 0.5, 0.7071067811865476, 1.0, 1.414, 2.0)
# Metrics that cost more than a kernel sum are taken on so many pairs, which tell enough.
_FEW_PAIRS = 5000
# A spectrum of fewer rows per dimension is mostly sampling noise, and its first-order change says little: measured, it
# made intervals of ranks two to four times too narrow, those of Frechet's part 1.7 times too wide.
_ROWS_PER_DIMENSION = 5
_SPECTRAL = ("frechet_covariance", *(f"effective_rank_{name}" for name in ("image", "text", "raw_image", "raw_text")))
_POTENTIAL = 0.5  # exp(-2 d^2), uniformity's, is the Gaussian kernel of this bandwidth


def measure_gap(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Measure the gap between image (N, d) and text (N, d), row i of one belonging to row i of the other.

    Rows are scaled to unit L2 norm first and everything is computed in float64 on the CPU; a store's arrays
    (``Shards``) are read block by block. ``labels`` (N,), if any, name the class of each pair, "" for none. With x_i,
    y_i the unit rows and mx, my their means, the keys of the returned dict are ``pairs`` (N) and, as ``gap.METRICS``
    orders them:

    - ``centroid_gap``: ||mx - my|| (Liang et al., Mind the Gap, NeurIPS 2022).
    - ``centroid_gap_debiased``: sqrt(s_xx + s_yy - 2 s_xy) with s the mean cosines, off-diagonal within a modality,
      which takes the sampling bias out of the square. Where the squared estimate is negative, 0.0 is returned. It
      takes the clouds for independent samples; rows that are pairs leave a bias of -2 (mean paired cosine - mean
      unpaired cosine) / N in the square.
    - ``paired_distance``: mean_i ||x_i - y_i|| (L2I of Schrodi et al., Two Effects, One Trigger, 2024).
    - ``paired_cosine``: mean_i x_i . y_i.
    - ``alignment``: mean_i ||x_i - y_i||^2 (Wang & Isola, ICML 2020, alpha = 2).
    - ``paired_residual``: mean_i ||(x_i - mx) - (y_i - my)||^2, so that alignment = centroid_gap^2 + paired_residual;
      ``centroid_share``: centroid_gap^2 / alignment. The names are ours.
    - ``rmg``: m / ((dxx + dyy) / 2 + m) with d(u, v) = (1 - cos(u, v)) / 2, m = mean_i d(x_i, y_i), and dxx and dyy
      the means over i != j (the off-diagonal variant of Schrodi et al. 2024); 0.0 if pairs coincide.
    - ``cs_divergence_v@s``, ``cs_divergence_u@s`` per bandwidth s (printed with ``:.4g``): the Cauchy-Schwarz
      divergence log mean kxx + log mean kyy - 2 log mean kxy with a Gaussian kernel, diagonals kept (V, Yin et al.,
      ICLR 2026) or left out of kxx and kyy (U, which can be negative): ``objectives.cs_divergence``.
    - ``mmd_v@s``, ``mmd_u@s``: ``objectives.mmd``, squared; ``energy_v``, ``energy_u``: ``objectives.energy_distance``.
    - ``sliced_wasserstein``: the 2-distance over 128 directions; ``frechet_covariance``: see ``gap.transport``; the
      squared Frechet distance is centroid_gap^2 + frechet_covariance.
    - ``uniformity_image``, ``_text``, ``_pooled``: log mean_{i<j} exp(-2 ||a_i - a_j||^2) (Wang & Isola, t = 2).
    - ``conformity_image``, ``_text``: the mean cosine of a row with the others of its modality.
    - ``effective_rank_image``, ``_text`` of centred rows, ``effective_rank_raw_image``, ``_raw_text`` of rows as they
      are: exp of the entropy of the singular values (Roy & Vetterli 2007).
    - ``linear_cka``: see ``gap.shape``; ``mutual_knn``, ``neighbour_purity``, ``hubness_image``, ``hubness_text``: see
      ``gap.neighbours``; ``cluster_pairs``, ``cluster_ari``, ``cluster_v_measure`` and, with labels, ``label_ari``,
      ``label_v_measure``: see ``gap.clusters``.
    - ``mutual_information``: the largest bound log N - InfoNCE over temperatures, in nats
      (``objectives.mutual_information``).
    - ``linear_separability``, ``separability_dimensions``: see ``gap.separability``.

    With more than ``exact_pairs`` pairs, what takes all pairs of rows is not exact any more: it is that of so many
    evenly spaced pairs. But of D_CS there is V alone, by Nystroem's method on all rows with 1,024 landmarks, and beside
    it ``cs_divergence_fall@s``, its fall from half the landmarks to all of them, which says about how far
    it lies too low. What costs more (neighbours, clusters, CKA, ranks, transport, separability) takes at most 5,000.

    Raises InputError on unequal row counts or widths, fewer than 4 pairs, rows that are not finite or of zero length,
    bandwidths that are not positive or print alike, and unless there is a label for every pair.
    """
    return measure(image, text, bandwidths, seed, exact_pairs, labels=labels).values


def measure(
    image: RowsLike,
    text: RowsLike,
    bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS,
    seed: int = 0,
    exact_pairs: int = EXACT_PAIRS,
    sweep: Sequence[float] = (),
    labels: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> Measured:
    """All of ``measure_gap`` with intervals, null floors and a sweep over bandwidths; arguments and errors are its own.

    Intervals are of a bootstrap over pairs, drawn in at most 200 random groups. Null floors: of metrics between two
    clouds, two halves of one modality (``null_floor``); of metrics of pairs, shuffled pairs. ``tell`` hears what is
    being measured, many times.
    """
    check_bandwidths(bandwidths)
    pairs = PairedRows(image, text)
    names = _labels(labels, len(pairs))
    found = Measured(values={"pairs": len(pairs)})
    _all_rows(found, pairs, seed, tell)
    if len(pairs) > exact_pairs:
        found.add_plain(approximate_divergences(pairs, bandwidths, seed, tell), len(pairs))
    kept = evenly_spaced(len(pairs), exact_pairs)
    x, y = pairs.take(kept)
    _all_pairs(found, x, y, bandwidths, sweep, seed, tell)
    few = evenly_spaced(len(x), _FEW_PAIRS)
    tell("neighbours, clusters and shapes")
    _few_pairs(found, x[few], y[few], names[kept[few]], seed)
    found.put_in_order(["pairs", *in_report_order(found.values)])
    return found


def _labels(labels: Sequence[str] | None, pairs: int) -> npt.NDArray[np.str_]:
    if labels is None:
        return np.full(pairs, "")
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
    counts = groups.counts(DRAWS, seed)
    linear = linear_sums_of(sums[0].numpy(), sums[1].numpy(), groups.sizes)
    means = linear.resampled(counts)
    drawn = centroid_metrics(means)
    drawn |= _pair_metrics(per_pair, groups, counts, means, drawn["centroid_gap"])
    found.add(drawn, n)
    # Without the cancellation that mean cosines bring where there is no gap.
    found.values["centroid_gap"] = gap = float((sums[0] - sums[1]).sum(dim=0).norm()) / n
    found.null.update(centroid_floor(linear, seed))
    # What pairs of strangers read: the same rows, shuffled.
    strangers = (n * float(means.cross[0]) - found.values["paired_cosine"]) / (n - 1)
    alignment, within = 2 - 2 * strangers, (1 - float(means.image[0] + means.text[0]) / 2) / 2
    found.null.update(
        paired_cosine=strangers,
        alignment=alignment,
        paired_residual=max(alignment - gap**2, 0.0),
        rmg=alignment / 4 / (within + alignment / 4) if alignment > 0 else 0.0,
    )


def _pair_metrics(per_pair: Floats, groups: Groups, counts: Floats, linear: Means, gap: Floats) -> dict[str, Floats]:
    """``per_pair`` (n, 3): distance, cosine and squared distance of each pair."""
    distance, cosine, alignment = (counts @ groups.sums(per_pair) / (counts @ groups.sizes)[:, None]).T
    # On unit rows (1 - cos) / 2 = |x - y|^2 / 4, which does not cancel for near pairs.
    m = alignment / 4
    within = (1 - (linear.image + linear.text) / 2) / 2
    there = alignment > 0
    safe = np.where(there, alignment, 1.0)
    return {
        "paired_distance": distance,
        "paired_cosine": cosine,
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
    groups = random_groups(len(x), seed)
    printed = {f"{s:.4g}" for s in bandwidths}
    swept = sorted([*bandwidths, *(s for s in sweep if f"{s:.4g}" not in printed)])
    sums = kernel_sums(x, y, groups, sorted({_POTENTIAL, *swept}), tell)
    counts = groups.counts(DRAWS, seed)
    means = {s: kernel.resampled(counts) for s, kernel in sums.items()}
    drawn = divergence_metrics(means, swept)
    floor = divergence_floor(sums, swept, seed)
    exact = len(x) == found.values["pairs"]
    wanted = [key for key in drawn if "@" not in key or key.partition("@")[2] in printed]
    wanted = [key for key in wanted if exact or not key.startswith("cs_divergence")]
    found.add({key: drawn[key] for key in wanted} | uniformity_metrics(means[_POTENTIAL]), len(x))
    found.null.update({key: floor[key] for key in floor if key in found.values})
    found.null["paired_distance"] = _stranger_distance(sums[DISTANCE], x, y)
    found.add_plain({"mutual_information": mutual_information(x, y)}, len(x))
    found.null["mutual_information"] = 0.0
    if sweep:
        found.sweep.extend(_swept(drawn, floor, s, len(x)) for s in swept)


def _stranger_distance(distance: KernelSums, x: Tensor, y: Tensor) -> float:
    n = len(x)
    return (-float(distance.cross.sum()) - float((x - y).norm(dim=1).sum())) / (n * (n - 1))


def _swept(drawn: dict[str, Floats], floor: dict[str, float], s: float, pairs: int) -> dict[str, Any]:
    row: dict[str, Any] = {"bandwidth": s, "pairs": pairs}
    for name in ("cs_divergence_v", "cs_divergence_u", "mmd_v", "mmd_u"):
        values = drawn[f"{name}@{s:.4g}"]
        row |= {name: float(values[0]), f"{name}_interval": interval(values[1:])}
        row[f"{name}_null"] = floor[f"{name}@{s:.4g}"]
    return row


def _few_pairs(found: Measured, x: Tensor, y: Tensor, labels: npt.NDArray[np.str_], seed: int) -> None:
    """What is taken on a sample of pairs where there are very many: neighbours, shapes, classifiers."""
    n = len(x)
    groups = random_groups(n, seed)
    counts = groups.counts(DRAWS, seed)
    correct, dimensions = separability(x, y, seed)
    near = neighbour_metrics(x, y)
    per_pair = {"mutual_knn": near.mutual, "neighbour_purity": near.purity, "linear_separability": correct}
    sums = groups.sums(np.stack(list(per_pair.values()), axis=1))
    found.add(dict(zip(per_pair, (counts @ sums / (counts @ groups.sizes)[:, None]).T, strict=True)), n)
    found.add(occurrence_metrics(near, groups, counts), n)
    found.null.update({**neighbour_chance(n), "linear_separability": 0.5})
    smooth = {
        "sliced_wasserstein": sliced(x, y, seed),
        "frechet_covariance": frechet_covariance(x, y),
        "linear_cka": linear_cka(x, y),
    }
    for name, z in (("image", x), ("text", y)):
        centred = spectrum(z)
        found.spectra[name] = centred.shares
        smooth[f"effective_rank_{name}"] = effective_rank(centred)
        smooth[f"effective_rank_raw_{name}"] = effective_rank(spectrum(z, centred=False))
    agreements, null = cluster_agreement(x, y, seed)
    unsure = _SPECTRAL if n < _ROWS_PER_DIMENSION * x.shape[1] else ()
    found.add_plain({name: metric.value for name, metric in smooth.items() if name in unsure}, n)
    sure = {name: metric for name, metric in smooth.items() if name not in unsure}
    found.add(_drawn({**sure, **agreements}, groups, counts), n)
    found.null.update(null)
    of_labels, null, labelled = label_agreement(x, y, labels, seed)
    found.add(_drawn(of_labels, groups, counts), labelled)
    found.null.update(null)
    found.add_plain({"separability_dimensions": dimensions}, n)
    found.null["sliced_wasserstein"] = rows_floor(x, y, lambda a, b: sliced_distance(a, b, seed), seed)
    found.null["frechet_covariance"] = rows_floor(x, y, frechet_between, seed)
    found.null["linear_cka"] = shuffled_cka(x, y, seed)


def _drawn(smooth: dict[str, Smooth], groups: Groups, counts: Floats) -> dict[str, Floats]:
    return {name: metric.drawn(groups, counts) for name, metric in smooth.items()}
