"""Reading tables of text: CSV, TSV, JSON lines and Parquet, every cell as written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_aligner_cli.common.errors import InputError, did_you_mean

# Rows that wait as Python objects before they are packed into Arrow's compact form.
_PACKED_ROWS = 65536


class Columns:
    """Columns of text that grow row by row: a million short texts take some tens of megabytes."""

    def __init__(self, *names: str) -> None:
        self._waiting: dict[str, list[Any]] = {name: [] for name in names}
        self._packed: dict[str, list[pa.Array]] = {name: [] for name in names}
        self._rows = 0

    def append(self, *values: str | None) -> None:
        """One row, a value (None: missing) for every column."""
        for waiting, value in zip(self._waiting.values(), values, strict=True):
            waiting.append(value)
        self._rows += 1
        if self._rows % _PACKED_ROWS == 0:
            self._pack()

    def __len__(self) -> int:
        return self._rows

    def _pack(self) -> None:
        for name, waiting in self._waiting.items():
            self._packed[name].append(pa.array(waiting, pa.large_string()))
            waiting.clear()

    def frame(self) -> pd.DataFrame:
        """The rows so far."""
        self._pack()
        return pd.DataFrame({n: pa.chunked_array(p, pa.large_string()).to_pandas() for n, p in self._packed.items()})


def _read_delimited(delimiter: str) -> Callable[[Path, Sequence[str]], pd.DataFrame]:
    # Not pandas: it pads short rows, and shifts or cuts long ones, without an error.
    def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(_checked(reader), [])
            places = [header.index(column) for column in dict.fromkeys(columns) if column in header]
            cells = Columns(*(header[place] for place in places))
            for row in _checked(reader):
                if len(row) == len(header):
                    cells.append(*(row[place] for place in places))
                elif row:
                    raise ValueError(f"line {reader.line_num} has {len(row)} cells, the header {len(header)}")
        return _frame(header, cells.frame())

    return read


def _checked(reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}; is a quote missing or misplaced?") from None


def _read_json_lines(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    names: dict[str, None] = {}
    waiting: dict[str, list[Any]] = {column: [] for column in columns}
    packed: dict[str, list[pd.Series[Any]]] = {column: [] for column in columns}
    with path.open(encoding="utf-8") as file:
        rows = (_json_object(line, number) for number, line in enumerate(file, start=1) if line.strip())
        while block := list(islice(rows, _PACKED_ROWS)):
            for row in block:
                names |= dict.fromkeys(row)
                for column, values in waiting.items():
                    values.append(row.get(column))
            for column, values in waiting.items():
                packed[column].append(_packed_text(values))
                values.clear()
    return _frame(
        list(names), {name: pd.concat(parts, ignore_index=True) for name, parts in packed.items() if name in names}
    )


def _packed_text(values: list[Any]) -> pd.Series[Any]:
    """Cells in Arrow's compact form where all are text or missing."""
    if all(value is None or isinstance(value, str) for value in values):
        packed: pd.Series[Any] = pa.array(values, pa.large_string()).to_pandas()
        return packed
    return pd.Series(list(values), dtype=object)


def _json_object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"line {number} holds half a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def _read_parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        table = file.read([name for name in names if name in columns])
    return _frame(names, {name: _from_arrow(table[name]) for name in table.column_names})


def _from_arrow(column: pa.ChunkedArray) -> pd.Series[Any]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        series: pd.Series[Any] = column.to_pandas()
        return series
    return pd.Series(column.to_pylist(), dtype=object)


def _frame(names: Sequence[str], cells: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """A frame that knows all column names of the file, with the cells of those that were asked for."""
    empty = pd.Series([], dtype=object)
    return pd.DataFrame({name: cells.get(name, empty) for name in dict.fromkeys(names)})


FORMATS: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".parquet": _read_parquet,
}


def read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read the named columns of a table whose suffix tells its format; rows keep the file's order.

    Cells of JSON lines and Parquet may be lists, numbers or None, see ``text_column``. Raises InputError
    for a missing or unreadable file, an unknown format, or a missing column (with the nearest name).
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: unknown table format {path.suffix!r}; expected one of: {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = FORMATS[path.suffix](path, columns)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (it holds the byte {error.object[error.start]:#x})") from None
    except (ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None
    for column in columns:
        if column not in frame.columns and len(frame.columns):
            raise InputError(f"{path}: no column {column!r}{did_you_mean(column, [str(c) for c in frame.columns])}")
    if frame.empty:
        raise InputError(f"{path}: holds no rows")
    return frame[list(dict.fromkeys(columns))]


def text_column(frame: pd.DataFrame, column: str, path: Path, required: bool = False) -> pd.Series[str]:
    """A column of a frame as text, missing cells empty; ``path`` is the file that it was read from.

    Raises InputError if a cell holds a list or an object, or is empty where the column is ``required``.
    """
    cells = frame[column]
    if cells.dtype == object:
        nested = cells.map(lambda cell: isinstance(cell, list | dict))
        if nested.any():
            raise InputError(
                f"{path}: row {nested.argmax()} (counted from 0) has a list in the column {column!r}, not text"
            )
        cells = cells.where(cells.notna(), "").astype(str)
    text = cells.fillna("")
    if required and (text == "").any():
        raise InputError(f"{path}: row {(text == '').argmax()} (counted from 0) has nothing in the column {column!r}")
    return text
