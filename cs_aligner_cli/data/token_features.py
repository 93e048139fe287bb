"""Token features of other programs: padded sequences on disk and the mask that says which of their rows are tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.npy import open_npy
from cs_aligner_cli.data.features import FeatureFile


class TokenFile:
    """Token features (rows, L, d) and their mask (rows, L), memory-mapped.

    Raises InputError if a file is missing or is no such array, the two do not fit together, the mask is of another
    type than bool or whole numbers 0 and 1, or a row has no token.
    """

    def __init__(self, path: Path, tensor: str | None, mask: Path) -> None:
        self.path = path
        self._features = FeatureFile(path, tensor, ndim=3)
        self.shape = self._features.shape
        if not mask.is_file():
            raise InputError(f"{mask}: no such file")
        self._mask = _checked_mask(mask, self.shape[:2], path)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The rows asked for as float32 (len(rows), L, d), padded with NaN, cut to the longest of them."""
        from cs_aligner_cli.common.token_sequences import PADDING_TOKEN  # torch, which prepare does not need

        mask = self._mask[rows].astype(bool)
        last = mask.shape[1] - int(mask[:, ::-1].any(0).argmax())
        tokens = self._features.read(rows)[:, :last]
        tokens[~mask[:, :last]] = PADDING_TOKEN
        return tokens

    def check(self, advance: Callable[..., None]) -> None:
        """See that all tokens are finite."""
        row = 0
        for block in self._features.blocks():
            bad = ~np.isfinite(block).all(2) & self._mask[row : row + len(block)].astype(bool)
            if bad.any():
                where, token = (int(axis[0]) for axis in np.nonzero(bad))
                raise InputError(
                    f"{self.path}: token {token} of row {row + where} (counted from 0) holds NaN or infinity"
                )
            row += len(block)
            advance(len(block))


def _checked_mask(path: Path, shape: tuple[int, ...], features: Path) -> npt.NDArray[np.generic]:
    mask = open_npy(path).mapped()
    if mask.shape != shape:
        raise InputError(f"{path}: expected a mask {shape} beside {features}, found {mask.shape}")
    if not (mask.dtype == bool or (np.issubdtype(mask.dtype, np.integer) and np.isin(mask, (0, 1)).all())):
        raise InputError(f"{path}: expected a mask of bool, or of 0 and 1, found {mask.dtype}")
    empty = ~mask.astype(bool).any(1)
    if empty.any():
        raise InputError(f"{path}: row {int(empty.argmax())} (counted from 0) has no token at all")
    return mask
