"""The readers of every source kind: from a manifest to the two tables, with all that was dropped and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from cs_aligner_cli.console import Console
from cs_aligner_cli.data.features import FeatureFile
from cs_aligner_cli.data.frames import read_frame
from cs_aligner_cli.data.manifest import (
    CaptionFeatures,
    EmbeddingsManifest,
    ImageFeatures,
    Manifest,
    ScenesManifest,
    TableManifest,
)
from cs_aligner_cli.data.scenes import captions as scene_captions
from cs_aligner_cli.data.scenes import draw, make_scenes
from cs_aligner_cli.errors import InputError

# A picture of more pixels than this is a decompression bomb or a mistake; PIL would only warn.
MAX_PIXELS = 100_000_000


@dataclass
class Source:
    """What a reader found.

    ``images`` and ``captions`` are the tables of prepared.Split, ``images`` with a further column ``digest`` of the
    content; ``bad`` lists each dropped item with its reason; ``skipped`` counts what was left out on request;
    ``description`` is what encoders need to find the content again.
    """

    images: pd.DataFrame
    captions: pd.DataFrame
    description: dict[str, Any]
    bad: list[dict[str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def read_scenes(manifest: ScenesManifest, folder: Path, console: Console) -> Source:
    """Draw the pictures into ``folder``/images and write down their captions."""
    scenes = make_scenes(manifest.images.model_dump(), manifest.seed)
    (folder / "images").mkdir(exist_ok=True)
    images, texts = [], []
    with console.progress("drawing", sum(map(len, scenes.values()))) as advance:
        for split, members in scenes.items():
            for i, scene in enumerate(members):
                image_id = f"{split}-{i:05d}"
                locator = f"images/{image_id}.png"
                draw(scene, manifest.size).save(folder / locator, compress_level=1)
                images.append((image_id, split, locator, _digest((folder / locator).read_bytes())))
                told = scene_captions(scene, manifest.captions_per_image)
                texts += [(image_id, split, text) for text in told]
                advance()
    frame = pd.DataFrame(images, columns=["image_id", "split", "locator", "digest"])
    frame = frame.assign(feature_row=-1, width=manifest.size, height=manifest.size)
    captions = pd.DataFrame(texts, columns=["image_id", "split", "text"]).assign(feature_row=-1)
    return Source(frame, captions, {"kind": "scenes"})


def read_table(manifest: TableManifest, folder: Path, console: Console) -> Source:
    """Read a table of image paths and captions, and decode every image once to know that it is whole."""
    assert manifest.root is not None  # load_manifest has seen to it
    columns = [manifest.image_column, manifest.caption_column, *([manifest.split_column] if manifest.split_column else [])]
    rows = read_frame(manifest.root / manifest.table, columns).explode(manifest.caption_column)
    captions = pd.DataFrame(
        {
            "image_id": rows[manifest.image_column].astype(str),
            "split": rows[manifest.split_column].astype(str) if manifest.split_column else "all",
            "text": rows[manifest.caption_column].fillna("").astype(str),
            "feature_row": -1,
        }
    ).reset_index(drop=True)
    images = captions[["image_id", "split"]].drop_duplicates("image_id").reset_index(drop=True)
    images["locator"] = [str(manifest.image_dir / image_id) for image_id in images["image_id"]]
    source = Source(images, captions, {"kind": "table", "root": str(manifest.root)})
    if manifest.absent_files == "skip":
        there = np.array([(manifest.root / locator).is_file() for locator in images["locator"]], dtype=bool)
        source.skipped["images without a file"] = int((~there).sum())
        source.images = images[there].reset_index(drop=True)
    _check_images(source, manifest.root, console)
    return source


def read_embeddings(manifest: EmbeddingsManifest, folder: Path, console: Console) -> Source:
    """Read the two tables and check that the feature files row-align with them and are finite."""
    assert manifest.root is not None
    root, of_images, of_captions = manifest.root, manifest.images, manifest.captions
    table = read_frame(root / of_images.table, [of_images.id_column, of_images.split_column])
    images = pd.DataFrame(
        {"image_id": table[of_images.id_column].astype(str), "split": table[of_images.split_column].astype(str)}
    )
    columns = [of_captions.image_column, of_captions.caption_column, of_captions.split_column]
    table = read_frame(root / of_captions.table, columns)
    captions = pd.DataFrame(
        {
            "image_id": table[of_captions.image_column].astype(str).replace("", None),
            "split": table[of_captions.split_column].astype(str),
            "text": table[of_captions.caption_column].astype(str),
        }
    )
    description: dict[str, Any] = {"kind": "embeddings", "root": str(root)}
    for modality, frame, part in (("image", images, of_images), ("text", captions, of_captions)):
        file = _aligned_features(root, part, len(frame))
        frame["feature_row"] = np.arange(len(frame))
        frame["digest"] = _row_digests(file)
        description[f"{modality}_features"] = {"path": str(file.path), "tensor": part.tensor}
    images = images.assign(locator="", width=0, height=0)
    return Source(images, captions.drop(columns="digest"), description)


SourceReader: TypeAlias = Callable[[Any, Path, Console], Source]
SOURCES: dict[str, SourceReader] = {"scenes": read_scenes, "table": read_table, "embeddings": read_embeddings}


def source_files(manifest: Manifest) -> list[Path]:
    """The files whose change makes a prepared data set stale."""
    if isinstance(manifest, ScenesManifest):
        return []
    assert manifest.root is not None
    if isinstance(manifest, EmbeddingsManifest):
        names = [part for p in (manifest.images, manifest.captions) for part in (p.table, p.features)]
        return [path for path in (manifest.root / name for name in names) if path.is_file()]
    folder = manifest.root / manifest.image_dir
    table = manifest.root / manifest.table
    return [*([table] if table.is_file() else []), *(p for p in folder.rglob("*") if p.is_file() and p != table)]


def _aligned_features(root: Path, part: ImageFeatures | CaptionFeatures, rows: int) -> FeatureFile:
    file = FeatureFile(root / part.features, part.tensor)
    if file.shape[0] != rows:
        raise InputError(f"{file.path}: holds {file.shape[0]} rows, but {root / part.table} has {rows}")
    return file


def _row_digests(file: FeatureFile) -> list[str]:
    digests: list[str] = []
    for block in file.blocks():
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            bad_row = len(digests) + int(np.argmin(finite))
            raise InputError(f"{file.path}: row {bad_row} (counted from 0) holds NaN or infinity")
        digests += [_digest(row.tobytes()) for row in block]
    return digests


def _check_images(source: Source, root: Path, console: Console) -> None:
    """Decode every image; move those that fail to ``bad``, and record size and digest of the others."""
    locators: Sequence[str] = source.images["locator"].tolist()
    found: list[tuple[int, int, str, str]] = []
    with console.progress("checking images", len(locators)) as advance, ThreadPoolExecutor() as pool:
        for result in pool.map(lambda locator: _look_at(root / locator), locators):
            found.append(result)
            advance()
    images = source.images
    images[["width", "height", "digest", "reason"]] = pd.DataFrame(found, index=images.index, columns=range(4))
    failed = images["reason"] != ""
    source.bad += [
        {"kind": "image", "item": str(root / row.locator), "reason": str(row.reason)}
        for row in images[failed].itertuples()
    ]
    source.images = images[~failed].drop(columns="reason").assign(feature_row=-1).reset_index(drop=True)


def _look_at(path: Path) -> tuple[int, int, str, str]:
    """Width, height, digest and, if the file is no whole image, the reason."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return 0, 0, "", f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
            image.load()
            return image.width, image.height, _digest(path.read_bytes()), ""
    except FileNotFoundError:
        return 0, 0, "", "no such file"
    except Image.UnidentifiedImageError:
        return 0, 0, "", "not an image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "damaged"
        return 0, 0, "", f"damaged: {str(error).removeprefix(str(path))}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
