"""Which items of the training split are pairs, which are unpaired, and which are left out because they would leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import Layout

Rows = npt.NDArray[np.int64]
# The name of the data set itself among the sources of unpaired items.
OWN = ""
PAIRED, UNPAIRED, LEFT_OUT = "paired", "unpaired", "left out"
_CONTENT = {"image": "digest", "text": "text"}


@dataclass(frozen=True)
class Pairing:
    """The role of every item: ``tables`` holds for each modality source, row (in the source's split), id and role."""

    tables: Mapping[str, pd.DataFrame]

    def rows(self, modality: str, role: str, source: str = OWN) -> Rows:
        """The rows of a source's split that have this role."""
        table = self.tables[modality]
        return table.loc[(table["source"] == source) & (table["role"] == role), "row"].to_numpy(np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many items of each modality have each role."""
        roles = (PAIRED, UNPAIRED, LEFT_OUT)
        return {m: {role: int((table["role"] == role).sum()) for role in roles} for m, table in self.tables.items()}

    def limited(self, split: Split) -> Split:
        """The training split with the pairs that are left: captions and all else of other images belong to none."""
        kept = split.images["image_id"].iloc[self.rows("image", PAIRED)]

        def among(table: pd.DataFrame) -> pd.DataFrame:
            return table.assign(image_id=table["image_id"].astype(object).where(table["image_id"].isin(kept), None))

        further = {modality: among(table) for modality, table in split.further.items()}
        return Split(split.name, split.images, among(split.captions), further)

    def write(self, folder: Path) -> None:
        """Write one Parquet table per modality."""
        for modality, table in self.tables.items():
            table.to_parquet(folder / f"{modality}.parquet", index=False)


def read_pairing(folder: Path) -> Pairing:
    """The pairing that ``Pairing.write`` left in a folder."""
    return Pairing({modality: pd.read_parquet(folder / f"{modality}.parquet") for modality in _CONTENT})


def further_items(layout: Layout) -> dict[str, tuple[Split, list[str]]]:
    """The splits that further sources of unpaired items name, and the modalities taken of them.

    Locators are made absolute, so that an encoder of the data set itself can read the items.
    """
    unpaired = layout.recipe.data.unpaired
    found: dict[str, tuple[Split, list[str]]] = {}
    for number, (name, further) in enumerate(layout.further.items()):
        assert unpaired is not None
        source = unpaired.sources[number]
        data = PreparedData(further.prepared.path)
        split = data.split(source.split, f"data.unpaired.sources.{number}.split", source.modalities)
        images = split.images.assign(locator=[str(data.root / locator) for locator in split.images["locator"]])
        found[name] = Split(f"{name}:{split.name}", images, split.captions), [*source.modalities]
    return found


def draw_pairing(
    split: Split,
    guarded: Sequence[pd.DataFrame],
    sources: Mapping[str, tuple[Split, Sequence[str]]],
    fraction: float,
    seed: int,
) -> Pairing:
    """Decide the role of every item of the training split and of further sources (split, modalities taken).

    A random ``fraction`` of the images with captions keep them. An unpaired item whose content (an image's digest, a
    caption's text without regard to case and spaces) also stands in ``guarded``, the images and the captions of all
    other splits, is left out: nothing of validation or test may be trained on. Raises InputError if fewer than two
    images stay paired.
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
    known = {m: set(_content(table, m)) for m, table in zip(_CONTENT, guarded, strict=True)}
    tables: dict[str, list[pd.DataFrame]] = {m: [] for m in _CONTENT}
    for modality in _CONTENT:
        tables[modality].append(_roles(OWN, split, modality, known[modality], paired[modality]))
    for name, (further, modalities) in sources.items():
        for modality in modalities:
            nothing = np.zeros(len(further.table(modality)), bool)
            tables[modality].append(_roles(name, further, modality, known[modality], nothing))
    return Pairing({m: pd.concat(parts, ignore_index=True) for m, parts in tables.items()})


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
