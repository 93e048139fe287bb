"""Reading tables of text: CSV, TSV, JSON lines and Parquet, every cell as written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from cs_aligner_cli.errors import InputError, did_you_mean


def _delimited(separator: str) -> Callable[[Path], pd.DataFrame]:
    # dtype=str and no NA values: a caption that reads "null" or "12" is a caption.
    return lambda path: pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8")


FORMATS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False, convert_dates=False, encoding="utf-8"),
    ".parquet": pd.read_parquet,
}


def read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read the named columns of a table whose suffix tells its format; rows keep the file's order.

    Raises InputError for a missing or unreadable file, an unknown format, or a missing column (with the nearest name).
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: unknown table format {path.suffix!r}; expected one of: {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = FORMATS[path.suffix](path)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None
    for column in columns:
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}{did_you_mean(column, [str(c) for c in frame.columns])}")
    if frame.empty:
        raise InputError(f"{path}: holds no rows")
    return frame[list(dict.fromkeys(columns))]
