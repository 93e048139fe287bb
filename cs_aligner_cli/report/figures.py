"""Figures of the clouds themselves: projection, cosines, spectra; one panel per store, one scale for all panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.paired_rows import paired_rows
from cs_aligner_cli.report.canvas import (
    GRID,
    IMAGE,
    PAIRED,
    TEXT,
    UNPAIRED,
    Picture,
    legend,
    outer_labels,
    panels,
    powers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Stores: TypeAlias = Mapping[str, tuple[ArrayLike, ArrayLike]]

MAX_POINTS = 1000
_JOINED_PAIRS = 20
_SMALLEST_SHARE = 1e-6


def projection(stores: Stores, seed: int = 0) -> Picture:
    """Draw image and text rows of each store on the two main axes of both together.

    ``stores`` maps a name to row-paired (image (N, d), text (N, d)). d may differ between stores, and one
    basis would favour the store it was fitted on, so every panel has its own PCA (both modalities pooled);
    the axis limits are shared. At most 1,000 pairs are drawn. Raises InputError as ``measure_gap`` does,
    and without any store.
    """
    planes = {name: _plane(image, text) for name, image, text in drawn_pairs(stores, MAX_POINTS, seed)}
    reach = 1.08 * max(float(np.abs(points).max()) for points, _ in planes.values()) or 1.0
    with panels(list(planes)) as (figure, axes):
        for ax, (points, shares) in zip(axes, planes.values(), strict=True):
            scatter_pairs(ax, points)
            ax.set(
                xlim=(-reach, reach),
                ylim=(-reach, reach),
                aspect="equal",
                xlabel=f"axis 1 ({shares[0]:.0%} of variance)",
                ylabel=f"axis 2 ({shares[1]:.0%} of variance)",
            )
        legend(figure, axes, marker_scale=2.5)
        return Picture(figure)


def _plane(image: Floats, text: Floats) -> tuple[Floats, Floats]:
    """Return the pooled rows (2N, 2) on their two main axes, and those axes' shares of the variance."""
    from scipy.linalg import eigh

    pooled = np.concatenate([image, text])
    pooled = pooled - pooled.mean(axis=0)
    tall = len(pooled) >= pooled.shape[1]
    products = pooled.T @ pooled if tall else pooled @ pooled.T
    last = len(products) - 1
    values, axes = eigh(products, subset_by_index=[max(last - 1, 0), last])
    variance = np.maximum(values[::-1], 0)
    points = np.zeros((len(pooled), 2))
    points[:, : len(variance)] = (pooled @ axes if tall else axes * np.sqrt(np.maximum(values, 0)))[:, ::-1]
    # A main axis has no sign of its own; fixing one keeps panels and reruns comparable: image to the left.
    points *= np.where(points[: len(image)].mean(axis=0) > 0, -1.0, 1.0)
    return points, np.append(variance, 0.0)[:2] / max(float(np.trace(products)), np.finfo(np.float64).tiny)


def point_map(image: ArrayLike, text: ArrayLike, kept: npt.NDArray[np.int64]) -> list[dict[str, tuple[float, float]]]:
    """Places of the pairs ``kept`` on the plane of ``projection``, for row-paired image (N, d) and text (N, d).

    Each is {"image": (x, y), "text": (x, y)} with coordinates from 0 to 100, y downwards. Raises InputError as
    ``measure_gap``.
    """
    x, y = (rows.numpy() for rows in paired_rows(image, text))
    points, _ = _plane(x, y)
    reach = float(np.abs(points).max()) or 1.0
    places = np.round(50 + 48 * points * (1, -1) / reach, 2)
    return [{"image": (*places[i],), "text": (*places[len(x) + i],)} for i in kept]


def scatter_pairs(ax: Axes, points: Floats) -> None:
    """Draw image rows and then text rows (2N, 2) as points, and lines between some pairs."""
    image, text = np.split(points, 2)
    ax.axhline(0, color=GRID, lw=0.8, zorder=0)
    ax.axvline(0, color=GRID, lw=0.8, zorder=0)
    ax.scatter(image[:, 0], image[:, 1], s=7, c=IMAGE, marker="o", alpha=0.8, lw=0, label="image", rasterized=True)
    ax.scatter(text[:, 0], text[:, 1], s=7, c=TEXT, marker="^", alpha=0.8, lw=0, label="text", rasterized=True)
    joined = np.linspace(0, len(image) - 1, min(_JOINED_PAIRS, len(image))).astype(int)
    for number, pair in enumerate(joined):
        line = np.stack([image[pair], text[pair]])
        ax.plot(line[:, 0], line[:, 1], color="black", lw=0.7, alpha=0.6, label="" if number else "a pair")


def cosine_histograms(stores: Stores, seed: int = 0) -> Picture:
    """Draw the densities of four kinds of cosine in each store: pairs, non-pairs, within image, within text.

    ``stores`` as in ``projection``; cosines come from at most 1,000 pairs. All panels share bins and axes.
    """
    kinds = {name: _cosines(image, text) for name, image, text in drawn_pairs(stores, MAX_POINTS, seed)}
    values = np.concatenate([cosines for store in kinds.values() for cosines in store.values()])
    # A count and a range, not edges: NumPy sorts values into edges that it does not know to be evenly spaced.
    span = float(values.min()) - 0.01, float(values.max()) + 0.01
    styles: dict[str, dict[str, Any]] = {
        "pairs": {"facecolor": (PAIRED, 0.45), "edgecolor": PAIRED, "histtype": "stepfilled", "lw": 1.2},
        "not pairs": {"color": UNPAIRED, "histtype": "step", "lw": 1.6},
        "image with image": {"color": IMAGE, "histtype": "step", "lw": 1.6, "ls": "--"},
        "text with text": {"color": TEXT, "histtype": "step", "lw": 1.6, "ls": "-."},
    }
    with panels(list(kinds), share_axes=True) as (figure, axes):
        for ax, store in zip(axes, kinds.values(), strict=True):
            ax.axvline(0, color=GRID, lw=0.8, zorder=0)
            for kind, cosines in store.items():
                ax.hist(cosines, bins=60, range=span, density=True, label=kind, **styles[kind])
            ax.set(xlim=span, xlabel="cosine", ylabel="density")
        outer_labels(axes)
        legend(figure, axes)
        return Picture(figure)


def _cosines(image: Floats, text: Floats) -> dict[str, Floats]:
    across = image @ text.T
    return {
        "pairs": np.diagonal(across),
        "not pairs": _beside_diagonal(across),
        "image with image": _beside_diagonal(image @ image.T),
        "text with text": _beside_diagonal(text @ text.T),
    }


def _beside_diagonal(square: Floats) -> Floats:
    """(n (n - 1),) all but the diagonal of (n, n): cut after each of its entries, the diagonal is a column."""
    n = len(square)
    return square.ravel()[:-1].reshape(n - 1, n + 1)[:, 1:].ravel()


def spectra(spectra_of: Mapping[str, Mapping[str, npt.ArrayLike]]) -> Picture:
    """Draw the singular values of each store's centred rows, as shares of their sum, on logarithmic axes.

    ``spectra_of`` maps a store to {"image": (k,), "text": (k,)}, largest first. Raises InputError without any store.
    """
    if not spectra_of:
        raise InputError("spectra: expected at least one store")
    styles = {"image": (IMAGE, "-"), "text": (TEXT, "--")}
    every = np.concatenate([np.asarray(side) for sides in spectra_of.values() for side in sides.values()])
    shown = every[every > _SMALLEST_SHARE]
    # Clouds without extent have no share to show, and a logarithmic axis no limits of its own then.
    limits = (shown.min() / 2, min(2 * shown.max(), 1.5)) if len(shown) else (_SMALLEST_SHARE, 1.0)
    with panels(list(spectra_of), share_axes=True) as (figure, axes):
        for ax, sides in zip(axes, spectra_of.values(), strict=True):
            for name, (colour, style) in styles.items():
                # Below this a share is rounding: a cloud in a plane would stretch the axis over empty decades.
                shares = np.asarray(sides[name])
                line = np.where(shares > _SMALLEST_SHARE, shares, np.nan)
                ax.plot(np.arange(1, len(line) + 1), line, color=colour, ls=style, lw=1.8, label=name)
            ax.set(
                xscale="log",
                yscale="log",
                ylim=limits,
                xlabel="dimension, by its share",
                ylabel="share of the spectrum",
            )
            ax.xaxis.set_major_formatter(powers)
            ax.yaxis.set_major_formatter(powers)
            ax.grid(color=GRID, lw=0.6)
            ax.minorticks_off()
        outer_labels(axes)
        legend(figure, axes)
        return Picture(figure)


def drawn_pairs(stores: Stores, limit: int, seed: int) -> list[tuple[str, Floats, Floats]]:
    """Return (name, image, text) per store as unit rows in float64, at most ``limit`` pairs of them."""
    if not stores:
        raise InputError("figures: expected at least one store whose image and text rows share a space")
    samples = []
    for name, (image, text) in stores.items():
        x, y = (rows.numpy() for rows in paired_rows(image, text))
        kept = np.sort(np.random.default_rng(seed).permutation(len(x))[:limit])
        samples.append((name, x[kept], y[kept]))
    return samples
