"""Pictures of one store drawn into a folder, one file each, so that a job that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cs_aligner_cli.common.types import Floats32
from cs_aligner_cli.files.artifact import write_bytes
from cs_aligner_cli.files.checksums import digest, is_whole, mark
from cs_aligner_cli.generation.conditions import picture_seed
from cs_aligner_cli.generation.decoders import Decoder

IMAGES, TABLE, CONDITIONS = "images", "images.parquet", "conditions.npy"


def picture_path(folder: Path, number: int) -> Path:
    """Where picture ``number`` of a store lies."""
    return folder / IMAGES / f"{number:05d}.png"


def missing_batches(folder: Path, count: int, batch_size: int) -> list[list[int]]:
    """The batches of which a picture is not there yet, or not as it was written: the numbers of all their pictures.

    A batch is drawn whole or not at all: the last bit of a sum may depend on what else is in it, and a job that was
    killed must end with the bytes of one that was not.
    """
    batches = [[*range(start, min(start + batch_size, count))] for start in range(0, count, batch_size)]
    return [batch for batch in batches if not all(is_whole(picture_path(folder, i)) for i in batch)]


def draw_pictures(
    folder: Path,
    decoder: Decoder,
    conditions: Floats32,
    prompts: pd.DataFrame,
    batches: Sequence[Sequence[int]],
    seed: int,
    advance: Callable[[int], None],
) -> dict[int, float]:
    """Draw some of a store's batches; return the seconds that each picture took, its share of a batch.

    ``conditions`` (N, dim) and ``prompts`` (caption_id, text) are of all pictures.
    """
    seconds: dict[int, float] = {}
    for part in batches:
        seeds = [picture_seed(seed, prompts["caption_id"].iloc[i]) for i in part]
        texts = [prompts["text"].iloc[i] for i in part]
        began = time.perf_counter()
        with torch.inference_mode():
            pictures = decoder.draw(torch.from_numpy(conditions[[*part]]), texts, seeds)
        each = (time.perf_counter() - began) / len(part)
        for number, picture in zip(part, pictures, strict=True):
            if not is_whole(picture_path(folder, number)):
                _write(picture_path(folder, number), picture)
            seconds[number] = each
        advance(len(part))
    return seconds


def _write(path: Path, picture: Image.Image) -> None:
    content = BytesIO()
    picture.save(content, "PNG", compress_level=6)
    write_bytes(path, content.getvalue())
    write_bytes(mark(path), digest(path).encode())


def write_table(
    folder: Path, prompts: pd.DataFrame, conditions: Floats32, seconds: dict[int, float], seed: int
) -> None:
    """Write what each picture was drawn from; of those drawn before a restart ``seconds`` is not known (NaN)."""
    numbers = range(len(prompts))
    table = pd.DataFrame(
        {
            "caption_id": prompts["caption_id"].to_numpy(),
            "image_id": prompts["image_id"].to_numpy(),
            "prompt": prompts["text"].to_numpy(),
            "seed": [picture_seed(seed, caption) for caption in prompts["caption_id"]],
            "norm": np.linalg.norm(conditions.astype(np.float64), axis=1),
            "seconds": [seconds.get(i, float("nan")) for i in numbers],
            "sha256": [hashlib.sha256(picture_path(folder, i).read_bytes()).hexdigest() for i in numbers],
        }
    )
    table.to_parquet(folder / TABLE, index=False)
    np.save(folder / CONDITIONS, conditions, allow_pickle=False)
