"""Which items of the training split are pairs, which are unpaired, and which are left out because they would leak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.runs.layout import Layout

# The name of the data set itself among the sources of unpaired items.
OWN = ""
PAIRED, UNPAIRED, LEFT_OUT = "paired", "unpaired", "left out"
_CONTENT = {"image": "digest", "text": "text"}


@dataclass(frozen=True)
class Pairing:
    """The role of every item: ``tables`` holds for each modality source, row (in the source's split), id and role."""

    tables: Mapping[str, pd.DataFrame]

    def rows(self, modality: str, role: str, source: str = OWN) -> Ints:
        """The rows of a source's split that have this role."""
        table = self.tables[modality]
        return table.loc[(table["source"] == source) & (table["role"] == role), "row"].to_numpy(np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many items of each modality have each role."""
        roles = (PAIRED, UNPAIRED, LEFT_OUT)
        return {m: {role: int((table["role"] == role).sum()) for role in roles} for m, table in self.tables.items()}

    def limited(self, split: Split) -> Split:
        """The training split with the pairs that are left."""
        return _limited(split, self.rows("image", PAIRED))

    def write(self, folder: Path) -> None:
        """Write one Parquet table per modality."""
        for modality, table in self.tables.items():
            table.to_parquet(folder / f"{modality}.parquet", index=False)


def read_pairing(folder: Path) -> Pairing:
    """The pairing that ``Pairing.write`` left in a folder."""
    return Pairing({modality: pd.read_parquet(folder / f"{modality}.parquet") for modality in _CONTENT})


def unpaired_splits(layout: Layout) -> dict[str, tuple[Split, Sequence[str]]]:
    """The splits that other manifests bring as unpaired items, by name, and the modalities taken of them.

    Locators are made absolute, so that an encoder of the data set itself can read the items.
    """
    unpaired = layout.recipe.data.unpaired
    found: dict[str, tuple[Split, Sequence[str]]] = {}
    for number, (name, other) in enumerate(layout.unpaired.items()):
        assert unpaired is not None
        data = PreparedData(other.prepared.path)
        split = data.split(unpaired.sources[number].split, f"data.unpaired.sources.{number}.split", other.modalities)
        images = split.images.assign(locator=[str(data.root / locator) for locator in split.images["locator"]])
        found[name] = Split(f"{name}:{split.name}", images, split.captions), other.modalities
    return found


def draw_pairing(
    split: Split,
    guarded: Sequence[pd.DataFrame],
    sources: Mapping[str, tuple[Split, Sequence[str]]],
    fraction: float,
    seed: int,
    held_out: Callable[[Split], Ints] = lambda split: np.arange(0),
) -> Pairing:
    """Decide the role of every item of the training split and of other sources (split, modalities taken).

    A random ``fraction`` of the images with captions keep them. An unpaired item whose content (an image's digest, a
    caption's text without regard to case and spaces) also stands in ``guarded``, the images and the captions of all
    other splits, or belongs to one of the images that ``held_out`` takes from the training split for validation, is
    left out: nothing of validation or test may be trained on. Raises InputError if fewer than two images stay paired.
    """
    owners = split.image_of_caption
    with_captions = np.unique(owners[owners >= 0])
    kept = round(fraction * len(with_captions))
    if kept < 2:
        raise InputError(
            f"data.unpaired.paired_fraction: {fraction:g} of the {len(with_captions)} captioned images of split "
            f"{split.name!r} leaves {kept} of them; training needs at least 2 pairs"
        )
    drawn = np.random.default_rng([seed, 4]).permutation(with_captions)[:kept]
    paired = {"image": np.isin(np.arange(len(split.images)), drawn), "text": np.isin(owners, drawn)}
    held = held_out(_limited(split, drawn))
    known = {
        "image": {*_content(guarded[0], "image"), *_content(split.images.iloc[held], "image")},
        "text": {*_content(guarded[1], "text"), *_content(split.captions[np.isin(owners, held)], "text")},
    }
    tables = {m: [_roles(OWN, split, m, known[m], paired[m])] for m in _CONTENT}
    for name, (other, modalities) in sources.items():
        for modality in modalities:
            nothing = np.zeros(len(other.table(modality)), bool)
            tables[modality].append(_roles(name, other, modality, known[modality], nothing))
    return Pairing({m: pd.concat(parts, ignore_index=True) for m, parts in tables.items()})


def _limited(split: Split, image_rows: Ints) -> Split:
    """A split in which captions and items of all but these images lose their image."""
    kept = split.images["image_id"].iloc[image_rows]

    def among(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(image_id=table["image_id"].astype(object).where(table["image_id"].isin(kept), None))

    further = {modality: among(table) for modality, table in split.further.items()}
    return Split(split.name, split.images, among(split.captions), further)


def _roles(source: str, split: Split, modality: str, known: set[Any], paired: npt.NDArray[np.bool_]) -> pd.DataFrame:
    table = split.table(modality)
    leaks = _content(table, modality).isin(known).to_numpy() & ~paired
    roles = np.where(paired, PAIRED, np.where(leaks, LEFT_OUT, UNPAIRED))
    ids = table["image_id" if modality == "image" else "caption_id"].astype(str)
    return pd.DataFrame({"source": source, "row": np.arange(len(table)), "id": ids, "role": roles})


def _content(table: pd.DataFrame, modality: str) -> pd.Series[str]:
    """What tells whether two items are the same."""
    column = table[_CONTENT[modality]]
    return column.str.casefold().str.split().str.join(" ") if modality == "text" else column
