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
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.results import finite
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.files.artifact import Artifact, write_json
from cs_aligner_cli.recipe.eval_retrieval import ZeroShot
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.retrieval.few_shot import few_shot
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.zero_shot import accuracies, accuracy_intervals, class_rows, classify
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.query_encoder import QueryEncoder, require_encoder
from cs_aligner_cli.stages.zero_shot.classes import Classes
from cs_aligner_cli.stores.embeddings import NO_SPACE, Store, nothing_to_compare

_TOP = 5


def write_results(recipe: Recipe, console: Console, folder: Path) -> dict[str, Any]:
    """Classify the images in every store; return the summary, which is written into the folder too."""
    require_encoder(recipe, "text", "Zero-shot needs a text tower that embeds the prompts.")
    summary = _classified(recipe, Layout(recipe), console, folder)
    write_json(folder / "results.json", finite(summary))
    return summary


def _classified(recipe: Recipe, layout: Layout, console: Console, folder: Path) -> dict[str, Any]:
    data = PreparedData(layout.prepared.path)
    split = data.split(recipe.zero_shot_split, "zero_shot.split")
    known = Classes.of(recipe, data)
    names, prompts = known.labels, known.prompts
    rows, labels = known.of_images(split)
    results: dict[str, Any] = {}
    lacking = len(split.images) - len(rows)
    notes = [f"{counted(lacking, 'images', 'have')} no label"] if lacking else []
    stores = layout.stores(split.name)
    shots = _Shots.of(recipe, known, data, layout) if recipe.shots_split else None
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
        "templates": known.templates,
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
    def of(cls, recipe: Recipe, classes: Classes, data: PreparedData, layout: Layout) -> _Shots:
        assert recipe.shots_split is not None
        split, names = data.split(recipe.shots_split, "zero_shot.shots_split"), classes.labels
        rows, labels = classes.of_images(split)
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
