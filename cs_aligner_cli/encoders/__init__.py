"""Encoders: frozen or trainable towers that turn items of a prepared data set into embeddings."""

from cs_aligner_cli.encoders.table import Encoder, embed_rows, load_encoders, pick_device, weight_files

__all__ = ["Encoder", "embed_rows", "load_encoders", "pick_device", "weight_files"]
