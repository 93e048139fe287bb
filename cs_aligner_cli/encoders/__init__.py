"""Encoders: frozen or trainable towers that turn items of a prepared data set into embeddings.

What needs torch is imported when it is asked for: whether outputs are fresh is known without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cs_aligner_cli.common.lazy import lazy_names

if TYPE_CHECKING:
    from cs_aligner_cli.encoders.availability import weight_files
    from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
    from cs_aligner_cli.encoders.table import load_encoders, pick_device

__all__ = ["Encoder", "TokenReader", "load_encoders", "pick_device", "weight_files"]

_WHERE = {
    "weight_files": "availability",
    "Encoder": "encoder",
    "TokenReader": "encoder",
    "load_encoders": "table",
    "pick_device": "table",
}

__getattr__ = lazy_names(__name__, _WHERE)
