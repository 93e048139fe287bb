"""The gap report as Markdown, short enough for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cs_aligner_cli.report.headline import Cell, changes, headline
from cs_aligner_cli.report.verdict import answers, further


def render_summary(report: Mapping[str, Any]) -> str:
    """The verdict, the headline table, the differences and the notes; ``report`` as in ``render_page``."""
    parts = [f"### Modality gap: {_plain(report['name'])}, {_plain(report['split'])}, {report['pairs']:,} pairs"]
    parts.append(" ".join(f"**{_plain(question)}** {_plain(text)}" for question, text in answers(report)))
    parts += [_plain(paragraph) for paragraph in further(report)]
    table = headline(report)
    if table["rows"]:
        arrows = {"up": "\N{UPWARDS ARROW}", "down": "\N{DOWNWARDS ARROW}"}
        titles = [f"{column['title']} {arrows[column['better']]}" for column in table["columns"]]
        parts.append(_table(titles, table["rows"]))
    differences = changes(report)
    if differences:
        parts.append(
            f"{_plain(differences['subject'])} minus each other store, on the same pairs, with 95% intervals and p "
            "values corrected for the number of columns (Holm; bold: below 0.05):"
        )
        parts.append(_table([column["title"] for column in differences["columns"]], differences["rows"]))
    parts.append("\n".join(f"- {_plain(note)}" for note in (*report.get("findings", ()), *report.get("note", ()))))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["store", *titles], ["---", *(["---:"] * len(titles))]]
    lines += [[_plain(row["store"]), *map(_cell, row["cells"])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    shown = f"**{cell.shown}**" if cell.clear else cell.shown
    rest = "; ".join(part for part in (cell.interval, cell.note) if part)
    return f"{shown} ({rest})" if rest else shown


def _plain(text: str) -> str:
    """Text from data, with what Markdown and HTML would take for markup made harmless."""
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
