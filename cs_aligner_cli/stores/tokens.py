"""The token store of one split: ragged shards, memory-mapped, rows in the order of the embedding stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.npy import map_npy
from cs_aligner_cli.common.token_sequences import PADDING_TOKEN, Ragged
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.files.artifact import read_json
from cs_aligner_cli.stores.embeddings import ShardWriter, save_shard

# A shard is held in memory while it is made: 1,024 images of 256 tokens of 1,024 dimensions are a gigabyte.
_SHARD_ROWS = 1024


class TokenArray:
    """The token sequences of one modality.

    Every shard is two files: ``values-N.npy`` (sum of lengths, d), mapped, and ``lengths-N.npy`` (rows,).
    Raises InputError where a shard's lengths are missing or do not add up to its values.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("values-*.npy"), key=lambda path: (len(path.name), path.name))
        if not paths:
            raise InputError(f"{folder}: holds no token shards")
        self._shards = [_read_shard(path) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.dim = int(self._shards[0].values.shape[1])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def lengths(self) -> Ints:
        """(rows,) how many tokens each row has."""
        return np.concatenate([shard.lengths for shard in self._shards])

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """The rows asked for, in that order, as float32 (len(rows), L, d) padded with NaN, L being the longest of them.

        Raises IndexError if a row is out of range.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked for, but there are {len(self)}")
        shard_of = np.searchsorted(self._ends, rows, side="right")
        parts: list[tuple[Ints, Ragged]] = []
        for i in np.unique(shard_of):
            places = np.flatnonzero(shard_of == i)
            start = self._ends[i] - len(self._shards[i])
            parts.append((places, self._shards[i].take(rows[places] - start)))
        longest = max((int(part.lengths.max()) for _, part in parts), default=1)
        result = np.full((len(rows), longest, self.dim), PADDING_TOKEN, np.float32)
        for places, part in parts:
            part.pad_into(result, places)
        return result


def _lengths_of(values: Path) -> Path:
    return values.with_name(values.name.replace("values-", "lengths-"))


def _read_shard(path: Path) -> Ragged:
    lengths_path = _lengths_of(path)
    remake = "Make the token store again: csalign embed --force"
    if not lengths_path.is_file():
        raise InputError(f"{path}: its lengths ({lengths_path.name}) are missing: tokens without a mask", remake)
    values, lengths = map_npy(path), np.array(map_npy(lengths_path))
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or (lengths < 1).any():
        raise InputError(f"{lengths_path}: expected whole numbers of at least 1, one for every row", remake)
    if values.ndim != 2 or int(lengths.sum()) != len(values):
        raise InputError(
            f"{lengths_path}: the lengths add up to {int(lengths.sum())} tokens, but {path.name} has shape "
            f"{values.shape}",
            remake,
        )
    return Ragged(values, lengths.astype(np.int64))


class TokenStore:
    """The token store in a folder: ``store.array("image")`` and ``store.identity``, for the modalities it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def identity(self) -> dict[str, Any]:
        """What made the tokens, by modality."""
        identity: dict[str, Any] = read_json(self.folder / "identity.json")
        return identity

    def array(self, modality: str) -> TokenArray:
        """The tokens of "image" or "text"."""
        if not (self.folder / modality).is_dir():
            raise InputError(f"{self.folder}: holds no tokens of modality {modality}")
        return TokenArray(self.folder / modality)

    def keys(self, modality: str) -> pd.DataFrame:
        """The key table: row i names row i of the array."""
        return pd.read_parquet(self.folder / f"{modality}.parquet")


class TokenWriter(ShardWriter):
    """Writes one modality's tokens shard by shard; shards that an interrupted job finished are kept."""

    def __init__(self, folder: Path, rows: int, shard_rows: int, dtype: str) -> None:
        super().__init__(folder, rows, min(shard_rows, _SHARD_ROWS), dtype)

    def write_tokens(self, number: int, tokens: Ragged) -> None:
        """Write one shard, whole or not at all; raise InputError if a row has no token, or one that is not finite."""
        with np.errstate(over="ignore"):
            stored = tokens.values.astype(self.dtype)
        bad = np.repeat(np.arange(len(tokens)), tokens.lengths)[~np.isfinite(stored).all(axis=1)]
        bad = np.concatenate([bad, np.flatnonzero(tokens.lengths < 1)])
        if len(bad):
            row = number * self.shard_rows + int(bad.min())
            raise InputError(
                f"{self.folder.name} row {row} of the token store has no token, or one that is not finite in "
                f"{self.dtype}",
                "embed.token_dtype: float32 and embed.precision: fp32 hold larger values.",
            )
        # The values last: a shard counts as written once they are there.
        for path, array in ((_lengths_of(self._path(number)), tokens.lengths), (self._path(number), stored)):
            save_shard(path, array)

    def _path(self, number: int) -> Path:
        return self.folder / f"values-{number:05d}.npy"

    def _files(self, number: int) -> tuple[Path, ...]:
        return self._path(number), _lengths_of(self._path(number))
