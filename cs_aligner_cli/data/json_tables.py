"""Tables in JSON: lines of objects, a list of objects, columns, or an object of captions by image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cs_aligner_cli.data.columns import PACKED_ROWS
from cs_aligner_cli.data.delimited import open_text

Cells = dict[str, Any]


def read_json_lines(path: Path, columns: Sequence[str], encoding: str) -> tuple[list[str], Cells]:
    """The names of all keys, and the cells of those that are wanted; ValueError names the line that is no object."""
    return _columns((row for _, row in json_lines(path, encoding)), columns)


def json_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of every line that is not empty, with its number from 1; ValueError names the line that is none."""
    with open_text(path, encoding, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line, number)


def read_json(path: Path, columns: Sequence[str], encoding: str) -> tuple[list[str], Cells]:
    """The names of all keys, and the cells of those that are wanted, of a file that is one JSON value.

    It is a list of objects, an object with one such list, pandas' objects of columns, or an object of captions (or
    lists of them) by image: then the first wanted column is the image and the second the caption.
    """
    with open_text(path, encoding) as file:
        content = _parsed(file.read(), "the file")
    return _columns(iter(_rows(content, columns)), columns)


def _rows(content: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list) and _all(value, dict) and value]
        if len(lists) == 1:
            return lists[0]
        if set(columns) <= set(content):
            return _from_columns(content, columns)
        if len(columns) == 2 and all(map(_is_captions, content.values())):
            image, caption = columns
            return [{image: name, caption: captions} for name, captions in content.items()]
        raise ValueError(
            "expected a list of objects, an object with one such list, or an object {image: [captions]} (with"
            " split_column: null), found other keys: " + ", ".join(list(content)[:5])
        )
    if not isinstance(content, list) or not _all(content, dict):
        raise ValueError("expected a list of objects")
    return content


def _is_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and not any(isinstance(i, dict | list) for i in value))


def _from_columns(content: dict[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of {column: [cells]} or pandas' {column: {row: cell}}, in which a cell belongs to the row that it names."""
    cells = [content[name] for name in columns]
    if _all(cells, dict):
        rows = list(cells[0])
        for name, column in zip(columns, cells, strict=True):
            if column.keys() != cells[0].keys():
                row = next(row for row in (*rows, *column) if (row in column) != (row in cells[0]))
                raise ValueError(f"the row {row!r} is in one of the columns {columns[0]!r} and {name!r} alone")
        cells = [[column[row] for row in rows] for column in cells]
    if not _all(cells, list) or len({len(column) for column in cells}) > 1:
        raise ValueError("expected columns of equal length, all lists or all objects of cells by row")
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _all(values: Sequence[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def _columns(rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> tuple[list[str], Cells]:
    names: dict[str, None] = {}
    packed: dict[str, list[pd.Series[Any]]] = {column: [] for column in columns}
    while block := list(islice(rows, PACKED_ROWS)):
        for row in block:
            names |= dict.fromkeys(row)
        for column, parts in packed.items():
            parts.append(_packed_text([row.get(column) for row in block]))
    found = {name: pd.concat(parts, ignore_index=True) for name, parts in packed.items() if name in names}
    return list(names), found


def _packed_text(values: list[Any]) -> pd.Series[Any]:
    """Cells in Arrow's compact form where all are text or missing."""
    if all(value is None or isinstance(value, str) for value in values):
        packed: pd.Series[Any] = pa.array(values, pa.large_string()).to_pandas()
        return packed
    return pd.Series(values, dtype=object)


def _object(line: str, number: int) -> dict[str, Any]:
    row = _parsed(line, f"line {number}")
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def _parsed(text: str, where: str) -> Any:
    """A JSON value; NaN, which JSON has not but many write, is null."""
    try:
        value = json.loads(text, parse_constant=lambda word: None, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is there twice")
    return found
