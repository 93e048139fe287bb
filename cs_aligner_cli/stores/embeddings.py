"""The embedding store of one split: memory-mapped shards, rows in the order of a Parquet key table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.npy import ArrayFile, Concatenation, open_npy
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.files.artifact import read_json, write_bytes, write_json, written_aside
from cs_aligner_cli.files.checksums import digest, is_whole, mark

NO_SPACE = "image and text rows differ in dimension: they share no space, so nothing can be compared between them"


class StoredArray:
    """The (N, d) embeddings of one modality in their shards, of which a bounded number is open at a time."""

    def __init__(self, folder: Path) -> None:
        self._shards = [open_npy(shard) for shard in shard_files(folder, "shard")]
        self._order = Concatenation([len(shard) for shard in self._shards])
        self.shape = (len(self._order), int(self._shards[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Some rows in the given order, as float32 (len(rows), d); IndexError if one is out of range."""
        return _read(self._shards, self._order, rows)

    def all(self) -> npt.NDArray[np.float32]:
        """All rows in order, as float32."""
        return self.take(np.arange(len(self)))


def _read(shards: list[ArrayFile], order: Concatenation, rows: Ints) -> npt.NDArray[np.float32]:
    result = np.empty((len(rows), shards[0].shape[1]), np.float32)
    for piece in order.pieces(rows):
        shard = shards[piece.part]
        if isinstance(piece.rows, slice):
            shard.read_into(result[piece.places], piece.rows.start)
        else:
            result[piece.places] = shard.take(piece.rows)
    return result


class Store:
    """The store in a folder: ``store.array("image")``, ``store.keys("text")``, ``store.identity``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def identity(self) -> dict[str, Any]:
        """What made the embeddings: encoders and, for an aligned store, the trained weights."""
        identity: dict[str, Any] = read_json(self.folder / "identity.json")
        return identity

    @property
    def background(self) -> str | None:
        """The colour that the image encoder saw behind transparent places, None: the colours that they hide."""
        encoders = self.identity.get("encoders", self.identity)
        colour: str | None = encoders.get("image", {}).get("background")
        return colour

    def array(self, modality: str) -> StoredArray:
        """The embeddings of a modality."""
        return StoredArray(self.folder / modality)

    @property
    def shares_space(self) -> bool:
        """Whether image and text rows can be compared: two unimodal encoders may differ in dimension."""
        return self.array("image").shape[1] == self.array("text").shape[1]

    def keys(self, modality: str) -> pd.DataFrame:
        """The key table: image_id, or caption_id and image_id; row i names row i of the array."""
        return pd.read_parquet(self.folder / f"{modality}.parquet")


class ShardWriter:
    """Writes one modality's array shard by shard; shards that an interrupted job finished are kept.

    Every shard has its checksum beside it until the build is finished, so that no damaged one is kept.
    """

    def __init__(self, folder: Path, rows: int, shard_rows: int, dtype: str) -> None:
        self.folder, self.rows, self.shard_rows, self.dtype = folder, rows, shard_rows, np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self) -> Iterator[tuple[int, Ints]]:
        """(number, rows) of every shard that is not there yet, or not as it was written."""
        for number in range(-(-self.rows // self.shard_rows)):
            if not all(map(is_whole, self._files(number))):
                yield number, self.rows_of(number)

    def rows_of(self, number: int) -> Ints:
        """The rows of one shard."""
        start = number * self.shard_rows
        return np.arange(start, min(start + self.shard_rows, self.rows))

    def reopen(self) -> list[int]:
        """The numbers of the missing shards, after what is left of damaged ones is removed."""
        numbers = [number for number, _ in self.missing()]
        for number in numbers:
            self._path(number).unlink(missing_ok=True)
        return numbers

    def holds(self, rows: Ints) -> bool:
        """Whether the shards of some rows are there; written ones appear whole."""
        return all(self._path(number).is_file() for number in np.unique(rows // self.shard_rows))

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Some rows (at least one) whose shards are there, in the given order, as float32; no other shard is read."""
        numbers, place = np.unique(rows // self.shard_rows, return_inverse=True)
        shards = [open_npy(self._path(number)) for number in numbers]
        order = Concatenation([self.shard_rows] * len(shards))
        return _read(shards, order, place * self.shard_rows + rows % self.shard_rows)

    def write(self, number: int, values: npt.NDArray[np.float32]) -> None:
        """Write one shard, whole or not at all; raise InputError if a value is not finite as stored."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            row = number * self.shard_rows + int(np.argmin(finite))
            raise InputError(
                f"{self.folder.name} row {row} of the store has a value that is not finite in {self.dtype}",
                "embed.dtype: float32 and embed.precision: fp32 hold larger values.",
            )
        save_shard(self._path(number), stored)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.npy"

    def _files(self, number: int) -> tuple[Path, ...]:
        return (self._path(number),)


def shard_files(folder: Path, kind: str) -> list[Path]:
    """The files ``KIND-NUMBER.npy`` of a folder in the order of their numbers; InputError if there are none."""
    # By length first: from the hundred thousandth shard on, the numbers are longer.
    files = sorted(folder.glob(f"{kind}-*.npy"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise InputError(f"{folder}: holds no files {kind}-*.npy")
    return files


def save_shard(path: Path, values: npt.NDArray[Any]) -> None:
    """Write an array whole or not at all, its checksum beside it."""
    with written_aside(path) as aside:
        with aside.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        write_bytes(mark(path), digest(aside).encode())


def write_keys(folder: Path, tables: dict[str, pd.DataFrame], identity: dict[str, Any]) -> None:
    """Write the key tables and the identity of whatever made the embeddings."""
    for modality, table in tables.items():
        own = {"image": [], "text": ["caption_id"]}.get(modality, [f"{modality}_id"])
        columns = [*own, "image_id"]
        table[columns].to_parquet(folder / f"{modality}.parquet", index=False)
    write_json(folder / "identity.json", identity)


def nothing_to_compare(split: str) -> InputError:
    """The error of a measurement that no store of a split allows: an empty result must not look like a success."""
    return InputError(
        f"nothing to measure on split {split!r}: {NO_SPACE}",
        "Train adapters into a shared space first (train: null leaves only the frozen towers).",
    )
