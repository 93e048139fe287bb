"""Figures of the gap report: PNG bytes from arrays, one panel per store and one scale for all panels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cs_aligner_cli.arrays import ArrayLike
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.gap.canvas import (
    GRID,
    IMAGE,
    PAIRED,
    SERIES,
    TEXT,
    UNPAIRED,
    label_marks,
    legend,
    panels,
    png,
)
from cs_aligner_cli.gap.metrics import cloud_divergences, paired_rows
from cs_aligner_cli.gap.null import null_floor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats: TypeAlias = npt.NDArray[np.float64]
Stores: TypeAlias = Mapping[str, tuple[ArrayLike, ArrayLike]]

CURVE_BANDWIDTHS = (0.3, 0.4, 0.5, 0.7071067811865476, 1.0, 1.414, 2.0)
_MAX_POINTS = 1000
_MAX_CURVE_PAIRS = 5000
_JOINED_PAIRS = 20
# Below this a divergence of unit rows is rounding, and would stretch the logarithmic axis over empty decades.
_SMALLEST_DIVERGENCE = 1e-6
_CONFLICT_STYLES = (("black", "-"), (SERIES[0], "--"), (SERIES[1], "-."), (SERIES[2], ":"))
_RECALL_MARKS = (("o", 64, "mean of both"), ("^", 26, "image to text"), ("v", 26, "text to image"))


def projection(stores: Stores, seed: int = 0) -> bytes:
    """Draw image and text rows of each store on the two main axes of both together.

    ``stores`` maps a name to row-paired (image (N, d), text (N, d)). d may differ between stores, and one
    basis would favour the store it was fitted on, so every panel has its own PCA (both modalities pooled);
    the axis limits are shared. At most 1,000 pairs are drawn. Raises InputError as ``measure_gap`` does,
    and without any store.
    """
    planes = {name: _plane(image, text) for name, image, text in _samples(stores, _MAX_POINTS, seed)}
    reach = 1.08 * max(float(np.abs(points).max()) for points, _ in planes.values()) or 1.0
    with panels(list(planes)) as (figure, axes):
        for ax, (points, shares) in zip(axes, planes.values(), strict=True):
            _scatter_pairs(ax, points)
            ax.set(
                xlim=(-reach, reach),
                ylim=(-reach, reach),
                aspect="equal",
                xlabel=f"axis 1 ({shares[0]:.0%} of variance)",
                ylabel=f"axis 2 ({shares[1]:.0%} of variance)",
            )
        legend(figure, axes, marker_scale=2.5)
        return png(figure)


def _plane(image: Floats, text: Floats) -> tuple[Floats, Floats]:
    """Return the pooled rows (2N, 2) on their two main axes, and those axes' shares of the variance."""
    pooled = np.concatenate([image, text])
    u, s, _ = np.linalg.svd(pooled - pooled.mean(axis=0), full_matrices=False)
    points = np.zeros((len(pooled), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    # A main axis has no sign of its own; fixing one keeps panels and reruns comparable: image to the left.
    points *= np.where(points[: len(image)].mean(axis=0) > 0, -1.0, 1.0)
    variance = np.append(s, 0.0)[:2] ** 2
    return points, variance / max(float((s**2).sum()), np.finfo(np.float64).tiny)


def _scatter_pairs(ax: Axes, points: Floats) -> None:
    image, text = np.split(points, 2)
    ax.axhline(0, color=GRID, lw=0.8, zorder=0)
    ax.axvline(0, color=GRID, lw=0.8, zorder=0)
    ax.scatter(image[:, 0], image[:, 1], s=9, c=IMAGE, marker="o", alpha=0.55, lw=0, label="image")
    ax.scatter(text[:, 0], text[:, 1], s=9, c=TEXT, marker="^", alpha=0.55, lw=0, label="text")
    joined = np.linspace(0, len(image) - 1, min(_JOINED_PAIRS, len(image))).astype(int)
    for number, pair in enumerate(joined):
        line = np.stack([image[pair], text[pair]])
        ax.plot(line[:, 0], line[:, 1], color="black", lw=0.7, alpha=0.6, label="" if number else "a pair")


def cosine_histograms(stores: Stores, seed: int = 0) -> bytes:
    """Draw the densities of four kinds of cosine in each store: pairs, non-pairs, within image, within text.

    ``stores`` as in ``projection``; cosines come from at most 1,000 pairs. All panels share bins and axes.
    """
    kinds = {name: _cosines(image, text) for name, image, text in _samples(stores, _MAX_POINTS, seed)}
    values = np.concatenate([cosines for store in kinds.values() for cosines in store.values()])
    bins = np.linspace(float(values.min()) - 0.01, float(values.max()) + 0.01, 61).tolist()
    styles: dict[str, dict[str, Any]] = {
        "pairs": {"color": PAIRED, "histtype": "stepfilled", "alpha": 0.6},
        "not pairs": {"color": UNPAIRED, "histtype": "step", "lw": 1.6},
        "image with image": {"color": IMAGE, "histtype": "step", "lw": 1.6, "ls": "--"},
        "text with text": {"color": TEXT, "histtype": "step", "lw": 1.6, "ls": "-."},
    }
    with panels(list(kinds), share_axes=True) as (figure, axes):
        for ax, store in zip(axes, kinds.values(), strict=True):
            ax.axvline(0, color=GRID, lw=0.8, zorder=0)
            for kind, cosines in store.items():
                ax.hist(cosines, bins=bins, density=True, label=kind, **styles[kind])
            ax.set(xlim=(bins[0], bins[-1]), xlabel="cosine", ylabel="density")
            ax.label_outer()
        legend(figure, axes)
        return png(figure)


def _cosines(image: Floats, text: Floats) -> dict[str, Floats]:
    across = image @ text.T
    above = np.triu_indices(len(image), k=1)
    return {
        "pairs": np.diagonal(across),
        "not pairs": across[~np.eye(len(across), dtype=bool)],
        "image with image": (image @ image.T)[above],
        "text with text": (text @ text.T)[above],
    }


def divergence_curve(stores: Stores, bandwidths: Sequence[float] = CURVE_BANDWIDTHS, seed: int = 0) -> bytes:
    """Draw D_CS against kernel bandwidth: V solid, U dashed, and the null floor of V as a grey area.

    ``stores`` as in ``projection``; at most 5,000 pairs are used. Values at or below 0, which U can take,
    have no place on a logarithmic axis and interrupt the line.
    """
    widths = sorted(bandwidths)
    curves = {
        name: _curves(image, text, widths, seed) for name, image, text in _samples(stores, _MAX_CURVE_PAIRS, seed)
    }
    bottom, top = _log_limits([values for v, _, null in curves.values() for values in (v, null)])
    with panels(list(curves), share_axes=True) as (figure, axes):
        for ax, (v, u, null) in zip(axes, curves.values(), strict=True):
            ax.set(xscale="log", yscale="log", ylim=(bottom, top))
            ax.fill_between(widths, bottom, null, color="#C4C4C4", lw=0, label="null floor of V")
            ax.plot(widths, v, color="black", lw=1.8, marker="o", ms=4, label="V, diagonals kept")
            ax.plot(widths, u, color=SERIES[1], lw=1.8, ls="--", marker="s", ms=4, label="U, diagonals left out")
            ax.grid(color=GRID, lw=0.6)
            ax.set_xticks(widths, [f"{s:.2g}" for s in widths])
            ax.set_xticks([], minor=True)
            ax.set(xlabel="kernel bandwidth", ylabel="CS divergence")
            ax.label_outer()
        legend(figure, axes)
        return png(figure)


def _curves(image: Floats, text: Floats, widths: Sequence[float], seed: int) -> tuple[Floats, Floats, Floats]:
    """V and U at every bandwidth and the null floor of V; nan where a value is too small for a log axis."""
    x, y = torch.from_numpy(image), torch.from_numpy(text)
    found, floor = cloud_divergences(x, y, widths), null_floor(x, y, widths, seed)
    v, u, null = (
        np.array([source[f"cs_divergence_{name}@{s:.4g}"] for s in widths])
        for source, name in ((found, "v"), (found, "u"), (floor, "v"))
    )
    v, u = (np.where(values > _SMALLEST_DIVERGENCE, values, np.nan) for values in (v, u))
    return v, u, np.maximum(null, _SMALLEST_DIVERGENCE)


def conflict_curves(sweeps: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draw the share of alignment's pull on pairs that the rest of the loss takes back, against temperature.

    ``sweeps`` maps a store's name to rows of ``objectives.conflict_sweep``: one line for InfoNCE alone, and one for
    every weight of D_CS at the bandwidth nearest to 0.7071. Raises InputError without any store.
    """
    if not sweeps:
        raise InputError("conflict_curves: expected at least one store's sweep")
    with panels(list(sweeps), share_axes=True) as (figure, axes):
        for ax, rows in zip(axes, sweeps.values(), strict=True):
            width = min((row["bandwidth"] for row in rows), key=lambda s: abs(s - 0.7071))
            kept = [row for row in rows if row["bandwidth"] == width]
            weights = sorted({row["weight"] for row in kept})
            alone = [row for row in kept if row["weight"] == weights[0]]
            lines = {"InfoNCE alone": ([row["temperature"] for row in alone], [row["cancelled"] for row in alone])}
            for weight in weights:
                beside = [row for row in kept if row["weight"] == weight]
                label = f"with CS, weight {weight:g}"
                lines[label] = ([row["temperature"] for row in beside], [row["cancelled_with"] for row in beside])
            ax.axhline(0, color=GRID, lw=0.8, zorder=0)
            ax.axhline(1, color=GRID, lw=0.8, zorder=0)
            for (label, (temperatures, shares)), (colour, style) in zip(lines.items(), _CONFLICT_STYLES, strict=False):
                ax.plot(temperatures, shares, color=colour, ls=style, lw=1.8, marker="o", ms=4, label=label)
            ax.set(xscale="log", xlabel="temperature", ylabel="share of the pull taken back")
            ax.set_ylim(-1.05, 1.1)
            ticks = sorted({row["temperature"] for row in kept})
            # A label that would run into its left neighbour's is left out.
            crowded = {b for a, b in itertools.pairwise(ticks) if b < 1.5 * a}
            ax.set_xticks(ticks, ["" if t in crowded else f"{t:g}" for t in ticks])
            ax.set_xticks([], minor=True)
            ax.label_outer()
        legend(figure, axes)
        return png(figure)


def _log_limits(values: Iterable[Floats]) -> tuple[float, float]:
    shown = np.concatenate(list(values))
    shown = shown[np.isfinite(shown)]
    return float(shown.min()) / 2, float(shown.max()) * 2


def gap_against_recall(points: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw each store at its centroid gap and mean R@1 in percent: what did closing the gap cost?

    ``points`` maps a store's name to {"gap": ..., "r1_i2t": ..., "r1_t2i": ...}, recalls as fractions in
    [0, 1]. A bar spans the two directions. Raises InputError without any point.
    """
    if not points:
        raise InputError("gap_against_recall: expected at least one store with a gap and with recalls")
    marks = {name: (p["gap"], _recalls(p)) for name, p in points.items()}
    recalls = [value for _, values in marks.values() for value in values]
    widest = max(gap for gap, _ in marks.values()) or 1.0
    slack = max(0.15 * (max(recalls) - min(recalls)), 1.0)
    with panels([""]) as (figure, (ax,)):
        for number, (gap, values) in enumerate(marks.values()):
            colour = SERIES[number % len(SERIES)]
            ax.vlines(gap, min(values), max(values), color=colour, lw=1.2)
            for value, (marker, size, _) in zip(values, _RECALL_MARKS, strict=True):
                ax.scatter([gap], [value], marker=marker, s=size, color=colour, zorder=3)
        for marker, size, label in _RECALL_MARKS:
            ax.scatter([], [], marker=marker, s=size, color=UNPAIRED, label=label)
        ax.set(
            xlim=(-0.05 * widest, 1.25 * widest),
            ylim=(max(min(recalls) - slack, -1.0), min(max(recalls) + slack, 101.0)),
            xlabel="centroid gap (left: closed)",
            ylabel="R@1 in percent (up: better)",
        )
        ax.grid(color=GRID, lw=0.6)
        ax.set_axisbelow(True)
        legend(figure, [ax])
        label_marks(figure, ax, marks)
        return png(figure)


def _recalls(point: Mapping[str, float]) -> tuple[float, float, float]:
    """Mean, image-to-text and text-to-image R@1 in percent, in the order of _RECALL_MARKS."""
    i2t, t2i = 100 * point["r1_i2t"], 100 * point["r1_t2i"]
    return (i2t + t2i) / 2, i2t, t2i


def _samples(stores: Stores, limit: int, seed: int) -> list[tuple[str, Floats, Floats]]:
    """Return (name, image, text) per store as unit rows in float64, at most ``limit`` pairs of them."""
    if not stores:
        raise InputError("figures: expected at least one store whose image and text rows share a space")
    samples = []
    for name, (image, text) in stores.items():
        x, y = (rows.numpy() for rows in paired_rows(image, text))
        kept = np.sort(np.random.default_rng(seed).permutation(len(x))[:limit])
        samples.append((name, x[kept], y[kept]))
    return samples
