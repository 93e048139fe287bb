"""Tables of names, numbers and text that lose nothing on a narrow screen: columns wrap, or go on in a further table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

_NUMBER = re.compile(r"[-+]?\.?[0-9]")
# Borders and padding: three characters a column, and one more.
_EDGE, _EACH = 1, 3
# Words of text that are longer than this (paths, say) may be folded, where the screen is narrow; names are not.
_LONGEST_WORD = 24
_NARROWEST = 8


@dataclass(frozen=True)
class Table:
    """A table whose first columns, ``names`` of them, say what a row is, and whose others hold numbers or text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def within(self, width: int) -> Iterator[tuple[str, RichTable]]:
        """Yield titles and tables of at most ``width`` characters a line that together hold every cell whole.

        Columns that do not fit beside the others go on in a further table, beside the names once more.
        """
        least = [self._least(column) for column in range(len(self.columns))]
        for number, group in enumerate(_groups(least, self.names, width)):
            title = f"{self.title} (continued)" if number else self.title
            yield title, self._part(group, least, width)

    def _cells(self, column: int) -> list[str]:
        return [row[column] for row in self.rows]

    def _least(self, column: int) -> int:
        """The width below which a name or a number of a column would be broken."""
        cells = [line for cell in self._cells(column) for line in cell.splitlines()]
        heads = max((cell_len(word) for word in self.columns[column].split()), default=0)
        if all(_NUMBER.match(cell) for cell in cells if cell):
            return max([heads, *map(cell_len, cells)])
        longest = max([heads, *(cell_len(word) for cell in cells for word in cell.split())])
        return longest if column < self.names else max(heads, min(longest, _LONGEST_WORD))

    def _holds_numbers(self, column: int) -> bool:
        """Whether most cells of a column that are not empty begin as numbers do."""
        cells = [cell for cell in self._cells(column) if cell]
        return 2 * sum(bool(_NUMBER.match(cell)) for cell in cells) >= len(cells)

    def _part(self, group: Sequence[int], least: Sequence[int], width: int) -> RichTable:
        result = RichTable(header_style="bold")
        widths = self._widths(group, least, width)
        for column, room in zip(group, widths, strict=True):
            head, right = Text(self.columns[column]), column >= self.names and self._holds_numbers(column)
            result.add_column(head, justify="right" if right else "left", width=room, overflow="fold")
        for row in self.rows:
            result.add_row(*(Text(_folded(row[c], room)) for c, room in zip(group, widths, strict=True)))
        return result

    def _widths(self, group: Sequence[int], least: Sequence[int], width: int) -> list[int]:
        """How wide each column is: as it needs, or as near to that as there is room."""
        wanted = [
            max(
                (cell_len(line) for cell in (self.columns[c], *self._cells(c)) for line in cell.splitlines()), default=1
            )
            for c in group
        ]
        widths = [min(least[c], full) for c, full in zip(group, wanted, strict=True)]
        room = width - _EDGE - _EACH * len(group)
        while sum(widths) > room and max(widths) > _NARROWEST:  # a screen too narrow for any two columns
            widths[widths.index(max(widths))] -= 1
        while sum(widths) < room and widths != wanted:
            short = [(now - full, i) for i, (now, full) in enumerate(zip(widths, wanted, strict=True)) if now < full]
            widths[min(short)[1]] += 1
        return widths


def _folded(cell: str, width: int) -> str:
    """A cell with line breaks behind slashes where a path or an address is wider than the column."""

    def fold(word: re.Match[str]) -> str:
        lines = [""]
        for part in re.findall(r"[^/]*/|[^/]+", word[0]):
            lines += [part] if lines[-1] and cell_len(lines[-1] + part) > width else [lines.pop() + part]
        return "\n".join(lines)

    return re.sub(rf"\S{{{width + 1},}}", fold, cell)


def _groups(least: Sequence[int], names: int, width: int) -> list[list[int]]:
    """The columns of each table: those that name a row, and as many others as fit."""
    first = [*range(names)]
    groups, room = [first], width - _EDGE - sum(_EACH + least[column] for column in first)
    left = room
    for column in range(names, len(least)):
        needed = _EACH + least[column]
        if needed > left and len(groups[-1]) > names:
            groups.append(first)
            left = room
        groups[-1] = [*groups[-1], column]
        left -= needed
    return groups
