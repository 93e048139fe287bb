"""The reader of clip-retrieval's folder: embeddings in parts, each with its part of the metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.collector import Source
from cs_aligner_cli.data.features import FeatureFile, FeatureParts, checked_rows
from cs_aligner_cli.data.manifest_layouts import ClipRetrievalManifest
from cs_aligner_cli.data.patterns import find_files
from cs_aligner_cli.data.tables import read_frame, text_column
from cs_aligner_cli.files.places import below, file_stamps


def read_clip_retrieval(manifest: ClipRetrievalManifest, folder: Path, console: Console) -> Source:
    """Row i of every part of the metadata has its image and text embedding in row i of the same parts."""
    assert manifest.root is not None
    image_files, text_files, tables = embedding_parts(manifest)
    frame = pd.concat([_metadata(manifest, path) for path in tables], ignore_index=True)
    twice = frame.loc[frame["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise InputError(
            f"{manifest.root / manifest.metadata}: image {twice.iloc[0]!r} is listed twice; names must be unique",
            "Name another column with the manifest's key id_column.",
        )
    description: dict[str, Any] = {"kind": "clip_retrieval"}
    digests: list[int] = []
    with console.progress("checking features", 2 * len(frame)) as advance:
        for modality, files in (("image", image_files), ("text", text_files)):
            for path, table in zip(files, tables, strict=True):
                file, rows = FeatureFile(path), len(read_frame(table, [manifest.id_column]))
                if file.shape[0] != rows:
                    raise InputError(f"{path}: holds {file.shape[0]} rows, but {table} has {rows}")
                digests += checked_rows(file, modality == "image", advance)
            FeatureParts(files)  # of one dimension
            paths = [below(manifest.root, path) for path in files]
            features = {"paths": paths, "tensor": None, "stamp": file_stamps(files)}
            description[f"{modality}_features"] = features
    frame = frame.assign(feature_row=np.arange(len(frame)))
    captions = frame[["image_id", "split", "text", "feature_row"]]
    images = frame[["image_id", "split", "feature_row"]].assign(
        locator="", width=0, height=0, digest=np.array(digests, np.uint64)
    )
    return Source(images, captions, description)


def embedding_parts(manifest: ClipRetrievalManifest) -> tuple[list[Path], list[Path], list[Path]]:
    """The files of images, texts and metadata, part by part; InputError where their numbers differ."""
    assert manifest.root is not None
    patterns = [manifest.image_features, manifest.text_features, manifest.metadata]
    keys = ("image_features", "text_features", "metadata")
    found = [find_files(manifest.root, pattern, key) for pattern, key in zip(patterns, keys, strict=True)]
    numbered = [{_part_number(path): path for path in files} for files in found]
    if any(None in numbers for numbers in numbered) and any(len(files) > 1 for files in found):
        raise InputError(f"{manifest.root}: expected a number in the name of every part, by which they belong together")
    for pattern, files, numbers in zip(patterns, found, numbered, strict=True):
        if len(numbers) < len(files):
            raise InputError(f"{manifest.root / pattern}: two parts have one number")
        for other, theirs in zip(patterns, numbered, strict=True):
            lacking = [] if len(files) == 1 and len(theirs) == 1 else [n for n in numbers if n not in theirs]
            if lacking:
                counts = ", ".join(f"{len(f)} of {p}" for p, f in zip(patterns, found, strict=True))
                raise InputError(f"{manifest.root}: {pattern} has part {lacking[0]}, which {other} lacks ({counts})")
    return found[0], found[1], found[2]


def _metadata(manifest: ClipRetrievalManifest, path: Path) -> pd.DataFrame:
    columns = {"image_id": manifest.id_column, "text": manifest.caption_column, "split": manifest.split_column}
    table = read_frame(path, [column for column in columns.values() if column])
    read = {
        name: text_column(table, column, path, required=name != "text") for name, column in columns.items() if column
    }
    return pd.DataFrame({"split": manifest.split, **read})


def _part_number(path: Path) -> int | None:
    """The last number in a part's name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None
