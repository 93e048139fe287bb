"""Which classes there are, how prompts name them, and the class of each image: from files, or from the data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.data.tables import read_frame, text_column
from cs_aligner_cli.recipe.eval_retrieval import DEFAULT_TEMPLATE
from cs_aligner_cli.recipe.recipe import Recipe


class Classes(NamedTuple):
    """The classes in order: labels, no two alike, and their names in prompts, which two may share; the prompts."""

    labels: list[str]
    names: list[str]
    templates: list[str]
    file: Path | None

    @classmethod
    def of(cls, recipe: Recipe, data: PreparedData) -> Classes:
        """Those of the recipe. Raises InputError where a file cannot be used, or the data set has no two labels."""
        spec = recipe.zero_shot
        if spec.classes is not None:
            names = _class_names(spec.classes)
            return cls(names, names, spec.templates or [DEFAULT_TEMPLATE], spec.labels)
        known: dict[str, str] = data.source.get("classes", {})
        if not known:
            found = sorted({*data.images["label"]} - {""})
            known = dict(zip(found, found, strict=True))
        if len(known) < 2:
            raise InputError(
                f"zero_shot.from_data: the images have {len(known) or 'no'} labels; expected at least 2 different ones",
                "Labels are a manifest's label_column or classes; or name files: zero_shot.classes and labels.",
            )
        templates = spec.templates or data.source.get("templates") or [DEFAULT_TEMPLATE]
        return cls([*known], [*known.values()], templates, None)

    @property
    def prompts(self) -> list[str]:
        """Every template of every class, class by class."""
        return [template.replace("{}", name) for name in self.names for template in self.templates]

    def of_images(self, split: Split) -> tuple[Ints, Ints]:
        """The rows of the split's images that have a label, and the class numbers."""
        if self.file is not None:
            return _labels(self.file, split, self.labels)
        numbers = pd.Index(self.labels).get_indexer(pd.Index(split.images["label"]))
        rows = np.flatnonzero(numbers >= 0)
        if len(rows) == 0:
            raise InputError(f"zero_shot.from_data: no image of split {split.name!r} has a label")
        return rows, numbers[rows]


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
