"""Token features as files, with the manifest that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TOKENS = {"image": (7, 24), "text": (5, 16)}  # most tokens, dimensions


def write_tokens(root: Path, seed: int = 0) -> None:
    """Token features beside those of ``features_root``: each item's feature with noise, some masked, padding wild."""
    rng = np.random.default_rng(seed)
    for modality, file in (("image", "image_mobilenet_v2"), ("text", "text_minilm")):
        longest, dim = TOKENS[modality]
        features = np.load(root / f"{file}.npy").astype(np.float32)
        tokens = features[:, None] + rng.normal(size=(len(features), longest, dim))
        mask = rng.random((len(features), longest)) < 0.7
        mask[:, 0] = True
        tokens[~mask] = np.nan
        np.save(root / f"{modality}_tokens.npy", tokens.astype(np.float16))
        np.save(root / f"{modality}_mask.npy", mask)


def manifest_of(root: Path) -> dict[str, Any]:
    tokens = {m: {"features": f"{m}_tokens.npy", "mask": f"{m}_mask.npy"} for m in TOKENS}
    return {
        "name": "tokens",
        "kind": "embeddings",
        "root": str(root),
        "images": {"table": "images.csv", "features": "image_mobilenet_v2.npy", "tokens": tokens["image"]},
        "captions": {"table": "captions.csv", "features": "text_minilm.npy", "tokens": tokens["text"]},
    }
