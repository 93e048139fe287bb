"""The prepared data set: the table of images, the table of captions, and where their content lies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.manifest_base import ROOT
from cs_aligner_cli.files.artifact import OWN, RECORD, read_json, read_record, verify_file, write_json

IMAGES, CAPTIONS, SOURCE = "images.parquet", "captions.parquet", "source.json"
# Rows that a reader of the tables takes into memory at once.
ROW_GROUP = 65536


@dataclass(frozen=True)
class Split:
    """One split: its images and captions in the order that every store of it keeps.

    ``images``: image_id, split, locator (file relative to the data's root, or a tar's member as
    ``images.member_locator`` spells it, or ""), feature_row (-1 where there is none), width, height (0 where unknown),
    digest (of the content), label ("" where there is none). ``captions``: caption_id, image_id (None for an unpaired
    caption), split, text, feature_row. ``further``: the tables of further modalities by name: NAME_id, image_id, split,
    feature_row. ``places``: for a table whose rows are not those of its store, which rows of it they are.
    """

    name: str
    images: pd.DataFrame
    captions: pd.DataFrame
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    places: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def image_of_caption(self) -> npt.NDArray[np.int64]:
        """(captions,) row of each caption's image in ``images``; -1 for an unpaired caption."""
        return self.image_of("text")

    def image_of(self, modality: str) -> npt.NDArray[np.int64]:
        """The row in ``images`` of the image that each item of a modality belongs to; -1 for an unpaired item."""
        rows = pd.Index(self.images["image_id"]).get_indexer(pd.Index(self.table(modality)["image_id"]))
        return np.asarray(rows, np.int64)

    @property
    def labels(self) -> npt.NDArray[np.object_]:
        """(images,) the class of each image as text, "" where it has none."""
        return self.images["label"].to_numpy(object)

    def table(self, modality: str) -> pd.DataFrame:
        """The table of a modality."""
        return {"image": self.images, "text": self.captions, **self.further}[modality]

    def seen_as(self, edge: Sequence[str]) -> Split:
        """An edge of two modalities as if they were images and captions, with ``places`` in their stores.

        Of several items of the first modality that belong to one image, the first one stands for it, and the others
        are left out; unpaired items are in no pair.
        """
        if [*edge] == ["image", "text"]:
            return self
        first, second = (self.table(modality) for modality in edge)
        kept = np.flatnonzero(first["image_id"].isna() | ~first["image_id"].duplicated())
        first = first.iloc[kept].reset_index(drop=True)
        ids = first["image_id"].where(first["image_id"].notna(), pd.Series([f"{edge[0]} {i}" for i in kept]))
        locators = self.images.set_index("image_id")["locator"].reindex(ids).fillna("")
        images = first.assign(image_id=ids, locator=locators.to_numpy(), label="")
        names = [f"{edge[1]} {i}" for i in range(len(second))]
        captions = second.assign(caption_id=names, text=second.get("text", names))
        return Split(self.name, images, captions, places={"image": kept})

    @cached_property
    def pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row-paired rows (images, captions): each image that has captions, with one of them.

        The caption is drawn with a fixed seed, so that every run pairs alike. Not the first one: many data
        sets sort the captions of an image, and first captions are then no fair sample of the captions.
        """
        shuffled = np.random.default_rng(0).permutation(np.flatnonzero(self.image_of_caption >= 0))
        images, drawn = np.unique(self.image_of_caption[shuffled], return_index=True)
        return images, shuffled[drawn]


class PreparedData:
    """The tables of a prepared folder; InputError names the one that is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (IMAGES, CAPTIONS, SOURCE):
            verify_file(folder / name, "Make the prepared data set again: csalign prepare --force")
        self.images, self.captions = _table(folder / IMAGES), _table(folder / CAPTIONS)
        self.source: dict[str, Any] = read_json(folder / SOURCE)
        further = {modality: folder / f"{modality}.parquet" for modality in self.source.get("modalities", [])}
        for path in further.values():
            verify_file(path)
        self.further = {modality: _table(path) for modality, path in further.items()}

    @cached_property
    def root(self) -> Path:
        """The folder that locators are relative to: where it was when the data were last prepared or, if it is gone and
        has been moved together with this folder, where it is now."""
        if not (self.folder / RECORD).is_file():
            return self.folder
        places = read_record(self.folder / RECORD)["places"]
        root = Path(places.get(ROOT, self.folder))
        moved = Path(os.path.normpath(self.folder / os.path.relpath(root, places.get(OWN, self.folder))))
        return moved if moved.exists() and not root.exists() else root

    def split(self, name: str, used_as: str, needs: Sequence[str] = ("image", "text")) -> Split:
        """The split of that name; InputError naming the key ``used_as`` if it lacks a modality that is needed."""
        there = ["image", "text", *self.further]
        if absent := [modality for modality in needs if modality not in there]:
            raise InputError(
                f"encoders.further: the data set has no modality {absent[0]!r}{did_you_mean(absent[0], there)}"
            )
        part = self.part(name)
        lacking = [modality for modality in needs if part.table(modality).empty]
        if lacking:
            splits = sorted({*self.images["split"], *self.captions["split"]})
            names = {"image": "images", "text": "captions"}
            what, near = f"has no {' and no '.join(names.get(modality, modality) for modality in lacking)}", ""
            if name not in splits:
                what, near = "is absent", did_you_mean(name, splits)
            raise InputError(f"{used_as}: split {name!r} {what}{near} (splits: {', '.join(splits)})")
        return part

    def part(self, name: str) -> Split:
        """The split of that name, whatever it holds."""
        images = self.images[self.images["split"] == name].reset_index(drop=True)
        captions = self.captions[self.captions["split"] == name].reset_index(drop=True)
        further = {m: table[table["split"] == name].reset_index(drop=True) for m, table in self.further.items()}
        return Split(name, images, captions, further)


def _table(path: Path) -> pd.DataFrame:
    """A table whose columns lie in one piece each: to take some rows of a column in pieces, all of them are joined."""
    table: pd.DataFrame = pq.read_table(path).combine_chunks().to_pandas()
    return table


def write_prepared(
    folder: Path,
    images: pd.DataFrame,
    captions: pd.DataFrame,
    source: dict[str, Any],
    further: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Write the tables and the description of their source into ``folder``."""
    further = further or {}
    for modality, table in further.items():
        table.to_parquet(folder / f"{modality}.parquet", index=False, row_group_size=ROW_GROUP)
    images.to_parquet(folder / IMAGES, index=False, row_group_size=ROW_GROUP)
    captions.to_parquet(folder / CAPTIONS, index=False, row_group_size=ROW_GROUP)
    write_json(folder / SOURCE, {**source, **({"modalities": [*further]} if further else {})})


def caption_texts(folder: Path) -> Iterator[str]:
    """The texts of all captions of a prepared folder, a row group at a time."""
    with pq.ParquetFile(folder / CAPTIONS) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["text"]):
            yield from batch.column(0).to_pylist()


def hold_out(split: Split, fraction: float, seed: int, modalities: Sequence[str] = ("text",)) -> tuple[Ints, Ints]:
    """Image rows (training, held out): images that have items of all modalities, a random ``fraction`` held out."""
    owners = [split.image_of(modality) for modality in modalities]
    complete = reduce(np.intersect1d, [np.unique(rows[rows >= 0]) for rows in owners])
    shuffled = np.random.default_rng([seed, 1]).permutation(complete)
    count = max(1, round(fraction * len(shuffled)))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def captions_of(split: Split, image_rows: Ints) -> Ints:
    """Rows of all captions of the given images, in table order."""
    return np.flatnonzero(np.isin(split.image_of_caption, image_rows))
