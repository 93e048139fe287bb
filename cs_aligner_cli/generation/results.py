"""The results of a generation: every store's pictures measured, the protocol, and the contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.results import finite
from cs_aligner_cli.common.safe_csv import csv_bytes
from cs_aligner_cli.common.types import Floats32, Ints
from cs_aligner_cli.data.images import read_image
from cs_aligner_cli.data.manifest import ScenesManifest, load_manifest
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.data.scenes import make_scenes
from cs_aligner_cli.encoders import Encoder, load_encoders
from cs_aligner_cli.files.artifact import Build, write_bytes, write_json
from cs_aligner_cli.generation.contact_sheet import sheet_html, sheet_png
from cs_aligner_cli.generation.drawing import CONDITIONS, picture_path
from cs_aligner_cli.generation.inception import inception_features, require_inception
from cs_aligner_cli.generation.measured import Subject, floors, left_out, measure_pictures, refuse_attributes
from cs_aligner_cli.generation.scene_attributes import scene_attributes
from cs_aligner_cli.recipe.generate import PICTURE_METRICS, Generate
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.generation_layout import RESULTS, GenerationLayout
from cs_aligner_cli.stores.embeddings import Store

# Pictures embedded at once.
_BATCH = 64
# Files of pictures to their features (B, e).
_Features: TypeAlias = Callable[[Sequence[Path]], Floats32]
# Keys of the recipe that say how pictures are drawn.
_DRAWING = {"scale", "negative", "decoder_prompt", "steps", "guidance", "noise_level", "height", "dtype"}
ENCODER_SPACE, METRIC_SPACE, INCEPTION_SPACE = "encoder", "metric_encoder", "inception"


def write_results(
    recipe: Recipe,
    spec: Generate,
    made: GenerationLayout,
    data: PreparedData,
    prompts: pd.DataFrame,
    encoder: Encoder,
    console: Console,
    build: Build,
) -> dict[str, Any]:
    """Measure the pictures of every store and bound into ``build.folder``; return what ``results.json`` holds.

    ``prompts`` are the captions drawn from, with ``image_row``, the row of each one's image in the split.
    """
    names = made.drawn
    images = data.split(recipe.drawn_split, "generate.split").images
    real_rows = np.unique(prompts["image_row"].to_numpy())
    real_files = [data.root / locator for locator in images["locator"].iloc[real_rows]]
    spaces = _spaces(recipe, spec, data, encoder)
    truths = scene_truths(recipe, prompts)
    wanted = spec.metrics.which or [m for m in PICTURE_METRICS if m != "attributes" or truths is not None]
    with console.progress("measuring", (len(names) + 1) * len(prompts)) as advance:
        # The image encoder's own features of the real pictures lie in the frozen store.
        stored = Store(made.layout.frozen(recipe.drawn_split).path).array("image").take(real_rows)
        real = {name: stored if name == ENCODER_SPACE else _all(take, real_files) for name, take in spaces.items()}
        advance(len(prompts))
        texts = _judge(made, recipe, spec, prompts)
        judged = texts if texts is not None and texts.shape[1] == stored.shape[1] else None
        subject = Subject(prompts["text"].tolist(), judged, real, truths if "attributes" in wanted else None, wanted)
        found = {}
        for name in names:
            folder = made.pictures(name).path
            files = [picture_path(folder, i) for i in range(len(prompts))]
            features = {space: _all(take, files) for space, take in spaces.items()}
            conditions = np.load(folder / CONDITIONS, allow_pickle=False)
            found[name] = measure_pictures(subject, features, conditions, lambda i, f=files: read_image(f[i])[0])  # type: ignore[misc]
            advance(len(prompts))
    of_halves = floors(subject, recipe.seed)
    summary = {
        "split": recipe.drawn_split,
        "prompts": len(prompts),
        "generate": found,
        "floors": of_halves,
        "published": spec.published.metrics,
        "protocol": _protocol(recipe, spec, encoder, len(real_rows)),
        "sheet": str(made.results.path / "sheet.html"),
        "notes": left_out(subject, len(prompts), of_halves),
    }
    _write(build.folder, summary, made, data, prompts, images)
    return summary


def _write(
    folder: Path,
    summary: dict[str, Any],
    made: GenerationLayout,
    data: PreparedData,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
) -> None:
    write_json(folder / RESULTS, finite(summary))
    long = [
        {"store": store, "metric": metric, "value": value}
        for store, metrics in summary["generate"].items()
        for metric, value in metrics.items()
    ]
    write_bytes(folder / "results.csv", csv_bytes(pd.DataFrame(long)))
    assert made.recipe.generate is not None
    count = min(made.recipe.generate.sheet_prompts, len(prompts))
    numbers = np.linspace(0, len(prompts) - 1, count).round().astype(np.int64)
    rows = {
        "the real picture": [
            read_image(data.root / images["locator"].iloc[i])[0] for i in prompts["image_row"].iloc[numbers]
        ]
    }
    for name in summary["generate"]:
        rows[name] = [read_image(picture_path(made.pictures(name).path, i))[0] for i in numbers.tolist()]
    shown = prompts["text"].iloc[numbers].tolist()
    write_bytes(folder / "sheet.png", sheet_png(rows, shown))
    write_bytes(folder / "sheet.html", sheet_html(rows, shown, f"{made.recipe.name}: what each store draws").encode())


def _spaces(recipe: Recipe, spec: Generate, data: PreparedData, encoder: Encoder) -> dict[str, _Features]:
    """The spaces in which distances are taken, the image encoder's first."""
    spaces = {ENCODER_SPACE: _by_encoder(encoder)}
    if spec.metrics.encoder is not None:
        encoders = recipe.encoders.model_copy(update={"image": spec.metrics.encoder})
        other = recipe.model_copy(update={"encoders": encoders})
        device = next(encoder.module.parameters(), torch.empty(0)).device
        spaces[METRIC_SPACE] = _by_encoder(load_encoders(other, data, device, ["image"])["image"])
    if spec.metrics.inception is not None:
        network = inception_features(spec.metrics.inception)
        spaces[INCEPTION_SPACE] = lambda files: network([read_image(file)[0] for file in files])
    return spaces


def _by_encoder(encoder: Encoder) -> _Features:
    device = next(encoder.module.parameters(), torch.empty(0)).device

    def take(files: Sequence[Path]) -> Floats32:
        pixels = encoder.load(pd.DataFrame({"locator": [str(file.resolve()) for file in files]}))
        with torch.inference_mode():
            features: Floats32 = encoder.module(pixels.to(device)).float().cpu().numpy()
        return features

    return take


def _all(take: _Features, files: Sequence[Path]) -> Floats32:
    return np.concatenate([take(files[start : start + _BATCH]) for start in range(0, len(files), _BATCH)])


def _judge(made: GenerationLayout, recipe: Recipe, spec: Generate, prompts: pd.DataFrame) -> Floats32 | None:
    """(N, dim) the prompts' embeddings in the store that judges."""
    store = Store(made.layout.stores(recipe.drawn_split)[spec.metrics.judge].path)
    place = pd.Index(store.keys("text")["caption_id"]).get_indexer(pd.Index(prompts["caption_id"]))
    rows: Ints = np.asarray(place, np.int64)
    return store.array("text").take(rows)


def scene_truths(recipe: Recipe, prompts: pd.DataFrame) -> list[dict[str, str]] | None:
    """What each prompt's picture should show, None where the data are no drawn scenes of one shape.

    Raises InputError where attributes are to be measured of such data.
    """
    assert recipe.generate is not None
    manifest = load_manifest(recipe)
    if not isinstance(manifest, ScenesManifest) or manifest.objects != [1]:
        refuse_attributes(recipe.generate.metrics.which)
        return None
    made = make_scenes(manifest.images.model_dump(), manifest.seed, manifest.objects, manifest.sizes)
    scenes = made[recipe.drawn_split]
    return [scene_attributes(scenes[int(image_id.rpartition("-")[2])]) for image_id in prompts["image_id"]]


def _protocol(recipe: Recipe, spec: Generate, encoder: Encoder, real: int) -> dict[str, Any]:
    """All that a table's caption must say."""
    decoder = spec.decoder.model or ("trained by this recipe" if spec.train_decoder else "fitted by this recipe")
    backends = {name: version(name) for name in ("diffusers", "torch-fidelity") if find_spec(name.replace("-", "_"))}
    protocol: dict[str, Any] = {
        "real_pictures": f"{real} of split {recipe.drawn_split}, those that the prompts belong to",
        "captions": spec.captions,
        "decoder": f"{spec.decoder.kind}: {decoder}",
        "drawing": spec.model_dump(mode="json", include=_DRAWING),  # null: the pipeline's own
        "judge": spec.metrics.judge,
        "encoder": encoder.identity,
        "preprocessing": "as the encoder's own: resize, crop and filter; the real pictures and the drawn ones alike",
        "frechet": "unbiased covariances, float64, squared; mean and covariance part add up",
        "floors": "between two random halves of the real pictures",
        "kid": "unbiased, all rows, (x.y / d + 1)^3",
        "cmmd": "unit rows, Gaussian kernel of bandwidth 10, times 1,000; cmmd unbiased, cmmd_biased as published",
        "coverage": "improved precision and recall, 3 neighbours",
        "backends": backends,
        "seed": recipe.seed,
    }
    if spec.metrics.inception is not None:
        protocol["inception"] = {
            "sha256": require_inception(spec.metrics.inception),
            "resize": "bilinear as TensorFlow 1, 299 x 299, no crop (torch-fidelity)",
            "layer": "2048",
        }
    if spec.metrics.encoder is not None:
        protocol["metric_encoder"] = spec.metrics.encoder.model_dump(mode="json")
    return protocol
