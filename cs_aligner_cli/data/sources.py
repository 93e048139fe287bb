"""The table of readers, one for every source kind, and those of drawn data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.annotation_readers import (
    read_coco,
    read_conversations,
    read_karpathy,
)
from cs_aligner_cli.data.clip_retrieval import read_clip_retrieval
from cs_aligner_cli.data.collector import Source
from cs_aligner_cli.data.embeddings_source import read_embeddings
from cs_aligner_cli.data.folder import read_folder
from cs_aligner_cli.data.images import digest
from cs_aligner_cli.data.latent import draw_tokens, draw_views
from cs_aligner_cli.data.manifest import (
    CaptionFeatures,
    FurtherFeatures,
    ImageFeatures,
    LatentManifest,
    ScenesManifest,
)
from cs_aligner_cli.data.mixbench import read_mixbench
from cs_aligner_cli.data.scene_captions import captions as scene_captions
from cs_aligner_cli.data.scenes import draw, make_scenes
from cs_aligner_cli.data.shards import read_webdataset
from cs_aligner_cli.data.table_source import read_table

_AnyFeatures: TypeAlias = ImageFeatures | CaptionFeatures | FurtherFeatures


def read_scenes(manifest: ScenesManifest, folder: Path, console: Console) -> Source:
    """Draw the pictures into ``folder``/images and write down their captions."""
    scenes = make_scenes(manifest.images.model_dump(), manifest.seed, manifest.objects, manifest.sizes)
    (folder / "images").mkdir(exist_ok=True)
    images, texts = [], []
    with console.progress("drawing", sum(map(len, scenes.values()))) as advance:
        for split, members in scenes.items():
            for i, scene in enumerate(members):
                image_id = f"{split}-{i:05d}"
                locator = f"images/{image_id}.png"
                draw(scene, manifest.size).save(folder / locator, compress_level=1)
                label = f"{len(scene.things)} shapes" if len(scene.things) > 1 else "1 shape"
                images.append((image_id, split, locator, digest((folder / locator).read_bytes()), label))
                scene_texts = scene_captions(scene, manifest.captions_per_image)
                texts += [(image_id, split, text) for text in scene_texts]
                advance()
    frame = pd.DataFrame(images, columns=["image_id", "split", "locator", "digest", "label"])
    frame = frame.assign(feature_row=-1, width=manifest.size, height=manifest.size)
    captions = pd.DataFrame(texts, columns=["image_id", "split", "text"]).assign(feature_row=-1)
    return Source(frame, captions, {"kind": "scenes"})


def draw_latent(manifest: LatentManifest, folder: Path, console: Console) -> Source:
    """Draw the features of every modality into ``folder``; a caption is the item's number."""
    counts = manifest.images.model_dump()
    modalities = ("image", "text", *manifest.modalities)
    options = manifest.model_dump(include={"dim", "latent_dim", "noise", "gap", "curvature"})
    rng = np.random.default_rng(manifest.seed)
    description: dict[str, Any] = {"kind": "latent"}
    if manifest.tokens is None:
        views = draw_views(sum(counts.values()), len(modalities), rng=rng, **options)
    else:
        views = []
        lengths = manifest.tokens.image, manifest.tokens.text
        for modality, tokens, mask in zip(
            modalities, *draw_tokens(sum(counts.values()), *lengths, rng=rng, **options), strict=True
        ):
            np.save(folder / f"{modality}_tokens.npy", tokens)
            np.save(folder / f"{modality}_mask.npy", mask)
            paths = {"path": f"{modality}_tokens.npy", "mask": f"{modality}_mask.npy"}
            description[f"{modality}_tokens"] = paths | {"tensor": None, "stamp": None}
            views.append(tokens.mean(axis=1, where=mask[..., None]))
    for modality, features in zip(modalities, views, strict=True):
        np.save(folder / f"{modality}.npy", features)
        description[f"{modality}_features"] = {"paths": [f"{modality}.npy"], "tensor": None, "stamp": None}
    names = [(f"{split}-{i:06d}", split) for split, count in counts.items() for i in range(count)]
    images = pd.DataFrame(names, columns=["image_id", "split"])
    images = images.assign(feature_row=np.arange(len(images)))
    captions = images.assign(text=[f"pair {image_id}" for image_id in images["image_id"]])
    further = {modality: images.copy() for modality in manifest.modalities}
    digests = [digest(row.tobytes()) for row in views[0]]
    images = images.assign(locator="", width=0, height=0, digest=digests)
    return Source(images, captions, description, further=further)


SourceReader: TypeAlias = Callable[[Any, Path, Console], Source]
SOURCES: dict[str, SourceReader] = {
    "scenes": read_scenes,
    "latent": draw_latent,
    "table": read_table,
    "embeddings": read_embeddings,
    "karpathy": read_karpathy,
    "coco": read_coco,
    "folder": read_folder,
    "conversations": read_conversations,
    "mixbench": read_mixbench,
    "webdataset": read_webdataset,
    "clip_retrieval": read_clip_retrieval,
}
