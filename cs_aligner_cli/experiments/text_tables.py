"""A comparison as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from cs_aligner_cli.common.safe_csv import csv_bytes
from cs_aligner_cli.experiments.columns import Column
from cs_aligner_cli.experiments.comparison import Cell, Comparison, Row

# Behind a difference to the control that the corrected test calls more than chance.
CLEAR = "*"


def cell_text(cell: Cell | None, column: Column) -> str:
    """Mean, standard deviation over seeds, and a mark where the difference to the control is clear; "" for no value."""
    if cell is None:
        return ""
    spread = f" \N{PLUS-MINUS SIGN} {column.written(cell.sd)}" if cell.sd is not None else ""
    clear = CLEAR if cell.difference is not None and cell.difference.clear else ""
    return f"{column.written(cell.mean)}{spread}{clear}"


def markdown(found: Comparison) -> str:
    """A Markdown table, the best value of a column in bold, and what follows from it."""
    lines = [
        f"| configuration | {' | '.join(column.title + column.arrow for column in found.columns)} |",
        f"|---|{'---:|' * len(found.columns)}",
    ]
    for row in found.rows:
        cells = [_bold(row.cells.get(c.key), cell_text(row.cells.get(c.key), c), "**{}**") for c in found.columns]
        lines.append(f"| {escaped(_name(row))} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *found.conclusions, "", _legend(found)]) + "\n"


def latex(found: Comparison) -> str:
    """A booktabs table for a paper."""
    head = " & ".join(["Configuration", *(tex(c.title) + _tex_arrow(c) for c in found.columns)])
    lines = [f"\\begin{{tabular}}{{l{'r' * len(found.columns)}}}", "\\toprule", f"{head} \\\\", "\\midrule"]
    for row in found.rows:
        cells = []
        for column in found.columns:
            cell = row.cells.get(column.key)
            text = cell_text(cell, column).replace(" \N{PLUS-MINUS SIGN} ", " \\pm ").replace(CLEAR, "^{*}")
            cells.append(_bold(cell, f"${text}$" if text else "", "\\textbf{{\\boldmath {}}}"))
        lines.append(f"{tex(_name(row))} & {' & '.join(cells)} \\\\")
    notes = [f"% {line}" for line in (*found.conclusions, _legend(found))]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes]) + "\n"


def csv_table(found: Comparison) -> str:
    """One line per configuration and metric."""
    lines = []
    for row in found.rows:
        for key, cell in row.cells.items():
            test = cell.difference
            lines.append(
                {
                    "configuration": row.name,
                    "metric": key,
                    "mean": cell.mean,
                    "sd": cell.sd,
                    **_span("", cell.interval),
                    "covers": cell.covers,
                    "seeds": len(row.seeds),
                    "difference": test.mean if test else None,
                    **_span("difference_", test.interval if test else None),
                    "p": test.p if test else None,
                    "p_holm": test.p_holm if test else None,
                }
            )
    return csv_bytes(pd.DataFrame(lines)).decode()


def _span(prefix: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _name(row: Row) -> str:
    return f"{row.name} (control)" if row.is_control else row.name


def _bold(cell: Cell | None, text: str, form: str) -> str:
    return form.format(text) if cell is not None and cell.best else text


def _legend(found: Comparison) -> str:
    tested = f" {CLEAR}: differs from {found.control}, p < .05 after Holm's correction." if found.control else ""
    return f"Mean and standard deviation over seeds; bold: the best mean.{tested}"


def escaped(text: str) -> str:
    """Text as it stands in a cell of a Markdown table."""
    return "".join(f"\\{c}" if c in "\\`*_[]|<>#" else c for c in text)


_TEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}


def tex(text: str) -> str:
    """Text as it stands in LaTeX."""
    return "".join(_TEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _tex_arrow(column: Column) -> str:
    return {"higher": " $\\uparrow$", "lower": " $\\downarrow$"}.get(column.better or "", "")


# Suffix to how a comparison is written in it.
FORMATS: dict[str, Callable[[Comparison], str]] = {".md": markdown, ".tex": latex, ".csv": csv_table}
