"""Tables of text with a separator between the cells: commas, tabs, pipes; every cell as written."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, TypeAlias, cast

import pyarrow as pa

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.columns import Columns
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES

Quoting: TypeAlias = Literal["csv", "none"]
_DEFAULTS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Excel's own first line, which names the separator of what follows.
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
# A longer cell is no caption; csv's own limit is 128 KiB, which articles exceed.
_MAX_CELL = 4 * 2**20
csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
# A line that begins with an image's name and a separator is no second line of a caption.
_ROW = re.compile(rf"\S+(?:{'|'.join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)})[,;|\t]", re.IGNORECASE)


@dataclass
class Dialect:
    """How a table's file is written, as far as the manifest says; ``bad`` and ``notes`` collect what is found.

    Rows with too many or too few cells go to ``bad``; where that is None they are refused.
    """

    delimiter: str | None = None
    header: Sequence[str] | None = None
    quoting: Quoting | None = None
    encoding: str = "utf-8"
    bad: list[dict[str, str]] | None = None
    notes: list[str] = field(default_factory=list)


def format_of(path: Path) -> str:
    """The suffix that tells a table's format, in lower case: .csv of t.CSV.gz."""
    return Path(path.stem if path.suffix.lower() in _COMPRESSED else path.name).suffix.lower()


def open_bytes(path: Path) -> BinaryIO:
    """A file, uncompressed where its suffix says that it is compressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def open_text(path: Path, encoding: str, newline: str = "") -> TextIO:
    """The text of a file, without its byte order mark."""
    text = io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        text.reconfigure(encoding="utf-8-sig")
    return text


def read_delimited(path: Path, columns: Sequence[str], dialect: Dialect) -> tuple[list[str], dict[str, Any]]:
    """The names of all columns, and the cells of those that are wanted; ValueError for a file that is no such table.

    Where the manifest names no separator, the format's own is taken, or another if only that finds all columns in the
    first line; a line before it that says ``sep=;``, as Excel has it, is followed. Between tabs a quote
    is an ordinary character; where every name after the first begins with a space, spaces around cells are no part of
    them.
    """
    with open_text(path, dialect.encoding) as file:
        first, stated = _first_lines(file)
        delimiter = _delimiter(first[-1], columns, dialect, stated, path)
        quoting = dialect.quoting or ("none" if delimiter == "\t" else "csv")
        reader = _reader(chain(first, file), delimiter, quoting)
        written = filter(None, _checked(reader))
        named = (row for row in written if any(map(str.strip, row)))
        header = list(dialect.header) if dialect.header is not None else next(named, [])
        spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
        header = [name.strip() for name in header] if spaced else header
        places = _places(header, columns)
        cells = Columns(*(header[place] for place in places))
        for row in written:
            if len(row) == len(header):
                _refuse_swallowed(row, reader.line_num)
                cells.append(*(row[place].strip() if spaced else row[place] for place in places))
            else:
                _wrong_length(row, reader.line_num, header, path, dialect, delimiter)
    if dialect.bad and not len(cells):
        raise ValueError(dialect.bad[0]["reason"])
    frame = cells.frame()
    return header, {str(name): frame[name] for name in frame}


def _first_lines(file: TextIO) -> tuple[list[str], str | None]:
    """The lines up to the first that says something, and the separator that a line ``sep=;`` before it states.

    That line is given as an empty one, so that all keep their numbers.
    """
    lines, stated = [file.readline()], None
    while lines[-1]:
        if lines[-1].strip():
            found = _SEPARATOR.fullmatch(lines[-1]) if stated is None else None
            if found is None:
                break
            stated, lines[-1] = found[1], "\n"
        lines.append(file.readline())
    return lines, stated


def _reader(lines: Any, delimiter: str, quoting: Quoting) -> Any:
    if quoting == "none":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _checked(reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        found = str(error)
        if "field limit" in found:
            found = f"a cell holds more than {counted(csv.field_size_limit(), 'characters')}"
        raise ValueError(f"line {reader.line_num}: {found}; is a quote missing or misplaced?") from None


def _delimiter(first: str, columns: Sequence[str], dialect: Dialect, stated: str | None, path: Path) -> str:
    if dialect.delimiter is not None or stated is not None:
        return dialect.delimiter or str(stated)
    own = _DEFAULTS[format_of(path)]
    for delimiter in (own, *(other for other in _NAMES if other != own)):
        cells = [cell.strip() for cell in first.rstrip("\r\n").split(delimiter)]
        if set(columns) <= {cell.strip('"') for cell in cells} if dialect.header is None else len(cells) > 1:
            if delimiter != own:
                dialect.notes.append(f"{path}: read with {_NAMES[delimiter]} between the cells")
            return delimiter
    return own


def _places(header: Sequence[str], columns: Sequence[str]) -> list[int]:
    for column in columns:
        if header.count(column) > 1:
            raise ValueError(f"the column {column!r} is there {header.count(column)} times: which one is meant?")
    return [header.index(column) for column in dict.fromkeys(columns) if column in header]


def _refuse_swallowed(row: Sequence[str], line: int) -> None:
    """A quote that was opened by mistake swallows rows up to the next one."""
    for cell in row:
        if "\n" in cell and any(_ROW.match(part) for part in cell.split("\n")[1:]):
            raise ValueError(
                f"the row that ends on line {line} has a cell that holds further rows; is a quote missing or misplaced?"
                " (quoting: none reads quotes as ordinary characters)"
            )


def _wrong_length(
    row: Sequence[str], line: int, header: Sequence[str], path: Path, dialect: Dialect, delimiter: str
) -> None:
    reason = f"line {line} has {len(row)} cells, the header {len(header)}"
    if dialect.bad is None:
        raise ValueError(reason)
    hint = ""
    if delimiter == "\t" and any(cell.startswith('"') for cell in row):
        hint = " (between tabs a quote is an ordinary character; quoting: csv reads it as one around a cell)"
    dialect.bad.append({"kind": "row", "item": str(path), "reason": reason + hint})


def decoding_error(path: Path, error: UnicodeDecodeError) -> InputError:
    """What to say of a file that is of another encoding."""
    with open_bytes(path) as file:
        start = file.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return InputError(f"{path}: is UTF-16 text", "Say so with the manifest's key encoding: utf-16.")
    found = f"{path}: is not {error.encoding.upper().removesuffix('-SIG')} text"
    return InputError(
        f"{found} (it holds the byte {error.object[error.start]:#x})",
        "Name its own with the manifest's key encoding (cp1252 is Western Windows', latin-1, gb18030, shift_jis, ...).",
    )
