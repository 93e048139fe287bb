"""The work of zero-shot: prompts embedded, images classified in every store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.data.tables import read_frame, text_column
from cs_aligner_cli.files.artifact import Artifact, write_json
from cs_aligner_cli.recipe.eval_retrieval import ZeroShot
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.retrieval.few_shot import few_shot
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.zero_shot import accuracies, accuracy_intervals, class_rows, classify
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.query_encoder import QueryEncoder, require_encoder
from cs_aligner_cli.stores.embeddings import NO_SPACE, Store, nothing_to_compare

_TOP = 5


def write_results(recipe: Recipe, class_file: Path, label_file: Path, console: Console, folder: Path) -> dict[str, Any]:
    """Classify the images in every store; return the summary, which is written into the folder too."""
    require_encoder(recipe, "text", "Zero-shot needs a text tower that embeds the prompts.")
    summary = _classified(recipe, class_file, label_file, Layout(recipe), console, folder)
    write_json(folder / "results.json", summary)
    return summary


def _classified(
    recipe: Recipe, class_file: Path, label_file: Path, layout: Layout, console: Console, folder: Path
) -> dict[str, Any]:
    spec, split = recipe.zero_shot, PreparedData(layout.prepared.path).split(recipe.zero_shot_split, "zero_shot.split")
    names = _class_names(class_file)
    rows, labels = _labels(label_file, split, names)
    prompts = [template.replace("{}", name) for name in names for template in spec.templates]
    results: dict[str, Any] = {}
    notes = [f"{len(split.images) - len(rows)} images have no label"] if len(rows) < len(split.images) else []
    stores = layout.stores(split.name)
    shots = _Shots.of(recipe, label_file, names, layout) if recipe.shots_split else None
    few: dict[str, Any] = {}
    with console.progress("classifying", len(stores)) as advance:
        for name, stored in stores.items():
            store = Store(stored.path)
            if store.shares_space:
                classes = class_rows(QueryEncoder(recipe, name).embed("text", prompts), len(names))
                predicted = classify(Rows(store.array("image"), f"{name}, image"), classes, min(_TOP, len(names)))[rows]
                results[name] = accuracies(predicted, labels, names)
                _write_predictions(folder / f"{name}.parquet", split, rows, labels, predicted, names)
                if shots:
                    few[name] = shots.measured(name, torch.from_numpy(store.array("image").take(rows)), labels, classes)
            else:
                notes.append(f"{name}: {NO_SPACE}")
            advance()
    if not results:
        raise nothing_to_compare(split.name)
    return {
        "split": split.name,
        "classes": len(names),
        "templates": spec.templates,
        "zero_shot": results,
        "intervals": {name: accuracy_intervals(found) for name, found in results.items()},
        **({"few_shot": few} if shots else {}),
        "notes": notes,
    }


@dataclass(frozen=True, eq=False)
class _Shots:
    """The labelled images of the split that shots are drawn from."""

    spec: ZeroShot
    stores: Mapping[str, Artifact]
    rows: Ints
    labels: Ints
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, label_file: Path, names: list[str], layout: Layout) -> _Shots:
        assert recipe.shots_split is not None
        split = PreparedData(layout.prepared.path).split(recipe.shots_split, "zero_shot.shots_split")
        rows, labels = _labels(label_file, split, names)
        counts, most = np.bincount(labels, minlength=len(names)), max(recipe.zero_shot.shots)
        if counts.min() < most:
            few = int(counts.argmin())
            raise InputError(
                f"zero_shot.shots: {most} images of each class are wanted, but split {split.name!r} has {counts[few]} "
                f"labelled {names[few]!r}",
                f"Name smaller numbers, as in zero_shot.shots: [{max(int(counts[few]), 1)}].",
            )
        return cls(recipe.zero_shot, layout.stores(split.name), rows, labels, recipe.data_seed)

    def measured(self, store: str, asked: Tensor, labels: Ints, classes: Tensor) -> dict[str, Any]:
        """Method to shots (as text) to the mean accuracy over draws and its interval."""
        known = torch.from_numpy(Store(self.stores[store].path).array("image").take(self.rows))
        spec = self.spec
        found = few_shot(known, self.labels, asked, labels, classes, sorted({*spec.shots}), spec.draws, self.seed)
        return {
            method: {
                str(k): {"mean": one.mean, "interval": [None if math.isnan(v) else v for v in one[1:]]}
                for k, one in by_k.items()
            }
            for method, by_k in found.items()
        }


def _write_predictions(path: Path, split: Split, rows: Ints, labels: Ints, predicted: Ints, names: list[str]) -> None:
    known = np.array(names, object)
    table = {
        "image_id": split.images["image_id"].to_numpy()[rows],
        "label": known[labels],
        "predicted": known[predicted[:, 0]],
    }
    pd.DataFrame(table).to_parquet(path, index=False)


def _class_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"zero_shot.classes: {path}: cannot be read: {error}") from None
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if len(names) < 2 or twice:
        problem = f"names {twice!r} twice" if twice else f"names {len(names)} classes; expected at least 2, one a line"
        raise InputError(f"zero_shot.classes: {path}: {problem}")
    return names


def _labels(path: Path, split: Split, names: list[str]) -> tuple[Ints, Ints]:
    """The rows of the split's images that have a label, and the class numbers."""
    frame = read_frame(path, ("image", "label"))
    image, label = (text_column(frame, column, path, required=True) for column in ("image", "label"))
    numbers = pd.Index(names).get_indexer(pd.Index(label))
    if (numbers < 0).any():
        odd = label[int((numbers < 0).argmax())]
        raise InputError(f"{path}: label {odd!r} is no class of zero_shot.classes{did_you_mean(odd, names)}")
    if image.duplicated().any():
        raise InputError(f"{path}: image {image[int(image.duplicated().to_numpy().argmax())]!r} is labelled twice")
    place = pd.Index(image).get_indexer(pd.Index(split.images["image_id"]))
    rows = np.flatnonzero(place >= 0)
    if len(rows) == 0:
        raise InputError(
            f"{path}: labels no image of split {split.name!r} (its images: {split.images['image_id'][0]}, ...)"
        )
    return rows, numbers[place[rows]]
