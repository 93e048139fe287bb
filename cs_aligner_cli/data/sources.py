"""The readers of every source kind: from a manifest to the two tables, with all that was dropped and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from cs_aligner_cli.artifacts import file_stamps
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.features import FeatureFile
from cs_aligner_cli.data.frames import read_frame, text_column
from cs_aligner_cli.data.images import ABSENT, digest, look_at_all
from cs_aligner_cli.data.latent import draw_basis, draw_pairs
from cs_aligner_cli.data.manifest import (
    CaptionFeatures,
    DrawnManifest,
    EmbeddingsManifest,
    ImageFeatures,
    LatentManifest,
    Manifest,
    ScenesManifest,
    TableManifest,
)
from cs_aligner_cli.data.scenes import captions as scene_captions
from cs_aligner_cli.data.scenes import draw, make_scenes
from cs_aligner_cli.errors import InputError


@dataclass
class Source:
    """What a reader found.

    ``images`` and ``captions`` are the tables of prepared.Split, ``images`` with a further column
    ``digest`` of the content; ``bad`` lists each dropped item with its reason; ``skipped`` counts what was
    left out on request; ``description`` is what encoders need to find the content again.
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
                label = f"{len(scene.things)} shapes"
                images.append((image_id, split, locator, digest((folder / locator).read_bytes()), label))
                told = scene_captions(scene, manifest.captions_per_image)
                texts += [(image_id, split, text) for text in told]
                advance()
    frame = pd.DataFrame(images, columns=["image_id", "split", "locator", "digest", "label"])
    frame = frame.assign(feature_row=-1, width=manifest.size, height=manifest.size)
    captions = pd.DataFrame(texts, columns=["image_id", "split", "text"]).assign(feature_row=-1)
    return Source(frame, captions, {"kind": "scenes"})


def draw_latent(manifest: LatentManifest, folder: Path, console: Console) -> Source:
    """Draw the pairs of features into ``folder``; a caption is the pair's number."""
    rng = np.random.default_rng(manifest.seed)
    basis = draw_basis(manifest.dim, manifest.latent_dim, rng)
    counts = manifest.images.model_dump()
    options = manifest.model_dump(include={"dim", "latent_dim", "noise", "gap"})
    pairs = draw_pairs(sum(counts.values()), rng=rng, basis=basis, **options)
    description: dict[str, Any] = {"kind": "latent"}
    for modality, features in zip(("image", "text"), pairs, strict=True):
        np.save(folder / f"{modality}.npy", features)
        description[f"{modality}_features"] = {"path": f"{modality}.npy", "tensor": None, "stamp": None}
    names = [(f"{split}-{i:06d}", split) for split, count in counts.items() for i in range(count)]
    images = pd.DataFrame(names, columns=["image_id", "split"])
    images = images.assign(feature_row=np.arange(len(images)))
    captions = images.assign(text=[f"pair {image_id}" for image_id in images["image_id"]])
    digests = [digest(row.tobytes()) for row in pairs[0]]
    return Source(images.assign(locator="", width=0, height=0, digest=digests), captions, description)


def read_table(manifest: TableManifest, folder: Path, console: Console) -> Source:
    """Read a table of image paths and captions, and decode every image once to know that it is whole."""
    assert manifest.root is not None  # load_manifest has seen to it
    table = manifest.root / manifest.table
    image_column, caption_column, split_column = (
        manifest.image_column,
        manifest.caption_column,
        manifest.split_column,
    )
    label_column = manifest.label_column
    rows = read_frame(table, [c for c in (image_column, caption_column, split_column, label_column) if c])
    image_ids = _ids(text_column(rows, image_column, table))
    columns = {
        "image_id": image_ids,
        "split": text_column(rows, split_column, table, required=True) if split_column else "all",
        "text": rows[caption_column],
    }
    labels = text_column(rows, label_column, table) if label_column else ""
    captions = pd.DataFrame(columns).explode("text", ignore_index=True).assign(feature_row=-1)
    captions["text"] = text_column(captions, "text", table)
    named = captions.loc[captions["image_id"].notna(), ["image_id", "split"]]
    images = named.drop_duplicates("image_id", ignore_index=True)
    images["label"] = _label_of_each(images["image_id"], image_ids, labels, table)
    images["locator"] = [str(manifest.image_dir / image_id) for image_id in images["image_id"]]
    source = Source(images, captions, {"kind": "table", "root": str(manifest.root)})
    _check_images(source, manifest.root, manifest.absent_files == "skip", console)
    return source


def read_embeddings(manifest: EmbeddingsManifest, folder: Path, console: Console) -> Source:
    """Read the two tables and check that the feature files row-align with them and are finite."""
    assert manifest.root is not None
    root, of_images, of_captions = manifest.root, manifest.images, manifest.captions
    path = root / of_images.table
    label_column = of_images.label_column
    table = read_frame(path, [c for c in (of_images.id_column, of_images.split_column, label_column) if c])
    images = pd.DataFrame(
        {
            "image_id": text_column(table, of_images.id_column, path, required=True),
            "split": text_column(table, of_images.split_column, path, required=True),
            "label": text_column(table, label_column, path) if label_column else "",
        }
    )
    twice = images.loc[images["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise InputError(f"{path}: image {twice.iloc[0]!r} is listed twice; names must be unique")
    path = root / of_captions.table
    table = read_frame(path, [of_captions.image_column, of_captions.caption_column, of_captions.split_column])
    captions = pd.DataFrame(
        {
            "image_id": _ids(text_column(table, of_captions.image_column, path)),
            "split": text_column(table, of_captions.split_column, path, required=True),
            "text": text_column(table, of_captions.caption_column, path),
        }
    )
    description: dict[str, Any] = {"kind": "embeddings", "root": str(root)}
    total = len(images) + len(captions)
    with console.progress("checking features", total) as advance:
        for modality, frame, part in (("image", images, of_images), ("text", captions, of_captions)):
            file = _aligned_features(root, part, len(frame))
            features = {"path": str(file.path), "tensor": part.tensor, "stamp": file_stamps([file.path])}
            description[f"{modality}_features"] = features
            frame["feature_row"] = np.arange(len(frame))
            digests = _checked_rows(file, modality == "image", advance)
            if modality == "image":
                frame["digest"] = digests
    return Source(images.assign(locator="", width=0, height=0), captions, description)


SourceReader: TypeAlias = Callable[[Any, Path, Console], Source]
SOURCES: dict[str, SourceReader] = {
    "scenes": read_scenes,
    "latent": draw_latent,
    "table": read_table,
    "embeddings": read_embeddings,
}


def source_files(manifest: Manifest) -> list[str]:
    """The files, there or not, whose change makes a prepared data set stale."""
    if isinstance(manifest, DrawnManifest):
        return []
    assert manifest.root is not None
    if isinstance(manifest, EmbeddingsManifest):
        parts = (manifest.images, manifest.captions)
        return [str(manifest.root / name) for part in parts for name in (part.table, part.features)]
    table = manifest.root / manifest.table
    names = text_column(read_frame(table, [manifest.image_column]), manifest.image_column, table).unique()
    return [str(table), *(str(manifest.root / manifest.image_dir / name) for name in names)]


def _ids(text: pd.Series[str]) -> pd.Series[Any]:
    """Names of images, None for the empty ones."""
    return text.astype(object).where(text != "", None)


def _label_of_each(
    images: pd.Series[Any], of_rows: pd.Series[Any], labels: pd.Series[str] | str, table: Path
) -> list[str]:
    """The label of every image; raises InputError where the rows of one image have two."""
    rows = pd.DataFrame({"image": of_rows, "label": labels}).dropna(subset="image").drop_duplicates()
    twice = rows.loc[rows["image"].duplicated(), "image"]
    if len(twice):
        found = rows.loc[rows["image"] == twice.iloc[0], "label"].tolist()
        raise InputError(f"{table}: image {twice.iloc[0]!r} has two labels: {found[0]!r} and {found[1]!r}")
    of_image: dict[str, str] = dict(zip(rows["image"], rows["label"], strict=True))
    return [of_image[image] for image in images]


def _aligned_features(root: Path, part: ImageFeatures | CaptionFeatures, rows: int) -> FeatureFile:
    file = FeatureFile(root / part.features, part.tensor)
    if file.shape[0] != rows:
        raise InputError(f"{file.path}: holds {file.shape[0]} rows, but {root / part.table} has {rows}")
    return file


def _checked_rows(file: FeatureFile, with_digests: bool, advance: Callable[..., None]) -> list[str]:
    """See that all rows are finite; return their digests where asked."""
    digests: list[str] = []
    row = 0
    for block in file.blocks():
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise InputError(f"{file.path}: row {row + finite.argmin()} (counted from 0) holds NaN or infinity")
        if with_digests:
            digests += [digest(values.tobytes()) for values in block]
        row += len(block)
        advance(len(block))
    return digests


def _check_images(source: Source, root: Path, skip_absent: bool, console: Console) -> None:
    """Decode every image; move those that fail to ``bad``, and record size and digest of the others."""
    images = source.images
    paths = [root / locator for locator in images["locator"]]
    with console.progress("checking images", len(paths)) as advance:
        looks = list(look_at_all(paths, advance))
    absent = np.array([skip_absent and seen.reason == ABSENT for seen in looks], dtype=bool)
    if skip_absent:
        source.skipped["images without a file"] = int(absent.sum())
    source.bad += [
        {"kind": "image", "item": str(path), "reason": seen.reason}
        for path, seen, skipped in zip(paths, looks, absent, strict=True)
        if seen.reason and not skipped
    ]
    images = images.assign(
        width=[seen.width for seen in looks],
        height=[seen.height for seen in looks],
        digest=[seen.digest for seen in looks],
        feature_row=-1,
    )
    source.images = images[[not seen.reason for seen in looks]].reset_index(drop=True)
