"""The drawing surface of the gap figures: panels, a shared legend, labels that keep clear, SVG, PNG and PDF."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The hues of Okabe and Ito, which stay apart under every common kind of colour blindness, each as dark or light as it
# takes to stand out by 3:1 on a white page and on a dark one.
IMAGE, TEXT, PAIRED, UNPAIRED = "#C07800", "#0072B2", "#009E73", "#757575"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#C0629A", "#C07800", "#3A8FC7")
GRID = "#DDDDDD"

Format: TypeAlias = Literal["svg", "png", "pdf"]
_DPI = 130
# What a file would say of when and by what it was made; without, equal figures give equal bytes.
_UNSAID: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
_PNG_LEVEL = 2  # of zlib: a third of the time of its usual 6, for files a tenth larger
_PANEL_INCHES = 3.4
# Room for axis labels, legend and titles, in inches: fixed, since finding the least takes as long as drawing twice.
_LEFT, _RIGHT, _BELOW, _ABOVE, _BETWEEN_ROWS = 0.85, 0.2, 0.55, 0.85, 0.85
_BETWEEN_COLUMNS = {True: 0.25, False: 0.95}  # whether the inner panels have axis labels of their own: not if shared
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "svg.hashsalt": "csalign",
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited for a paper
}
# Powers of ten up to this exponent are written out, as 0.01; others as 10 with a raised exponent.
_WRITTEN_OUT = 2
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Right and left of a mark, then higher and lower, step by step.
_LABEL_STEP = 12
_LINE_PARTS = 40  # a line is as many small boxes to a label
_LABEL_OFFSETS = tuple((x, side * _LABEL_STEP * step) for step in range(11) for side in (1, -1) for x in (9, -9))


@contextmanager
def panels(
    titles: Sequence[str], *, share_axes: bool = False, size: tuple[float, float] | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure and one titled panel per title: one alone is wider, four are two rows of two.

    ``share_axes`` gives all panels the same limits; ``size``: of the figure, in inches. The style in force is
    matplotlib's own default, whatever the user's configuration says, until the block ends; pyplot and its global
    figures are not touched.
    """
    from matplotlib.figure import Figure

    count = len(titles)
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    width, height = size or (5.8 if count == 1 else columns * _PANEL_INCHES + 0.4, rows * _PANEL_INCHES + 0.5)
    between = _BETWEEN_COLUMNS[share_axes]
    across = (width - _LEFT - _RIGHT - (columns - 1) * between) / columns
    up = (height - _BELOW - _ABOVE - (rows - 1) * _BETWEEN_ROWS) / rows
    room = {
        "left": _LEFT / width,
        "right": 1 - _RIGHT / width,
        "bottom": _BELOW / height,
        "top": 1 - _ABOVE / height,
        "wspace": between / across,
        "hspace": _BETWEEN_ROWS / up,
    }
    with _style():
        figure = Figure(figsize=(width, height), dpi=_DPI)
        figure.subplots_adjust(**room)
        grid = list(figure.subplots(rows, columns, sharex=share_axes, sharey=share_axes, squeeze=False).flat)
        for ax, title in zip(grid, titles, strict=False):
            # A store's name is text, never a formula: "$" must not start one.
            # With a height of its own it is not looked for anew at every drawing.
            ax.set_title(title, parse_math=False, fontweight="bold", fontsize=11, y=1.0)
        for unused in grid[count:]:
            unused.remove()
        yield figure, grid[:count]


def outer_labels(axes: Sequence[Axes]) -> None:
    """Leave the horizontal axis its labels where no panel is below, the vertical one where none is to the left.

    As matplotlib's label_outer, which takes a place without a panel for one.
    """
    places = [ax.get_subplotspec() for ax in axes]
    lowest: dict[int, int] = {}
    for place in places:
        if place is not None:
            lowest[place.colspan.start] = max(place.rowspan.start, lowest.get(place.colspan.start, 0))
    for ax, place in zip(axes, places, strict=True):
        if place is None:
            continue
        below, left = place.rowspan.start == lowest[place.colspan.start], place.colspan.start == 0
        ax.tick_params(labelbottom=below, labelleft=left)
        ax.set(xlabel=ax.get_xlabel() if below else "", ylabel=ax.get_ylabel() if left else "")


def powers(value: float, position: object = None) -> str:
    """The tick of a logarithmic axis as plain text: matplotlib would set every one of them as a formula, slowly."""
    sign, size = "\N{MINUS SIGN}" if value < 0 else "", abs(value)
    exponent = round(math.log10(size)) if size else 0
    if abs(exponent) <= _WRITTEN_OUT or not math.isclose(size, 10.0**exponent):
        return f"{sign}{size:g}"
    return f"{sign}10{str(exponent).translate(_RAISED)}"


def legend(figure: Figure, axes: Sequence[Axes], marker_scale: float = 1.0) -> None:
    """Put the entries of the first panel above all of them, in as many columns as the figure has room for."""
    handles, labels = axes[0].get_legend_handles_labels()
    columns = 2 if len(axes) == 1 and len(labels) == 4 else len(labels)
    shown = figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False, markerscale=marker_scale)
    for handle in shown.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


class Mark(NamedTuple):
    """A mark at (x, y) with its error bars: the spans that they cover."""

    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]


def label_marks(figure: Figure, ax: Axes, marks: Mapping[str, Mark], lines: Sequence[tuple[Mark, Mark]] = ()) -> None:
    """Write each name beside its mark, at the first place that meets no other label, no mark, bar or line, no edge.

    ``lines`` go from one mark to another.
    """
    from matplotlib.transforms import Bbox

    taken = []
    for mark in marks.values():
        (left, bottom), (right, top) = ax.transData.transform([(mark.x, mark.up[0]), (mark.x, mark.up[1])])
        taken.append(Bbox.from_extents(left - 7, bottom - 9, right + 7, top + 9))
        (left, bottom), (right, top) = ax.transData.transform([(mark.across[0], mark.y), (mark.across[1], mark.y)])
        taken.append(Bbox.from_extents(left - 2, bottom - 3, right + 2, top + 3))
    for start, end in lines:
        (left, bottom), (right, top) = ax.transData.transform([(start.x, start.y), (end.x, end.y)])
        for part in range(_LINE_PARTS + 1):
            x, y = (a + (b - a) * part / _LINE_PARTS for a, b in ((left, right), (bottom, top)))
            taken.append(Bbox.from_extents(x - 4, y - 4, x + 4, y + 4))
    for name, mark in marks.items():
        at = mark.x, mark.y
        label = ax.annotate(name, at, xytext=(0, 0), textcoords="offset points", va="center", parse_math=False)
        # The first place comes again at the end: where none is clear, an overlap is better than no label.
        for offset in (*_LABEL_OFFSETS, _LABEL_OFFSETS[0]):
            label.set_position(offset)
            label.set(ha="left" if offset[0] > 0 else "right")
            box = label.get_window_extent()
            inside = ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        if abs(label.get_position()[1]) > _LABEL_STEP:  # too far to be seen as the mark's own
            edge = box.x0 if label.get_position()[0] > 0 else box.x1
            to = ax.transData.inverted().transform((edge, (box.y0 + box.y1) / 2))
            ax.plot([mark.x, to[0]], [mark.y, to[1]], color=UNPAIRED, lw=0.6, zorder=1)
        taken.append(box)


class Picture:
    """A drawn figure: its SVG, and other formats where they are asked for, each of which is drawn anew."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure
        self.width = round(figure.get_figwidth() * _DPI)  # pixels
        self.titles = [ax.get_title() for ax in figure.axes]

    @cached_property
    def svg(self) -> bytes:
        """The figure as SVG."""
        return self.drawn("svg")

    def drawn(self, kind: Format) -> bytes:
        """The figure as a file of that kind; equal figures give equal bytes."""
        content = io.BytesIO()
        packed: dict[str, Any] = {"pil_kwargs": {"compress_level": _PNG_LEVEL}} if kind == "png" else {}
        with _style():
            self._figure.savefig(content, format=kind, dpi=_DPI, facecolor="white", metadata=_UNSAID[kind], **packed)
        return content.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield
