"""The figure that answers what closing the gap cost: every store at its gap and its R@1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.report.canvas import GRID, SERIES, UNPAIRED, Picture, label_marks, legend, panels, rendered

# Marker, colour and legend entry by what a store is; shapes differ too, for those who see no colours.
_KINDS: dict[str, dict[str, Any]] = {
    "store": {"marker": "o", "s": 64, "color": SERIES[1], "label": "this run"},
    "baseline": {"marker": "s", "s": 42, "facecolor": "white", "edgecolor": UNPAIRED, "label": "closed form"},
    "run": {"marker": "D", "s": 48, "color": SERIES[0], "label": "another run"},
}


def gap_against_recall(points: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Draw each store at its centroid gap and mean R@1 in percent, with 95% intervals: what did closing the gap cost?

    ``points`` maps a store's name to {"gap": ..., "r1_i2t": ..., "r1_t2i": ...}, recalls as fractions in [0, 1];
    "gap_interval" and "r1_interval" (of the mean of both directions) are [low, high], "gap_band" is what 95% of sign
    flips of the gap stay below, and "kind" is "store" (which is what it is without), "baseline" or "run". The last
    store's band is drawn. Raises InputError without any point.
    """
    if not points:
        raise InputError("gap_against_recall: expected at least one store with a gap and with recalls")
    marks: dict[str, tuple[float, Sequence[float]]] = {}
    with panels([""]) as (figure, (ax,)):
        figure.set_size_inches(7.4, 4.8)
        for name, point in _last_with_band(points):
            ax.axvspan(0, point["gap_band"], color=GRID, lw=0, zorder=0, label=f"no gap can be told of {name}")
        for name, point in points.items():
            recall = 50 * (point["r1_i2t"] + point["r1_t2i"])
            style = _KINDS[point.get("kind", "store")]
            low, high = (100 * bound for bound in point.get("r1_interval", [recall / 100] * 2))
            left, right = point.get("gap_interval", [point["gap"]] * 2)
            colour = style.get("edgecolor", style.get("color"))
            ax.vlines(point["gap"], low, high, color=colour, lw=1.2)
            ax.hlines(recall, left, right, color=colour, lw=1.2)
            # This run's own marks lie on top of those that coincide with them.
            top = 4 if point.get("kind", "store") == "store" else 3
            ax.scatter([point["gap"]], [recall], zorder=top, **{**style, "label": None})
            marks[name] = point["gap"], (recall, low, high)
        for kind in dict.fromkeys(point.get("kind", "store") for point in points.values()):
            ax.scatter([], [], **_KINDS[kind])
        _limits(ax, marks)
        ax.grid(color=GRID, lw=0.6)
        ax.set_axisbelow(True)
        legend(figure, [ax])
        label_marks(figure, ax, marks)
        return rendered(figure)


def _last_with_band(points: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(n, p) for n, p in points.items() if p.get("kind", "store") == "store" and "gap_band" in p][-1:]


def _limits(ax: Any, marks: Mapping[str, tuple[float, Sequence[float]]]) -> None:
    recalls = [value for _, values in marks.values() for value in values]
    widest = max(gap for gap, _ in marks.values()) or 1.0
    slack = max(0.15 * (max(recalls) - min(recalls)), 1.0)
    ax.set(
        xlim=(-0.05 * widest, 1.25 * widest),
        ylim=(max(min(recalls) - slack, -1.0), min(max(recalls) + slack, 103.0)),
        xlabel="centroid gap (left: closed)",
        ylabel="R@1 in percent, mean of both ways (up: better)",
    )
