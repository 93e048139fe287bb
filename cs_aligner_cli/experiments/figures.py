"""The figures of a comparison: gap against objective and pictures, a heat map, lines with bands, parallel axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cs_aligner_cli.experiments.columns import Column
from cs_aligner_cli.experiments.comparison import Comparison, Row
from cs_aligner_cli.experiments.svg import Chart, heat_map

_MOST_LABELS = 12
_SERIES = 6


class Figure(NamedTuple):
    """A figure with the question that it answers, and what its marks mean."""

    title: str
    caption: str
    svg: str


def figures(found: Comparison) -> Iterator[Figure]:
    """Every figure that this comparison has the numbers for."""
    objective = found.column(found.objective)
    gap = next((column for column in found.columns if column.role == "gap" and column.key != found.objective), None)
    if gap is not None and len(found.rows) > 1:
        yield _tradeoff(found, gap, objective)
        pictures = next((c for c in found.columns if c.role == "pictures" and c.key != found.objective), None)
        if pictures is not None:
            yield _bought(found, gap, pictures)
    varied = _varied(found.rows)
    if len(varied) == 2:
        for column in (objective, *([gap] if gap else [])):
            yield from _heat(found, column, *varied)
    for key in varied if len(varied) in (1, 2) else ():
        yield from _lines(found, key, varied, objective)
    if len(varied) > 1 and len(found.rows) > 3:
        yield from _parallel(found, list(varied), objective)


def main_figure(found: Comparison) -> Figure | None:
    """The figure that a README would take: the objective over two keys where two vary, else the first one."""
    varied = _varied(found.rows)
    heat = _heat(found, found.column(found.objective), *varied) if len(varied) == 2 else iter(())
    return next(heat, None) or next(figures(found), None)


def _tradeoff(found: Comparison, gap: Column, objective: Column) -> Figure:
    rows = _with_both(found, gap, objective)
    arrows = "".join(f" Arrows go from {row.name}." for row in rows if row.is_control)
    return Figure(
        f"What does a smaller gap cost in {objective.title}?",
        f"Small dots are seeds, large ones their means; filled green: nothing has both a smaller gap and a higher "
        f"{objective.title}.{arrows}",
        _against_gap(rows, gap, objective, fronts=True),
    )


def _bought(found: Comparison, gap: Column, pictures: Column) -> Figure:
    rows = _with_both(found, gap, pictures)
    arrows = "".join(f" Arrows go from {row.name}." for row in rows if row.is_control)
    return Figure(
        f"What does a smaller gap buy in pictures ({pictures.title})?",
        f"Pictures drawn from texts in the place of images. Small dots are seeds, large ones their means.{arrows}",
        _against_gap(rows, gap, pictures, fronts=False),
    )


def _with_both(found: Comparison, gap: Column, other: Column) -> list[Row]:
    return [row for row in found.rows if gap.key in row.cells and other.key in row.cells]


def _against_gap(rows: Sequence[Row], gap: Column, objective: Column, fronts: bool) -> str:
    """The chart of a column over the gap; with ``fronts`` the rows of the Pareto front stand out."""
    xs = [value for row in rows for value in row.cells[gap.key].values]
    ys = [value for row in rows for value in row.cells[objective.key].values]
    control = next((row for row in rows if row.is_control), None)
    alt = "; ".join(
        f"{row.name}: {gap.title} {gap.written(row.cells[gap.key].mean)}, "
        f"{objective.title} {objective.written(row.cells[objective.key].mean)}"
        for row in rows
    )
    chart = Chart(alt, (min(xs), max(xs)), (min(ys), max(ys)), gap.title, objective.title)
    for row in rows:
        for x, y in zip(row.cells[gap.key].values, row.cells[objective.key].values, strict=True):
            chart.dot(x, y, "seed", radius=2.5)
    for row in rows:
        x, y = row.cells[gap.key].mean, row.cells[objective.key].mean
        if control is not None and row is not control:
            chart.line([(control.cells[gap.key].mean, control.cells[objective.key].mean), (x, y)], "arrow", arrow=True)
    for row in rows:
        x, y = row.cells[gap.key].mean, row.cells[objective.key].mean
        on_front = fronts and row.on_front
        chart.dot(x, y, "control" if row.is_control else "front" if on_front else "mean", row.name)
        if len(rows) <= _MOST_LABELS or row.is_control or on_front:
            to_the_left = x > (min(xs) + max(xs)) / 2
            chart.label(x, y, row.name, dx=-9 if to_the_left else 9, anchor="end" if to_the_left else "start")
    return chart.render()


def _varied(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Key to its values, for keys that all rows but named ones (a control beside a grid) set and that differ."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    found: dict[str, list[Any]] = {}
    for key in keys:
        values = list(dict.fromkeys(_text(row.settings[key]) for row in rows if key in row.settings))
        if len(values) > 1:
            found[key] = values
    return found


def _heat(found: Comparison, column: Column, first: str, second: str) -> Iterator[Figure]:
    placed = {
        (_text(row.settings[first]), _text(row.settings[second])): row.cells[column.key].mean
        for row in found.rows
        if first in row.settings and second in row.settings and column.key in row.cells
    }
    rows, columns = (list(dict.fromkeys(pair[i] for pair in placed)) for i in (0, 1))
    if len(rows) < 2 or len(columns) < 2:
        return
    low, high = min(placed.values()), max(placed.values())
    cells = []
    for one in rows:
        line: list[tuple[float, str] | None] = []
        for other in columns:
            value = placed.get((one, other))
            share = 0.5 if value is None or high == low else (value - low) / (high - low)
            share = 1 - share if column.better == "lower" else share
            line.append(None if value is None else (share, column.written(value)))
        cells.append(line)
    alt = "; ".join(f"{a}, {b}: {column.written(value)}" for (a, b), value in placed.items())
    titles = _short(first), _short(second)
    yield Figure(
        f"{column.title} over {titles[0]} and {titles[1]}",
        "Means over seeds; the stronger the colour, the better.",
        heat_map(alt, rows, columns, cells, titles),
    )


def _lines(found: Comparison, key: str, varied: dict[str, list[Any]], column: Column) -> Iterator[Figure]:
    """The objective over one number, a line for every value of the other key."""
    other = next((name for name in varied if name != key), None)
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in found.rows:
        value = row.settings.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and column.key in row.cells:
            name = _text(row.settings[other]) if other in row.settings else ""
            series.setdefault(name, []).append((float(value), row))
    series = {name: sorted(points, key=lambda p: p[0]) for name, points in series.items() if len(points) > 1}
    if not series or len(series) > _SERIES:
        return
    xs = sorted({x for points in series.values() for x, _ in points})
    spans = [
        row.cells[column.key].interval or (row.cells[column.key].mean,) * 2 for p in series.values() for _, row in p
    ]
    place = {x: float(i) for i, x in enumerate(xs)}
    alt = "; ".join(
        f"{name} {x:g}: {column.written(r.cells[column.key].mean)}" for name, p in series.items() for x, r in p
    )
    labels = [(place[x], f"{x:g}") for x in xs]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    chart = Chart(alt, (0.0, len(xs) - 1.0), (low, high), _short(key), column.title, labels)
    for number, (name, points) in enumerate(series.items()):
        kept = [(place[x], row.cells[column.key]) for x, row in points]
        chart.band([(x, *cell.interval) for x, cell in kept if cell.interval], f"band s{number}")
        chart.line([(x, cell.mean) for x, cell in kept], f"line s{number}")
        if name and other:
            chart.label(kept[-1][0], kept[-1][1].mean, f"{_short(other)} {name}", dx=-6, dy=-8, anchor="end")
    yield Figure(f"{column.title} over {_short(key)}", "Means over seeds, with their 95% intervals.", chart.render())


def _parallel(found: Comparison, keys: Sequence[str], column: Column) -> Iterator[Figure]:
    rows = [row for row in found.rows if column.key in row.cells and any(key in row.settings for key in keys)]
    if len(rows) < 2:
        return
    values = {key: list(dict.fromkeys(_text(row.settings.get(key, "")) for row in rows)) for key in keys}
    means = [row.cells[column.key].mean for row in rows]
    low, high = min(means), max(means)
    labels = [(float(i), _short(key)) for i, key in enumerate(keys)] + [(float(len(keys)), column.title)]
    alt = "; ".join(f"{row.name}: {column.written(mean)}" for row, mean in zip(rows, means, strict=True))
    chart = Chart(alt, (0.0, float(len(keys))), (0.0, 1.0), "", "each axis from its first value to its last", labels)
    for row, mean in sorted(zip(rows, means, strict=True), key=lambda pair: pair[1] * column.sign):
        share = 0.5 if high == low else (mean - low) / (high - low)
        points = []
        for i, key in enumerate(keys):
            known = values[key]
            points.append((float(i), known.index(_text(row.settings.get(key, ""))) / max(1, len(known) - 1)))
        good = share if column.sign > 0 else 1 - share
        chart.line([*points, (float(len(keys)), share)], f"path q{min(3, int(good * 4))}")
    for i, key in enumerate(keys):
        for n, value in enumerate(values[key]):
            chart.label(float(i), n / max(1, len(values[key]) - 1), value or "as it stands", dx=6, dy=-4)
    yield Figure(
        f"Which settings go with a good {column.title}?",
        "One line per configuration, the best quarter drawn strongest; the last axis is the result.",
        chart.render(),
    )


def _short(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "kind" else parts[-1]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
