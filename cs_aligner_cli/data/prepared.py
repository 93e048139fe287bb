"""The prepared data set: the table of images, the table of captions, and where their content lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from cs_aligner_cli.artifacts import read_json, write_json
from cs_aligner_cli.errors import InputError, did_you_mean

IMAGES, CAPTIONS, SOURCE = "images.parquet", "captions.parquet", "source.json"
# Rows that a reader of the tables takes into memory at once.
ROW_GROUP = 65536


@dataclass(frozen=True)
class Split:
    """One split: its images and captions in the order that every store of it keeps.

    ``images``: image_id, split, locator (file relative to the data's root, or a tar's member as
    ``images.member_locator`` spells it, or ""), feature_row (-1 where there is none), width, height (0 where unknown).
    ``captions``: caption_id, image_id (None for an unpaired caption), split, text, feature_row.
    """

    name: str
    images: pd.DataFrame
    captions: pd.DataFrame

    @cached_property
    def image_of_caption(self) -> npt.NDArray[np.int64]:
        """(captions,) row of each caption's image in ``images``; -1 for an unpaired caption."""
        rows = pd.Index(self.images["image_id"]).get_indexer(pd.Index(self.captions["image_id"]))
        return np.asarray(rows, np.int64)

    def table(self, modality: str) -> pd.DataFrame:
        """The table of "image" or "text"."""
        return self.images if modality == "image" else self.captions

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
    """The two tables of a prepared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = pd.read_parquet(folder / IMAGES)
        self.captions = pd.read_parquet(folder / CAPTIONS)
        self.source: dict[str, Any] = read_json(folder / SOURCE)

    @property
    def root(self) -> Path:
        """The folder that locators are relative to."""
        return Path(self.source["root"]) if self.source.get("root") else self.folder

    def split(self, name: str, used_as: str) -> Split:
        """The split of that name; InputError naming the key ``used_as`` if it has no images or captions."""
        part = self.part(name)
        images, captions = part.images, part.captions
        if images.empty or captions.empty:
            there = sorted({*self.images["split"], *self.captions["split"]})
            what = "has no captions" if len(images) else "has no images" if len(captions) else "is empty"
            near = "" if name in there else did_you_mean(name, there)
            raise InputError(f"{used_as}: split {name!r} {what}{near} (splits: {', '.join(there)})")
        return part

    def part(self, name: str) -> Split:
        """The split of that name, whatever it holds."""
        images = self.images[self.images["split"] == name].reset_index(drop=True)
        captions = self.captions[self.captions["split"] == name].reset_index(drop=True)
        return Split(name, images, captions)


def write_prepared(folder: Path, images: pd.DataFrame, captions: pd.DataFrame, source: dict[str, Any]) -> None:
    """Write the two tables and the description of their source into ``folder``."""
    images.to_parquet(folder / IMAGES, index=False, row_group_size=ROW_GROUP)
    captions.to_parquet(folder / CAPTIONS, index=False, row_group_size=ROW_GROUP)
    write_json(folder / SOURCE, source)


def caption_texts(folder: Path) -> Iterator[str]:
    """The texts of all captions of a prepared folder, a row group at a time."""
    with pq.ParquetFile(folder / CAPTIONS) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["text"]):
            yield from batch.column(0).to_pylist()
