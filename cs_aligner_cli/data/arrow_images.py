"""Images inside Parquet and Arrow files, as Hugging Face's datasets has them, read where they lie."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES, has_suffix

# FILE::COLUMN/NAME@GROUP+ROW: a row of a row group of Parquet, or of a record batch of Arrow. Names hold no slash.
_CELL = re.compile(r"(.+?\.(?:parquet|arrow))::(.+)/([^/]*)@([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL | re.IGNORECASE)
# Images that are read into one array.
_BATCH_ROWS = 256
# Row groups that stay in memory while the rows of them are read one by one.
_CACHED_BYTES = 2**29


class ArrowFile:
    """A Parquet file, or an Arrow stream as ``save_to_disk`` writes it, of which only what is needed is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet: Any = None
        self._table: Any = None
        if path.suffix.lower() == ".parquet":
            self._parquet = pq.ParquetFile(path)
            self.schema: pa.Schema = self._parquet.schema_arrow
        else:
            self._table = _mapped(path)
            self.schema = self._table.schema

    def holds_images(self, column: str) -> bool:
        """Whether a column holds files' bytes: structs {bytes, path}, or binary cells of which the first is no path, as
        which Spark and TFDS write texts."""
        index = self.schema.get_field_index(column)
        if index < 0:
            return False
        kind = self.schema.field(index).type
        if _is_binary(kind):
            return not _is_path(self._first(column))
        return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0

    def _first(self, column: str) -> bytes:
        """The first cell of a binary column that holds something."""
        with _reading(self.path):
            batches = self._parquet.iter_batches(1, columns=[column]) if self._parquet else self._table.to_batches()
            cells = (cell for batch in batches for cell in batch.column(column))
            return next((found for cell in cells if (found := cell.as_py())), b"")

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns; a struct's field as STRUCT.FIELD. Raises InputError where they are damaged."""
        if self._parquet:
            with _reading(self.path):
                return self._parquet.read(list(names))
        flat = self._table.flatten() if any("." in name for name in names) else self._table
        return flat.select([name for name in names if name in flat.column_names])

    def located(self, column: str, file: str) -> pd.DataFrame:
        """(name, locator) of the image in every row; name is "" where the file has none. No image is read."""
        sizes = self._sizes()
        group = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.arange(0)
        names = self._paths(column, len(group))
        locators = [f"{file}::{column}/{_suffixed(name)}@{g}+{r}" for name, g, r in zip(names, group, row, strict=True)]
        return pd.DataFrame({"name": names, "locator": locators})

    def _sizes(self) -> list[int]:
        if self._parquet:
            meta = self._parquet.metadata
            return [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return [chunk.num_rows for chunk in self._table.to_batches()]

    def _paths(self, column: str, rows: int) -> list[str]:
        kind = self.schema.field(self.schema.get_field_index(column)).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return [""] * rows
        table = self.columns([f"{column}.path"]).flatten()
        return [str(path) if path else "" for path in table.column(0).to_pylist()]

    def group(self, column: str, number: int) -> pa.ChunkedArray:
        """The cells of one row group or batch."""
        if not self._parquet:
            return pa.chunked_array([self._table.column(column).chunk(number)])
        # Batch by batch: an array of bytes ends at 2 GiB, and Arrow gives no structs in several arrays at once.
        batches = self._parquet.iter_batches(_BATCH_ROWS, row_groups=[number], columns=[column])
        return pa.chunked_array([batch.column(0) for batch in batches])


class _Groups:
    """The row groups that were read last, for threads that read their rows side by side."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._groups: OrderedDict[tuple[str, float, str, int], pa.ChunkedArray] = OrderedDict()

    def get(self, file: Path, column: str, number: int) -> pa.ChunkedArray:
        key = (str(file), file.stat().st_mtime, column, number)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            else:
                self._groups[key] = ArrowFile(file).group(column, number)
                while len(self._groups) > 1 and sum(cells.nbytes for cells in self._groups.values()) > _CACHED_BYTES:
                    self._groups.popitem(last=False)
            return self._groups[key]


_GROUPS = _Groups()


def read_cell(locator: str) -> bytes | None:
    """The bytes of an image in a Parquet or Arrow file; None where the locator is of another form.

    Raises OSError where the file is gone or no longer holds the row, or has only the path of the image.
    """
    found = _CELL.fullmatch(locator)
    if found is None:
        return None
    try:
        cell = _GROUPS.get(Path(found[1]), found[2], int(found[4]))[int(found[5])]
    except (pa.ArrowException, IndexError, KeyError) as error:
        raise OSError(0, f"{Path(found[1]).name} no longer holds it ({error})") from None
    value: Any = cell.as_py()
    content: bytes | None = value["bytes"] if isinstance(value, dict) else value
    if content is None and isinstance(value, dict) and value.get("path"):
        raise OSError(0, f"the table does not hold it, only the path {value['path']}")
    return content or b""


def open_arrow(path: Path) -> ArrowFile:
    """An Arrow or Parquet file; InputError where it is none."""
    with _reading(path):
        return ArrowFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report a file that is absent or damaged as InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        form = path.suffix.lower().removeprefix(".")
        raise InputError(f"{path}: cannot be read as {form}: {str(error).splitlines()[0]}") from None


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_path(content: bytes) -> bool:
    """Whether bytes are the path of an image: a line of text with an image's suffix."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and has_suffix(text, IMAGE_SUFFIXES)


def _suffixed(name: str) -> str:
    """The last part of a name, by whose suffix the image is packed later."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return last if has_suffix(last, IMAGE_SUFFIXES) and "@" not in last else ""


def dataset_files(folder: Path) -> dict[str | None, list[Path]]:
    """The Arrow files of a folder that ``save_to_disk`` wrote, by split; one without splits has the split None."""
    if (folder / "dataset_dict.json").is_file():
        parts = sorted(path for path in folder.iterdir() if path.is_dir())
        return {part.name: files for part in parts if (files := _arrow_files(part))}
    if files := _arrow_files(folder):
        return {None: files}
    raise InputError(
        f"{folder}: is a folder, and none that datasets' save_to_disk wrote (no .arrow files)",
        'Name the tables in it with a pattern: tables: {train: "FOLDER/train-*.parquet"}',
    )


def _arrow_files(folder: Path) -> list[Path]:
    """The files that the folder's state.json lists: what ``map`` and ``filter`` cache lies beside them."""
    state = folder / "state.json"
    if not state.is_file():
        return sorted(path for path in folder.glob("*.arrow") if not path.name.startswith("cache-"))
    try:
        about: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
        files = [folder / str(file["filename"]) for file in about["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{state}: is none that datasets' save_to_disk wrote, or damaged") from None
    if about.get("_indices_data_files"):
        raise InputError(f"{folder}: its rows are chosen by a list of indices", "Save it by a newer datasets.")
    return files


def read_columns(file: ArrowFile, columns: Sequence[str]) -> dict[str, Any]:
    """The cells of some columns of an open file, images left out."""
    table = file.columns([name for name in columns if name in file.schema.names])
    return {name: table[name] for name in table.column_names}
