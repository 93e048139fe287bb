"""Columns of text that grow row by row in a compact form."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

# Rows that wait as Python objects before they are packed into Arrow's compact form.
PACKED_ROWS = 65536


class Columns:
    """Columns of text that grow row by row: a million short texts take some tens of megabytes."""

    def __init__(self, *names: str) -> None:
        self._waiting: dict[str, list[Any]] = {name: [] for name in names}
        self._packed: dict[str, list[pa.Array]] = {name: [] for name in names}
        self._rows = 0

    def append(self, *values: str | None) -> None:
        """One row, a value (None: missing) for every column."""
        for waiting, value in zip(self._waiting.values(), values, strict=True):
            waiting.append(value)
        self._rows += 1
        if self._rows % PACKED_ROWS == 0:
            self._pack()

    def __len__(self) -> int:
        return self._rows

    def _pack(self) -> None:
        for name, waiting in self._waiting.items():
            self._packed[name].append(pa.array(waiting, pa.large_string()))
            waiting.clear()

    def frame(self) -> pd.DataFrame:
        """The rows so far."""
        self._pack()
        return pd.DataFrame({n: pa.chunked_array(p, pa.large_string()).to_pandas() for n, p in self._packed.items()})
