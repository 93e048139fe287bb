"""Encoders: frozen or trainable towers that turn items of a prepared data set into embeddings.

What needs torch is imported when it is asked for: whether outputs are fresh is known without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cs_aligner_cli.encoders.availability import weight_files
    from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
    from cs_aligner_cli.encoders.table import load_encoders, pick_device

__all__ = ["Encoder", "TokenReader", "load_encoders", "pick_device", "weight_files"]

_HOMES = {
    "weight_files": "availability",
    "Encoder": "encoder",
    "TokenReader": "encoder",
    "load_encoders": "table",
    "pick_device": "table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
