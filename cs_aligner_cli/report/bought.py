"""The figure that answers what closing the gap buys: every store at its gap, its pictures and its R@1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.report.canvas import GRID, SERIES, UNPAIRED, Mark, Picture, label_marks, legend, panels

# What is drawn of the pictures, the first that they have: metric, its title, what it is multiplied with.
_METRICS = (
    ("accuracy_mean", "attributes drawn right, percent", 100.0),
    ("prompt_R@1", "prompts found from their pictures (R@1), percent", 100.0),
    ("clip_score", "CLIP score", 1.0),
)
# Bounds that are drawn as lines, with how.
_BOUNDS = {"image": ("from the image itself", "--"), "other_image": ("from another image", ":")}


def pictures_beside_gap(report: Mapping[str, Any], drawn: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What the figure is drawn from: the best known metric of the pictures of every store that has a gap and recalls.

    ``drawn`` maps stores and bounds to the metrics of their pictures. {} where fewer than two stores are in both.
    """
    stores = [name for name in report["retrieval"] if name in drawn and "centroid_gap" in report["stores"][name]]
    for metric, title, factor in _METRICS:
        if len(stores) > 1 and all(drawn[name].get(metric) is not None for name in stores):
            return {
                "metric": metric,
                "title": title,
                "stores": {name: factor * drawn[name][metric] for name in stores},
                "bounds": {name: factor * drawn[name][metric] for name in _BOUNDS if metric in drawn.get(name, {})},
            }
    return {}


def gap_against_pictures(
    points: Mapping[str, Mapping[str, float]], title: str, bounds: Mapping[str, float] | None = None
) -> Picture:
    """Draw what each store's pictures are worth, and beside it R@1, both over its centroid gap.

    ``points`` maps a store's name to {"gap": ..., "pictures": ..., "r1": ...}, the last two in what ``title`` says and
    in percent; ``bounds`` to pictures drawn from the "image" itself and from an "other_image". Raises InputError
    without any point.
    """
    if not points:
        raise InputError("gap_against_pictures: expected at least one store with a gap and with pictures")
    widest = max(point["gap"] for point in points.values()) or 1.0
    with panels(["Pictures", "Retrieval"], size=(8.6, 4.2)) as (figure, axes):
        for ax, key, label in zip(axes, ("pictures", "r1"), (title, "R@1 in percent, mean of both ways"), strict=True):
            marks = {name: _mark(point["gap"], point[key]) for name, point in points.items()}
            heights = [mark.y for mark in marks.values()]
            for name, (words, style) in _BOUNDS.items():
                if key == "pictures" and bounds and name in bounds:
                    heights.append(bounds[name])
                    ax.axhline(bounds[name], color=UNPAIRED, lw=1.2, ls=style, label=words)
            slack = max(0.15 * (max(heights) - min(heights)), 1.0)
            ax.scatter([m.x for m in marks.values()], [m.y for m in marks.values()], s=64, color=SERIES[1], zorder=3)
            ax.set(xlim=(-0.05 * widest, 1.25 * widest), ylim=(min(heights) - slack, max(heights) + slack))
            ax.set(xlabel="centroid gap (left: closed)", ylabel=label)
            ax.grid(color=GRID, lw=0.6)
            ax.set_axisbelow(True)
            label_marks(figure, ax, marks)
        if bounds:
            legend(figure, axes)
        return Picture(figure)


def _mark(x: float, y: float) -> Mark:
    return Mark(x, y, (x, x), (y, y))
