"""What readers of sources give: images and captions in compact tables, and all that was left out and why."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.columns import Columns
from cs_aligner_cli.data.file_names import Lookalikes
from cs_aligner_cli.data.images import ABSENT, BadImageError, digest, look_at_all, read_bytes

LOST_CAPTIONS = "captions of dropped or skipped images"
# What stands in place of an entry's row.
_UNPAIRED, _DROPPED = -1, -2
# Further absent files are told without looking for what was meant.
_HINTS = 100


@dataclass
class Source:
    """What a reader found.

    ``images`` and ``captions`` are the tables of prepared.Split, ``images`` with a further column ``digest`` of the
    content and, where pictures were read, ``dhash`` of the looks; without ``digest`` they are still to be looked at.
    ``further`` holds the tables of further modalities by name (image_id, split, feature_row).
    ``bad`` lists each dropped item with its reason, ``dropped`` the ids of images among them or skipped; ``skipped``
    counts what was left out on request; ``totals`` counts what else there was (shards); ``conversions`` lists the
    pictures that are not plain upright RGB of 8 bits, by what they are; ``notes`` are told to the user; ``description``
    is what encoders need to find the content again.
    """

    images: pd.DataFrame
    captions: pd.DataFrame
    description: dict[str, Any]
    bad: list[dict[str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    conversions: dict[str, list[str]] = field(default_factory=dict)
    further: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)


class Entries:
    """Collects images with their captions one at a time; a caption belongs to an entry, whatever the image's name."""

    def __init__(self) -> None:
        self._images = Columns("image_id", "split", "locator", "label")
        self._captions = Columns("split", "text")
        self._owners = array("q")
        self.bad: list[dict[str, str]] = []
        self.skipped: dict[str, int] = {}
        self.notes: list[str] = []

    def add(self, image_id: str, split: str, locator: str, captions: Iterable[str], label: str = "") -> int:
        """An image, its captions, of which there may be none, and its class; returns the number of the entry."""
        self._images.append(image_id, split, locator, label)
        self.add_captions(len(self._images) - 1, split, captions)
        return len(self._images) - 1

    def add_captions(self, entry: int | None, split: str, captions: Iterable[str]) -> None:
        """Captions of an image that was added before; or (None) of no image."""
        for text in captions:
            self._captions.append(split, text)
            self._owners.append(-1 if entry is None else entry)

    def drop(self, kind: str, item: str, reason: str) -> None:
        """A bad item: an image, a caption or a shard."""
        self.bad.append({"kind": kind, "item": item, "reason": reason})

    def skip(self, what: str, count: int = 1) -> None:
        """Something that is left out on request, and counted."""
        self.skipped[what] = self.skipped.get(what, 0) + count

    def source(self, kind: str, root: Path, unique: bool = False) -> Source:
        """All that was collected, each name with one image, see ``one_image_a_name``."""
        images, entry_of, bad = one_image_a_name(self._images.frame(), root, unique)
        self.bad += bad
        owners = np.frombuffer(self._owners, np.int64) if self._owners else np.arange(0)
        owners = np.append(entry_of, _UNPAIRED)[owners]
        captions = self._captions.frame()
        lost = owners == _DROPPED
        if lost.any():
            self.skip(LOST_CAPTIONS, int(lost.sum()))
            captions, owners = captions[~lost].reset_index(drop=True), owners[~lost]
        names = pd.concat([images["image_id"], pd.Series([None], dtype=images["image_id"].dtype)], ignore_index=True)
        captions.insert(0, "image_id", names.take(owners).reset_index(drop=True))
        captions = captions.assign(feature_row=-1)
        description = {"kind": kind}
        return Source(images, captions, description, self.bad, self.skipped, notes=self.notes)


def one_image_a_name(
    images: pd.DataFrame, root: Path, unique: bool = False
) -> tuple[pd.DataFrame, npt.NDArray[np.int64], list[dict[str, str]]]:
    """Images (image_id, split, locator, label), each name once; for each row its row there (-2: dropped); what is bad.

    Rows of one file, or of files of equal bytes, are one image. Unlike files of one name are told apart by their
    paths; where names are stated to be ``unique``, all but the first are bad. So is an image that is listed in a second
    split.
    """
    entry_of = np.arange(len(images))
    bad: list[dict[str, str]] = []
    repeated = np.flatnonzero(images["image_id"].duplicated(keep=False))
    if not len(repeated):
        return images, entry_of, bad
    ids, splits, locators = (images[column].tolist() for column in ("image_id", "split", "locator"))

    def drop(row: int, reason: str) -> None:
        bad.append({"kind": "image", "item": f"{ids[row]} ({locators[row]})", "reason": reason})
        entry_of[row] = _DROPPED

    for places in images.iloc[repeated].groupby("image_id", sort=False).indices.values():
        rows = repeated[places].tolist()
        content = _contents(root, {locators[row] for row in rows})
        first_with: dict[int | str, int] = {}
        for row in rows:
            first = first_with.setdefault(content[locators[row]], row)
            if folded(splits[first]) != folded(splits[row]):
                drop(row, listed_before(splits[first]))
            else:
                entry_of[row] = first
        first, *others = first_with.values()
        for row in rows if unique else ():
            if entry_of[row] in others:
                drop(row, f"its name was used before by another image, {locators[first]}")
        for row in (first, *others) if others and not unique else ():
            ids[row] = locators[row]
    kept = np.unique(entry_of[entry_of >= 0])
    place = np.full(len(images) + 1, _DROPPED)
    place[kept] = np.arange(len(kept))
    images = images.assign(image_id=pd.Series(ids, dtype=images["image_id"].dtype)).take(kept).reset_index(drop=True)
    return images, place[np.where(entry_of >= 0, entry_of, len(ids))], bad


def _contents(root: Path, locators: set[str]) -> dict[str, int | str]:
    """What equal files have in common, by locator: the digest of their bytes, or their path where there are none."""
    if len(locators) == 1:
        return {locator: locator for locator in locators}
    found: dict[str, int | str] = {}
    for locator in locators:
        try:
            found[locator] = digest(read_bytes(root / locator))
        except (BadImageError, ValueError):  # ValueError: a NUL character in the path
            found[locator] = locator
    return found


def folded(split: str) -> str:
    """A split's name without what does not tell splits apart: case, spaces around it, Unicode's compatible forms."""
    return unicodedata.normalize("NFKC", split).strip().casefold()


def listed_before(split: str) -> str:
    """Why an image that is listed in a second split is bad there."""
    return f"was listed before, in split {split}"


def check_images(source: Source, root: Path, skip_absent: bool, min_side: int, console: Console) -> None:
    """Decode every image; move those that fail to ``bad``, and record size, digest and dhash of the others."""
    images = source.images
    count = len(images)
    sides = np.zeros((2, count), np.int32)
    hashes = np.zeros((2, count), np.uint64)
    good = np.ones(count, bool)
    absent, lookalikes = 0, Lookalikes()
    with console.progress("checking images", count) as advance:
        for i, seen in enumerate(look_at_all(root, images["locator"], advance)):
            sides[:, i], hashes[:, i] = (seen.width, seen.height), (seen.digest, seen.dhash)
            reason = seen.reason
            if not reason and min(seen.width, seen.height) < min_side:
                reason = f"{seen.width} x {seen.height} pixels, less than prepare.min_side ({min_side})"
            good[i] = not reason
            for what in () if reason else seen.conversions:
                source.conversions.setdefault(what, []).append(images["locator"].iloc[i])
            if skip_absent and reason == ABSENT:
                absent += 1
            elif reason:
                if reason == ABSENT and len(source.bad) < _HINTS:
                    reason += lookalikes.hint(root, str(images["locator"].iloc[i]))
                source.bad.append({"kind": "image", "item": str(root / images["locator"].iloc[i]), "reason": reason})
    if skip_absent:
        source.skipped["images without a file"] = absent
    images = images.assign(width=sides[0], height=sides[1], digest=hashes[0], dhash=hashes[1], feature_row=np.int64(-1))
    source.dropped = set(images["image_id"][~good])
    source.images = images[good].reset_index(drop=True)
