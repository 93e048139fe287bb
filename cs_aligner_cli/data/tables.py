"""Reading tables: CSV, TSV and other separated text, JSON, JSON lines and Parquet, compressed or not."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.delimited import Dialect, decoding_error, format_of, read_delimited
from cs_aligner_cli.data.file_names import Lookalikes
from cs_aligner_cli.data.json_tables import read_json, read_json_lines


def _read_json_lines(path: Path, columns: Sequence[str], dialect: Dialect) -> tuple[list[str], Mapping[str, Any]]:
    return read_json_lines(path, columns, dialect.encoding)


def _read_json(path: Path, columns: Sequence[str], dialect: Dialect) -> tuple[list[str], Mapping[str, Any]]:
    return read_json(path, columns, dialect.encoding)


def _read_parquet(path: Path, columns: Sequence[str], dialect: Dialect) -> tuple[list[str], Mapping[str, Any]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if twice := [name for name in columns if names.count(name) > 1]:
            raise ValueError(f"the column {twice[0]!r} is there {names.count(twice[0])} times: which one is meant?")
        table = file.read([name for name in names if name in columns])
    return names, {name: from_arrow(table[name]) for name in table.column_names}


def from_arrow(column: pa.ChunkedArray) -> pd.Series[Any]:
    """A column as text in its compact form, or as Python objects."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        series: pd.Series[Any] = column.to_pandas()
        return series
    return pd.Series(column.to_pylist(), dtype=object)


_Reader = Callable[[Path, Sequence[str], Dialect], tuple[list[str], Mapping[str, Any]]]
FORMATS: dict[str, _Reader] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".txt": read_delimited,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".parquet": _read_parquet,
}


def read_frame(path: Path, columns: Sequence[str], dialect: Dialect | None = None) -> pd.DataFrame:
    """Read the named columns of a table whose suffix tells its format; rows keep the file's order.

    Cells of JSON and Parquet may be lists, numbers or None, see ``text_column``. Raises InputError for a missing or
    unreadable file, an unknown format, a column that is missing (with the nearest name) or there twice.
    """
    dialect = dialect or Dialect()
    form = format_of(path)
    if form not in FORMATS:
        raise InputError(f"{path}: unknown table format {form!r}; expected one of: {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file{Lookalikes().hint(path.parent, path.name)}")
    wanted = list(dict.fromkeys(columns))
    try:
        names, cells = FORMATS[form](path, wanted, dialect)
    except UnicodeDecodeError as error:
        raise decoding_error(path, error) from None
    except (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as {form[1:]}: {str(error).splitlines()[0]}") from None
    for column in wanted:
        if column not in names and len(names):
            raise MissingColumnError(path, column, names)
    if not len(names) or not len(next(iter(cells.values()), ())):
        raise InputError(f"{path}: holds no rows")
    return pd.DataFrame({name: cells[name] for name in wanted})


def read_names(path: Path) -> list[str]:
    """The names of a table's columns; none where it cannot be read."""
    try:
        read_frame(path, ["\0"])  # the name of no column
    except MissingColumnError as error:
        return error.names
    except InputError:
        pass
    return []


class MissingColumnError(InputError):
    """A table without a column that is wanted."""

    def __init__(self, path: Path, column: str, names: Sequence[str]) -> None:
        self.path, self.column, self.names = path, column, list(names)
        super().__init__(f"{path}: no column {column!r}{did_you_mean(column, [str(name) for name in names])}")


def text_column(frame: pd.DataFrame, column: str, path: Path, required: bool = False) -> pd.Series[str]:
    """A column of a frame as text, missing cells empty; ``path`` is the file that it was read from.

    Raises InputError if a cell holds a list or an object, or is empty where the column is ``required``.
    """
    cells = frame[column]
    if cells.dtype == object:
        nested = cells.map(lambda cell: isinstance(cell, list | dict))
        if nested.any():
            row = int(nested.argmax())
            found = "an object" if isinstance(cells.iloc[row], dict) else "a list"
            raise InputError(f"{path}: row {row} (counted from 0) has {found} in the column {column!r}, not text")
        cells = decoded(cells.where(cells.notna(), ""), column, path).map(_written)
    text = cells.fillna("")
    if required and (text == "").any():
        raise InputError(f"{path}: row {(text == '').argmax()} (counted from 0) has nothing in the column {column!r}")
    return text


def decoded(cells: pd.Series[Any], column: str, path: Path) -> pd.Series[Any]:
    """Cells in which bytes, as which Spark and TFDS write texts, are text, those in lists, too.

    Raises InputError where they are no UTF-8 text.
    """
    try:
        return cells.map(_decoded)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the column {column!r} holds bytes that are no UTF-8 text: {error}") from None


def _decoded(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_decoded(item) for item in cell]
    return cell.decode() if isinstance(cell, bytes) else cell


def _written(cell: Any) -> str:
    """A cell as text; a whole number that missing ones beside it turned into 1.0 is 1."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
