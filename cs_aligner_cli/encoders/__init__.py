"""Encoders: frozen or trainable towers that turn items of a prepared data set into embeddings."""

from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
from cs_aligner_cli.encoders.table import load_encoders, pick_device, weight_files

__all__ = ["Encoder", "TokenReader", "load_encoders", "pick_device", "weight_files"]
