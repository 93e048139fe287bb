"""Features that other programs keep by id: npz, PyTorch, safetensors, Parquet and HDF5, each row with its name."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.common.types import Ints

Array = npt.NDArray[Any]
_ID_NAMES = ["ids", "id", "names", "keys", "image_ids", "caption_ids", "filenames", "paths"]


class Keyed(NamedTuple):
    """Features (rows, d), and the name of each row; None where the rows are those of the table."""

    ids: list[str] | None
    features: Array


def is_keyed(path: Path, tensor: str | None) -> bool:
    """Whether a file is read whole, as this module does: all formats but npy, and safetensors of many vectors."""
    suffix = path.suffix.lower()
    if suffix != ".safetensors" or tensor is not None or not path.is_file():
        return suffix in _READERS and suffix != ".safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return len(names) > 1 and all(len(file.get_slice(name).get_shape()) == 1 for name in names)
    except (SafetensorError, OSError):
        return False  # whoever maps it says what is wrong


def read_keyed(path: Path, tensor: str | None, id_column: str | None = None) -> Keyed:
    """The features of a file, read without unpickling; ``tensor`` names one of its arrays or columns.

    A file holds a vector under every id, or an array of (rows, d) and perhaps a list of ids beside it, under the name
    ``id_column`` of the items' table or a usual one. Raises InputError where it is missing, damaged, holds neither, or
    a package to read it is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        id_names = [id_column, *_ID_NAMES] if id_column else _ID_NAMES
        found = _READERS[path.suffix.lower()](path, tensor, id_names)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        form = path.suffix.lower().removeprefix(".")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as {form}: {reason}") from None
    except (pa.ArrowException, SafetensorError, pickle.UnpicklingError) as error:
        reason = "it is a pickle of more than arrays" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise InputError(f"{path}: is not read: {reason.splitlines()[0]}") from None
    if found.features.ndim != 2 or 0 in found.features.shape:
        raise InputError(f"{path}: expected features of shape (rows, dimensions), found {found.features.shape}")
    if not np.issubdtype(found.features.dtype, np.floating):
        raise InputError(f"{path}: expected floating-point features, found {found.features.dtype}")
    return found


def read_ids(path: Path) -> list[str]:
    """The names of rows in order: a line each, or a JSON list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else text.split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a list of ids: {error}") from None
    if not isinstance(found, list) or not all(type(item) in (str, int) for item in found):
        raise InputError(f"{path}: expected a list of ids")
    names = [str(item).removesuffix("\r") for item in found]
    return names[:-1] if names and names[-1] == "" else names


def rows_of(wanted: Sequence[str], ids: Sequence[str], features: Path, table: Path) -> Ints:
    """The row of each wanted name; a name is also found without its folder or its suffix, where that is unambiguous.

    An id may be there several times, as where an image's row is repeated for each caption; the first is taken, and
    ``refuse_unlike`` sees that the others are equal. Raises InputError for names that have no features.
    """
    spelt: tuple[Callable[[str], str], ...] = (str, lambda n: PurePosixPath(n).name, lambda n: PurePosixPath(n).stem)
    names = pd.Index(wanted)
    best = np.full(len(names), -1)
    for spell in spelt:
        theirs, ours = pd.Index([spell(name) for name in ids]), pd.Index([spell(name) for name in wanted])
        if ours.nunique() < names.nunique() or theirs.nunique() < pd.Index(ids).nunique():
            continue
        first = ~theirs.duplicated()
        found = np.flatnonzero(first)[pd.Index(theirs[first]).get_indexer(ours)]
        there = np.isin(ours, theirs)
        if there.sum() > (best >= 0).sum():
            best = np.where(there, found, -1)
        if (best >= 0).all():
            return np.asarray(best, np.int64)
    lacking = [name for name, row in zip(wanted, best, strict=True) if row < 0]
    of = f"{len(lacking)} of the {len(wanted)} items in {table}, the first {lacking[0]!r}"
    raise InputError(
        f"{features}: has no features of {of}",
        f"It has {len(ids)} ids, the first {ids[0]!r}." if ids else "",
    )


def refuse_unlike(ids: Sequence[str], features: Array, path: Path) -> None:
    """Raise InputError where one id has two unlike rows."""
    codes, names = pd.factorize(pd.Index(ids))
    first = np.full(len(names), -1)
    for row in range(len(codes) - 1, -1, -1):
        first[codes[row]] = row
    unlike = ~np.isclose(features, features[first[codes]], equal_nan=True).all(1)
    if unlike.any():
        raise InputError(f"{path}: the id {ids[int(unlike.argmax())]!r} is there twice, with unlike features")


def _by_name(arrays: Mapping[str, Any], tensor: str | None, id_names: Sequence[str]) -> Keyed:
    """What a set of named arrays holds: one of rows, ids beside it, or a vector under every id."""
    if tensor is not None:
        if tensor not in arrays:
            raise ValueError(f"it holds no {tensor!r}, but {', '.join(list(arrays)[:10])}")
        return Keyed(_ids_beside(arrays, tensor, id_names), np.asarray(arrays[tensor]))
    two = [name for name in arrays if np.ndim(arrays[name]) == 2]
    if len(two) == 1:
        return Keyed(_ids_beside(arrays, two[0], id_names), np.asarray(arrays[two[0]]))
    if two:
        raise ValueError(f"it holds several arrays; name one with the manifest's key tensor: {', '.join(two)}")
    if not arrays:
        raise ValueError("it is empty")
    shapes = {np.shape(array) for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"expected a vector of one length under every id, found the shapes {sorted(shapes)[:3]}")
    return Keyed([str(name) for name in arrays], np.stack([np.asarray(array) for array in arrays.values()]))


def _ids_beside(arrays: Mapping[str, Any], rows: str, id_names: Sequence[str]) -> list[str] | None:
    for name in id_names:
        if name in arrays and name != rows and np.ndim(arrays[name]) == 1 and len(arrays[name]) == len(arrays[rows]):
            return _names(np.asarray(arrays[name]).tolist(), name)
    return None


def _names(cells: list[Any], column: str) -> list[str]:
    if None in cells:
        raise ValueError(f"row {cells.index(None)} (counted from 0) has no id in {column!r}")
    return [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in cells]


def _npz(path: Path, tensor: str | None, id_names: Sequence[str]) -> Keyed:
    with np.load(path, allow_pickle=False) as file:
        return _by_name({name: file[name] for name in file.files}, tensor, id_names)


def _torch(path: Path, tensor: str | None, id_names: Sequence[str]) -> Keyed:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it is a pickle of more than tensors, which is not loaded") from None
    except (struct.error, IndexError, TypeError, AssertionError):  # what torch's reader makes of other bytes
        raise ValueError("it is no file of torch.save, or damaged") from None
    if isinstance(content, torch.Tensor):
        return Keyed(None, _array(content))
    if not isinstance(content, dict):
        raise ValueError("expected a tensor, or a dict of tensors by id")
    return _by_name({str(name): _array(value) for name, value in content.items()}, tensor, id_names)


def _array(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    try:
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
    except TypeError:
        raise ValueError(
            f"expected dense tensors of a type that numpy has, found {value.dtype}, {value.layout}"
        ) from None


def _safetensors(path: Path, tensor: str | None, id_names: Sequence[str]) -> Keyed:
    from safetensors.torch import load_file

    return _by_name({name: _array(value) for name, value in load_file(path).items()}, tensor, id_names)


def _parquet(path: Path, tensor: str | None, id_names: Sequence[str]) -> Keyed:
    table = pq.read_table(path)
    vectors = [field.name for field in table.schema if _is_list(field.type) and _is_float(field.type.value_type)]
    column = tensor or (vectors[0] if len(vectors) == 1 else None)
    if column is None or column not in table.column_names:
        raise ValueError(f"name its column of vectors with the manifest's key tensor: {', '.join(vectors) or 'none'}")
    if not _is_list(table.schema.field(column).type):
        raise ValueError(f"the column {column!r} holds no vectors; those that do: {', '.join(vectors) or 'none'}")
    lengths = pc.list_value_length(table[column]).fill_null(0).to_numpy()
    if (unlike := lengths != lengths[:1]).any():
        row = int(unlike.argmax())
        found = f"row {row} of {column!r} has {counted(int(lengths[row]), 'values')}"
        raise ValueError(f"{found}, row 0 has {lengths[0]}: expected one length")
    cells = table[column].combine_chunks()
    flat = (cells.chunk(0) if isinstance(cells, pa.ChunkedArray) else cells).flatten().to_numpy(zero_copy_only=False)
    names = [field.name for field in table.schema if not _is_list(field.type) and not _is_float(field.type)]
    named = next((name for name in id_names if name in names), names[0] if len(names) == 1 else None)
    ids = _names(table[named].to_pylist(), named) if named else None
    return Keyed(ids, flat.reshape(len(table), -1))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def _hdf5(path: Path, tensor: str | None, id_names: Sequence[str]) -> Keyed:
    require_package("h5py", f"{path}: HDF5")
    import h5py

    with h5py.File(path, "r") as file:
        arrays: dict[str, Any] = {}
        file.visititems(
            lambda name, found: arrays.update({name: found[()]}) if isinstance(found, h5py.Dataset) else None
        )
        return _by_name(arrays, tensor, id_names)


_READERS: dict[str, Callable[[Path, str | None, Sequence[str]], Keyed]] = {
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
