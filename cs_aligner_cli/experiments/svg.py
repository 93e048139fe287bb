"""Small charts as SVG that take the page's own colours, light or dark, and carry their words as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 20, 18, 52
_LINE = 14


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two bounds, about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


class Chart:
    """A chart of two linear axes; marks are added in data coordinates. ``alt`` says in words what it shows."""

    def __init__(
        self,
        alt: str,
        x: tuple[float, float],
        y: tuple[float, float],
        x_title: str,
        y_title: str,
        x_labels: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self._alt = alt
        self._x, self._y = _widened(*x), _widened(*y)
        self._parts: list[str] = []
        self._labels: list[tuple[float, float, float]] = []
        for value, label in x_labels or [(t, f"{t:g}") for t in ticks(*self._x)]:
            place = self.x(value)
            self._parts += [_rule(place, _TOP, place, _HEIGHT - _BOTTOM), _text(place, _HEIGHT - _BOTTOM + 18, label)]
        for value in ticks(*self._y):
            place = self.y(value)
            self._parts += [
                _rule(_LEFT, place, _WIDTH - _RIGHT, place),
                _text(_LEFT - 8, place + 4, f"{value:g}", "end"),
            ]
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        self._parts += [
            _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_title, kind="title"),
            f'<g transform="translate(16 {middle}) rotate(-90)">{_text(0, 0, y_title, kind="title")}</g>',
        ]

    def x(self, value: float) -> float:
        """Where a value lies on the horizontal axis, in pixels."""
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Where a value lies on the vertical axis, in pixels."""
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def dot(self, x: float, y: float, kind: str, title: str = "", radius: float = 6) -> None:
        """A round mark of a CSS class, with a title that shows under the mouse."""
        shown = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(
            f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}">{shown}</circle>'
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str, arrow: bool = False) -> None:
        """A line through points, with a head at its end where it is an arrow."""
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        head = ' marker-end="url(#head)"' if arrow else ""
        self._parts.append(f'<polyline class="{kind}" points="{places}"{head}/>')

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """An area between (x, low, high)."""
        outline = [(x, low) for x, low, _ in points] + [(x, high) for x, _, high in reversed(points)]
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in outline)
        self._parts.append(f'<polygon class="{kind}" points="{places}"/>')

    def label(self, x: float, y: float, text: str, dx: float = 9, dy: float = 4, anchor: str = "start") -> None:
        """Text beside a point."""
        place, height = self.x(x) + dx, self.y(y) + dy
        width = 7 * len(text) * (1 if anchor == "start" else -1)
        left, right = sorted((place, place + width))
        # Names of points that lie together go below one another.
        while any(left < end and start < right and abs(height - h) < _LINE for start, end, h in self._labels):
            height += _LINE
        self._labels.append((left, right, height))
        self._parts.append(_text(place, height, text, anchor, "label"))

    def render(self) -> str:
        """The chart as one svg element."""
        head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        head = f'<defs>{head}<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>'
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._alt)}">{head}'
            + "".join(self._parts)
            + "</svg>"
        )


def heat_map(
    alt: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[float, str] | None]],
    titles: tuple[str, str],
) -> str:
    """A table of coloured cells (share of the way from the worst to the best value, text); None where there is none.

    The text is in the cell, so that nothing is told by the colour alone.
    """
    left, top, width, height = 110, 34, max(76, min(150, 520 // max(1, len(columns)))), 40
    parts = [_text(left + width * len(columns) / 2, 14, titles[1], kind="title")]
    parts.append(_text(4, top - 6, titles[0], "start", "title"))
    parts += [_text(left + width * (j + 0.5), top - 6, name) for j, name in enumerate(columns)]
    for i, name in enumerate(rows):
        middle = top + height * (i + 0.5) + 4
        parts.append(_text(left - 8, middle, name, "end"))
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                x, y = left + width * j, top + height * i
                place = f'x="{x}" y="{y}" width="{width - 2}" height="{height - 2}"'
                parts.append(f'<rect class="heat" {place} fill-opacity="{0.08 + 0.6 * cell[0]:.2f}"/>')
                parts.append(_text(x + width / 2 - 1, middle, cell[1], kind="cell"))
    across, down = left + width * len(columns) + 10, top + height * len(rows) + 10
    head = f'<svg viewBox="0 0 {across} {down}" style="max-width:{across}px" role="img" aria-label="{escape(alt)}">'
    return f"{head}{''.join(parts)}</svg>"


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _widened(low: float, high: float) -> tuple[float, float]:
    """A little room on both sides; a span of nothing becomes one of something."""
    room = (high - low) * 0.08 or max(abs(high) * 0.1, 1e-3)
    return low - room, high + room
