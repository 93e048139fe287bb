"""Mean ranks over data sets as Markdown, CSV and LaTeX, for the terminal, and as a figure."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from cs_aligner_cli.common.safe_csv import csv_bytes
from cs_aligner_cli.experiments.figures import Figure
from cs_aligner_cli.experiments.ranks import AcrossDataSets, MeanRanks, RankedRow
from cs_aligner_cli.experiments.svg import Chart
from cs_aligner_cli.experiments.text_tables import escaped, tex
from cs_aligner_cli.experiments.text_tables import latex as comparison_latex
from cs_aligner_cli.experiments.text_tables import markdown as comparison_markdown


def columns(found: MeanRanks) -> list[str]:
    """The titles of the table of ranks."""
    return ["configuration", *(f"{name}: {found.objective.title}" for name in found.data_sets), "mean rank"]


def cells(row: RankedRow, found: MeanRanks) -> list[str]:
    """A row of the table of ranks: the objective with its rank in brackets, by data set, and the mean rank."""
    own = [f"{found.objective.written(row.values[name])} ({row.ranks[name]:g})" for name in found.data_sets]
    return [row.name, *own, f"{row.mean_rank:.2f}"]


def markdown(found: AcrossDataSets) -> str:
    """The mean ranks, then every data set's own table."""
    ranks = found.ranks
    lines = [f"| {' | '.join(map(escaped, columns(ranks)))} |", f"|---|{'---:|' * (len(ranks.data_sets) + 1)}"]
    lines += [f"| {' | '.join(map(escaped, cells(row, ranks)))} |" for row in ranks.rows]
    lines += ["", *ranks.conclusions]
    for one in found.comparisons:
        lines += ["", f"## {escaped(one.data_set)}, split {escaped(one.split)}", "", comparison_markdown(one).rstrip()]
    return "\n".join(lines) + "\n"


def latex(found: AcrossDataSets) -> str:
    """A booktabs table of the mean ranks, then one for every data set."""
    ranks = found.ranks
    head = " & ".join(map(tex, columns(ranks)))
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(ranks.data_sets) + 1)}}}", "\\toprule", f"{head} \\\\", "\\midrule"]
    lines += [f"{' & '.join(map(tex, cells(row, ranks)))} \\\\" for row in ranks.rows]
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {line}" for line in ranks.conclusions)]
    for one in found.comparisons:
        lines += ["", f"% {one.data_set}, split {one.split}", comparison_latex(one).rstrip()]
    return "\n".join(lines) + "\n"


def csv_table(found: AcrossDataSets) -> str:
    """One line per configuration and data set."""
    ranks = found.ranks
    lines = [
        {
            "configuration": row.name,
            "data set": name,
            "metric": ranks.objective.key,
            "mean": row.values[name],
            "rank": row.ranks[name],
            "mean rank": row.mean_rank,
        }
        for row in ranks.rows
        for name in ranks.data_sets
    ]
    return csv_bytes(pd.DataFrame(lines)).decode()


def figure(found: MeanRanks) -> Figure:
    """Mean ranks with half a critical difference to both sides: bars that do not overlap can be told apart."""
    half, count = found.critical_difference / 2, len(found.rows)
    alt = "; ".join(f"{row.name}: mean rank {row.mean_rank:.2f}" for row in found.rows)
    ends = found.rows[0].mean_rank - half, found.rows[-1].mean_rank + half
    chart = Chart(alt, ends, (0.5, count + 0.5), "mean rank, 1 is best", "place")
    for place, row in enumerate(found.rows):
        height = float(count - place)
        chart.line([(row.mean_rank - half, height), (row.mean_rank + half, height)], "line s0")
        chart.dot(row.mean_rank, height, "front" if place == 0 else "mean", row.name)
        chart.label(row.mean_rank, height, row.name, dx=0, dy=-10, anchor="middle")
    return Figure(
        f"Mean ranks by {found.objective.title}",
        "Bars reach half of Nemenyi's critical difference to both sides: two that do not overlap differ (5%).",
        chart.render(),
    )


# Suffix to how a comparison over data sets is written in it.
FORMATS: dict[str, Callable[[AcrossDataSets], str]] = {".md": markdown, ".tex": latex, ".csv": csv_table}
