"""CSV that spreadsheets open without running anything in it."""

from __future__ import annotations

from typing import Any

import pandas as pd

# A cell of text that begins so is a formula for spreadsheets (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """A frame as CSV in UTF-8. Text that a spreadsheet would take for a formula gets an apostrophe before it.

    Names of splits and images come from the data, and the data may come from anywhere. Numbers stay as they are.
    """
    named = frame.rename(columns=_harmless)
    text = {name: column.map(_harmless) for name, column in named.items() if column.dtype in (object, "str")}
    return named.assign(**{str(name): column for name, column in text.items()}).to_csv(index=False).encode()


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # A bare carriage return would begin a new row, and the writer does not put it in quotes.
    text = cell.replace("\r", "\n")
    return f"'{text}" if cell.startswith(_FORMULA) else text
