"""Tables of docs/results/few_pairs.json by number of pairs: a column for each, a line for a row or a test."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from table_cells import cell, provenance

Grid = dict[str, dict[str, str]]


def recalls_by_size(content: dict[str, Any]) -> str:
    """R@1, the mean of both ways, of every row; under it what made the table."""

    def both(values: Mapping[str, Sequence[float]]) -> list[float]:
        return [fmean(pair) for pair in zip(values["i2t R@1"], values["t2i R@1"], strict=True)]

    return f"{_grid(_cells(content, lambda values: cell(both(values), 1)))}\n\n{provenance(content)}"


def beside_by_size(content: dict[str, Any]) -> str:
    """R@10 of mixed corpora, centroid gap and margin of every row, means over its seeds."""

    def shown(values: Mapping[str, Sequence[float]]) -> str:
        return f"{fmean(values['mixed R@10']):.1f}, {fmean(values['centroid gap']):.3f}, {fmean(values['margin']):.3f}"

    return _grid(_cells(content, shown))


def _cells(content: dict[str, Any], shown: Callable[[Mapping[str, Sequence[float]]], str]) -> Grid:
    found: Grid = {}
    for row in content["rows"]:
        size, name, seeds = _parts(row["label"])
        found.setdefault(name, {})[size] = shown(row["values"]) + seeds
    return found


def tests_by_size(content: dict[str, Any]) -> str:
    """The tests that a JSON brings: difference, interval, p and Holm's p, and what such a test would find; bold is what
    holds among all tests of the table."""
    found: Grid = {}
    for test in content["tests"]:
        size, one, _ = _parts(test["label"])
        _, other, seeds = _parts(test["against"])
        difference = f"{test['difference']:+.1f}"
        found.setdefault(f"{one}, against {other}", {})[size] = "<br>".join(
            [
                f"{f'**{difference}**' if test['holm'] < 0.05 else difference} [{test['low']:+.1f},"
                f" {test['high']:+.1f}]{seeds}",
                f"p {test['p']:.4f}, Holm's {test['holm']:.4f}",
                f"detectable {test['detectable']:.1f}",
            ]
        )
    return _grid(found)


def candidates(content: dict[str, Any]) -> str:
    """What the best was chosen from, on images taken out of the training split."""
    lines = ["| beside the teacher | draws | R@1 | mixed R@10 | centroid gap |", "|---|---|---|---|---|"]
    for row in content["candidates"]:
        numbers = f"{row['R@1']:.1f} | {row['mixed R@10']:.1f} | {row['centroid gap']:.3f}"
        lines.append(f"| {row['label']} | {row['draws']} | {numbers} |")
    return "\n".join(lines)


def _parts(label: str) -> tuple[str, str, str]:
    """Number of pairs, row, and of how many seeds where it is of fewer than others: '1,000: CS (3 seeds)'."""
    size, _, rest = label.partition(": ")
    found = re.fullmatch(r"(.*?)( \(\d+ seeds\))?", rest)
    assert found is not None
    return size, found[1], found[2] or ""


def _grid(found: Grid) -> str:
    sizes = sorted({size for cells in found.values() for size in cells}, key=lambda size: int(size.replace(",", "")))
    lines = [f"| pairs | {' | '.join(sizes)} |", f"|{'---|' * (1 + len(sizes))}"]
    lines += [f"| {name} | {' | '.join(cells.get(size, '') for size in sizes)} |" for name, cells in found.items()]
    return "\n".join(lines)
