"""Finished runs from anywhere below a folder, ranked where they were measured alike, with where each comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.columns import better_of
from cs_aligner_cli.experiments.comparison import Comparison, Row, compare
from cs_aligner_cli.experiments.ledger import Ledger
from cs_aligner_cli.experiments.measured_run import MeasuredRun, find_run
from cs_aligner_cli.experiments.plan import experiment_id
from cs_aligner_cli.experiments.text_tables import cell_text, escaped
from cs_aligner_cli.files.artifact import RECORD, fingerprint, read_record
from cs_aligner_cli.recipe.sweep import Direction
from cs_aligner_cli.retrieval.metrics import DIRECTIONS

_Frozen = ConfigDict(frozen=True, extra="forbid")


class Entry(BaseModel):
    """Where a row of a board stands and what it comes from."""

    model_config = _Frozen
    place: int = Field(description="1 for the best mean of the objective; equal means share a place")
    name: str = Field(description="of the row in the board's comparison")
    recipe: str = Field(description="fingerprint of the resolved recipe without its seed, names and folders")
    code: list[str] = Field(description="versions of csalign, each with its commit where it ran in a repository")
    date: str = Field(description="when the last of its runs was measured, local time")


class Board(BaseModel):
    """What was measured alike: one split of one data set by one protocol."""

    model_config = _Frozen
    comparison: Comparison = Field(description="of its configurations, without a control")
    entries: list[Entry] = Field(description="best first")

    @property
    def ranked(self) -> list[tuple[Entry, Row]]:
        """Every entry with its row."""
        rows = {row.name: row for row in self.comparison.rows}
        return [(entry, rows[entry.name]) for entry in self.entries]


class LeftOut(BaseModel):
    """A run that is on no board, and why."""

    model_config = _Frozen
    folder: str
    why: str


class Leaderboard(BaseModel):
    """Boards of everything that was measured below a folder, the largest first; what they rank was measured alike."""

    model_config = _Frozen
    folder: str
    objective: str
    boards: list[Board]
    left_out: list[LeftOut]


class _Found(NamedTuple):
    """A finished run: what tells its board from others, its id, and when it was measured."""

    run: MeasuredRun
    board: str
    id: str
    date: str


def leaderboard(folder: Path, objective: str, direction: Direction | None = None) -> Leaderboard:
    """All finished runs below ``folder``, ranked by the objective, which is better the way that ``better_of`` says.

    Raises InputError if there are none, or none has the objective's metric, and as ``better_of``.
    """
    better_of(objective, direction)
    found, left_out = _finished(folder)
    boards: dict[str, list[_Found]] = {}
    for one in found:
        boards.setdefault(one.board, []).append(one)
    made = []
    for members in sorted(boards.values(), key=len, reverse=True):
        able = [one for one in members if one.run.number(objective) is not None]
        left_out += [_left_out(folder, one, f"has no metric {objective}") for one in members if one not in able]
        if able:
            made.append(_board(able, objective, direction))
    if not made:
        reasons = "".join(f"\n  {one.folder}: {one.why}" for one in left_out[:5])
        raise InputError(f"{folder}: no finished run below it can be ranked by {objective}{reasons}")
    return Leaderboard(folder=str(folder.resolve()), objective=objective, boards=made, left_out=left_out)


def markdown(found: Leaderboard) -> str:
    """Every board as a Markdown table, and what was left out."""
    lines = ["# Leaderboard", ""]
    for board in found.boards:
        table = board.comparison
        protocol = "; ".join(f"{key}: {value}" for key, value in table.protocol.items())
        lines += [f"## {escaped(table.data_set)}, split {escaped(table.split)}", ""]
        lines += [f"{table.images:,} test images. {escaped(protocol)}.", ""]
        titles = [column.title + column.arrow for column in table.columns]
        lines += [f"| | configuration | {' | '.join(titles)} | seeds | recipe | code | date |"]
        lines += [f"|---:|---|{'---:|' * (len(titles) + 1)}---|---|---|"]
        for entry, row in board.ranked:
            cells = [cell_text(row.cells.get(column.key), column) for column in table.columns]
            origin = f"{entry.recipe} | {escaped(', '.join(entry.code))} | {entry.date}"
            lines.append(f"| {entry.place} | {escaped(row.name)} | {' | '.join(cells)} | {len(row.seeds)} | {origin} |")
        lines.append("")
    lines += [f"- {escaped(one.folder)}: {escaped(one.why)}" for one in found.left_out]
    return "\n".join(lines).rstrip() + "\n"


def _finished(folder: Path) -> tuple[list[_Found], list[LeftOut]]:
    """Every finished run below a folder, each experiment once, and what is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "Name a folder that holds runs, for example runs.")
    found: dict[str, _Found] = {}
    left_out = []
    names: dict[Path, dict[str, str]] = {}  # of every sweep, what its runs are configurations of
    for place in sorted(path.parent for path in folder.rglob("run.json") if ".partial" not in str(path)):
        try:
            sweep = place.parent.parent
            if sweep not in names:
                names[sweep] = {s.id: f"{sweep.name}: {s.configuration}" for s in Ledger(sweep).states()}
            one = _read(place, names[sweep].get(place.name))
        except InputError as error:
            # The folder stands before it.
            why = str(error).splitlines()[0].removeprefix(f"{place}: ").replace(f"{place}/", "")
            left_out.append(LeftOut(folder=str(place.relative_to(folder)), why=why))
            continue
        if one.id in found:
            first = found[one.id].run.folder.relative_to(folder)
            left_out.append(_left_out(folder, one, f"is the same experiment as {first}"))
        else:
            found[one.id] = one
    return [*found.values()], left_out


def _read(place: Path, name: str | None) -> _Found:
    run = find_run(str(place))[0]
    record = read_record(place / "eval_retrieval" / RECORD)
    queries = [run.records[direction][0]["image"].astype(str) for direction in DIRECTIONS]
    content = hashlib.sha256(pd.util.hash_pandas_object(pd.concat(queries), index=False).to_numpy().tobytes())
    board = fingerprint([run.data_set, run.split, run.protocol, content.hexdigest()])
    named = replace(run, configuration=name or run.record["name"])
    return _Found(named, board, experiment_id(run.record["recipe"]), str(record["finished"]))


def _board(members: Sequence[_Found], objective: str, direction: Direction | None) -> Board:
    table = compare([one.run for one in members], None, objective, direction)
    column = table.column(objective)
    origin = {str(one.run.folder): one for one in members}
    rows = sorted(table.rows, key=lambda row: -column.sign * row.cells[objective].mean)
    means = [row.cells[objective].mean for row in rows]
    entries = []
    for row in rows:
        runs = [origin[folder] for folder in row.runs]
        entries.append(
            Entry(
                place=1 + means.index(row.cells[objective].mean),
                name=row.name,
                recipe=experiment_id(runs[0].run.record["recipe"], seeded=False)[:12],
                code=[*dict.fromkeys(_code(one.run) for one in runs)],
                date=max(one.date for one in runs)[:10],
            )
        )
    return Board(comparison=table, entries=entries)


def _code(run: MeasuredRun) -> str:
    commit, _, changes = run.record["git"].partition("+")
    version = f"csalign {run.record['versions']['csalign']}"
    return f"{version} ({commit[:9]}{'+' + changes if changes else ''})" if commit else version


def _left_out(folder: Path, one: _Found, why: str) -> LeftOut:
    return LeftOut(folder=str(one.run.folder.relative_to(folder)), why=why)


def rows_of(board: Board) -> Iterator[tuple[str, ...]]:
    """The rows of a board for the terminal: name, place, every metric, and where it comes from."""
    for entry, row in board.ranked:
        cells = [cell_text(row.cells.get(column.key), column) for column in board.comparison.columns]
        yield (row.name, str(entry.place), *cells, str(len(row.seeds)), entry.recipe, ", ".join(entry.code), entry.date)
