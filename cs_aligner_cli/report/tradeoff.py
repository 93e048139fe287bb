"""The figure that answers what closing the gap cost: every store at its gap and its R@1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.report.canvas import GRID, SERIES, UNPAIRED, Mark, Picture, label_marks, legend, panels

# Marker, colour and legend entry by what a store is; shapes differ too, for those who see no colours.
_KINDS: dict[str, dict[str, Any]] = {
    "store": {"marker": "o", "s": 64, "color": SERIES[1], "label": "this run"},
    "baseline": {"marker": "s", "s": 42, "facecolor": "white", "edgecolor": UNPAIRED, "label": "closed form"},
    "run": {"marker": "D", "s": 48, "color": SERIES[0], "label": "another run"},
}


def gap_against_recall(points: Mapping[str, Mapping[str, Any]], arrow: tuple[str, str] | None = None) -> Picture:
    """Draw each store at its centroid gap and mean R@1 in percent, with 95% intervals: what did closing the gap cost?

    ``points`` maps a store's name to {"gap": ..., "r1_i2t": ..., "r1_t2i": ...}, recalls as fractions in [0, 1];
    "gap_interval" and "r1_interval" (of the mean of both directions) are [low, high], "gap_band" is what 95% of sign
    flips of the gap stay below, and "kind" is "store" (which is what it is without), "baseline" or "run". The last
    store's band is drawn, and an arrow from one of the points to another, as from the control to what is compared
    with it. Raises InputError without any point.
    """
    if not points:
        raise InputError("gap_against_recall: expected at least one store with a gap and with recalls")
    marks = {name: _mark(point) for name, point in points.items()}
    lines = [(marks[arrow[0]], marks[arrow[1]])] if arrow and set(arrow) <= set(marks) else []
    with panels([""], size=(7.4, 4.8)) as (figure, (ax,)):
        for name, point in _last_with_band(points):
            ax.axvspan(0, point["gap_band"], color=GRID, lw=0, zorder=0, label=f"no gap can be told of {name}")
            ax.axvline(point["gap_band"], color=UNPAIRED, lw=1, ls=":", zorder=1)
        for name, point in points.items():
            mark, style = marks[name], _KINDS[point.get("kind", "store")]
            colour = style.get("edgecolor", style.get("color"))
            ax.vlines(mark.x, *mark.up, color=colour, lw=1.2)
            ax.hlines(mark.y, *mark.across, color=colour, lw=1.2)
            # This run's own marks lie on top of those that coincide with them.
            top = 4 if point.get("kind", "store") == "store" else 3
            ax.scatter([mark.x], [mark.y], zorder=top, **{**style, "label": None})
        for kind in dict.fromkeys(point.get("kind", "store") for point in points.values()):
            ax.scatter([], [], **_KINDS[kind])
        _limits(ax, marks)
        for start, end in lines:
            shape = {
                "arrowstyle": "-|>",
                "color": SERIES[1],
                "lw": 1.6,
                "shrinkA": 6,
                "shrinkB": 6,
                "mutation_scale": 14,
            }
            ax.annotate("", (end.x, end.y), (start.x, start.y), arrowprops=shape, zorder=2)
        ax.grid(color=GRID, lw=0.6)
        ax.set_axisbelow(True)
        legend(figure, [ax])
        label_marks(figure, ax, marks, lines)
        return Picture(figure)


def _mark(point: Mapping[str, Any]) -> Mark:
    recall = 50 * (point["r1_i2t"] + point["r1_t2i"])
    low, high = (100 * bound for bound in point.get("r1_interval", [recall / 100] * 2))
    left, right = point.get("gap_interval", [point["gap"]] * 2)
    return Mark(point["gap"], recall, (left, right), (low, high))


def _last_with_band(points: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(n, p) for n, p in points.items() if p.get("kind", "store") == "store" and "gap_band" in p][-1:]


def _limits(ax: Any, marks: Mapping[str, Mark]) -> None:
    recalls = [value for mark in marks.values() for value in (mark.y, *mark.up)]
    widest = max(mark.x for mark in marks.values()) or 1.0
    slack = max(0.15 * (max(recalls) - min(recalls)), 1.0)
    ax.set(
        xlim=(-0.05 * widest, 1.25 * widest),
        ylim=(max(min(recalls) - slack, -1.0), min(max(recalls) + slack, 103.0)),
        xlabel="centroid gap (left: closed)",
        ylabel="R@1 in percent, mean of both ways (up: better)",
    )
