"""The token store of one split: ragged shards, memory-mapped, rows in the order of the embedding stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.npy import ArrayFile, Concatenation, Piece, open_npy
from cs_aligner_cli.common.token_sequences import PADDING_TOKEN, Ragged
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.files.artifact import read_json
from cs_aligner_cli.stores.embeddings import ShardWriter, save_shard, shard_files

# A shard is held in memory while it is made: 1,024 images of 256 tokens of 1,024 dimensions are a gigabyte.
_SHARD_ROWS = 1024


class TokenArray:
    """The token sequences of one modality.

    Every shard is two files: ``values-N.npy`` (sum of lengths, d), mapped while it is in use, and ``lengths-N.npy``
    (rows,), held. Raises InputError where a shard's lengths are missing or do not add up to its values.
    """

    def __init__(self, folder: Path) -> None:
        self._values = [open_npy(path) for path in shard_files(folder, "values")]
        self._lengths = [_read_lengths(values) for values in self._values]
        self._order = Concatenation([len(lengths) for lengths in self._lengths])
        self.dim = int(self._values[0].shape[1])

    def __len__(self) -> int:
        return len(self._order)

    @property
    def lengths(self) -> Ints:
        """(rows,) how many tokens each row has."""
        return np.concatenate(self._lengths)

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Some rows in the given order, as float32 (len(rows), L, d) padded with NaN, L being the longest of them.

        Raises IndexError if a row is out of range.
        """
        pieces = list(self._order.pieces(rows))
        longest = max((int(self._lengths[piece.part][piece.rows].max()) for piece in pieces), default=1)
        result = np.full((len(rows), longest, self.dim), PADDING_TOKEN, np.float32)
        for piece in pieces:
            self._of_shard(piece).pad_into(result, piece.places)
        return result

    def _of_shard(self, piece: Piece) -> Ragged:
        values, lengths = self._values[piece.part], self._lengths[piece.part]
        if not isinstance(piece.rows, slice):
            return Ragged(values.mapped(), lengths).take(piece.rows)
        start = int(lengths[: piece.rows.start].sum())
        lengths = lengths[piece.rows]
        return Ragged(values.take(slice(start, start + int(lengths.sum()))), lengths)


def _lengths_of(values: Path) -> Path:
    return values.with_name(values.name.replace("values-", "lengths-"))


def _read_lengths(values: ArrayFile) -> Ints:
    path = _lengths_of(values.path)
    remake = "Make the token store again: csalign embed --force"
    if not path.is_file():
        raise InputError(f"{values.path}: its lengths ({path.name}) are missing: tokens without a mask", remake)
    file = open_npy(path)
    lengths: Ints = file.take(slice(0, len(file))) if len(file.shape) == 1 else np.zeros(1, np.int64)
    if not np.issubdtype(file.dtype, np.integer) or (lengths < 1).any():
        raise InputError(f"{path}: expected whole numbers of at least 1, one for every row", remake)
    if len(values.shape) != 2 or int(lengths.sum()) != len(values):
        raise InputError(
            f"{path}: the lengths add up to {int(lengths.sum())} tokens, but {values.path.name} has shape "
            f"{values.shape}",
            remake,
        )
    return lengths.astype(np.int64, copy=False)


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
