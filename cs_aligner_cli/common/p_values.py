"""P values as text; here without NumPy, which a report that is there already waits for no longer."""

from __future__ import annotations

LEVEL = 0.05


def rounded_p(p: float, form: str = ".3f", least: float = 0.001) -> str:
    """``0.031``, or ``< 0.001``; ``< 0.05`` where rounding would put it at the level that it is below.

    ``form``: how it is written, as in a format string; ``least``: below that, only that is said.
    """
    if p < least:
        return f"< {least:g}"
    rounded = f"{p:{form}}"
    return f"< {LEVEL}" if p < LEVEL <= float(rounded) else rounded
