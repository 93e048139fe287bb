"""What readers of sources give: images and captions in compact tables, and all that was left out and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.images import ABSENT, look_at_all
from cs_aligner_cli.data.tables import Columns


@dataclass
class Source:
    """What a reader found.

    ``images`` and ``captions`` are the tables of prepared.Split, ``images`` with a further column ``digest`` of the
    content and, where pictures were read, ``dhash`` of the looks; without ``digest`` they are still to be looked at.
    ``further`` holds the tables of further modalities by name (image_id, split, feature_row).
    ``bad`` lists each dropped item with its reason; ``skipped`` counts what was left out on request; ``totals`` counts
    what else there was (shards); ``description`` is what encoders need to find the content again.
    """

    images: pd.DataFrame
    captions: pd.DataFrame
    description: dict[str, Any]
    bad: list[dict[str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    further: dict[str, pd.DataFrame] = field(default_factory=dict)


class Entries:
    """Collects images with their captions one at a time."""

    def __init__(self) -> None:
        self._images = Columns("image_id", "split", "locator")
        self._captions = Columns("image_id", "split", "text")
        self.bad: list[dict[str, str]] = []
        self.skipped: dict[str, int] = {}

    def add(self, image_id: str, split: str, locator: str, captions: Iterable[str]) -> None:
        """An image and its captions, of which there may be none."""
        self._images.append(image_id, split, locator)
        for text in captions:
            self._captions.append(image_id, split, text)

    def add_captions(self, image_id: str | None, split: str, captions: Iterable[str]) -> None:
        """Captions of an image that was, or will be, added by itself; or (None) of no image."""
        for text in captions:
            self._captions.append(image_id, split, text)

    def drop(self, kind: str, item: str, reason: str) -> None:
        """A bad item: an image, a caption or a shard."""
        self.bad.append({"kind": kind, "item": item, "reason": reason})

    def skip(self, what: str, count: int = 1) -> None:
        """Something that is left out on request, and counted."""
        self.skipped[what] = self.skipped.get(what, 0) + count

    def source(self, kind: str, root: Path) -> Source:
        """All that was collected; an image that is named a second time is a bad item."""
        images = self._images.frame()
        again = images["image_id"].duplicated()
        for image_id in images.loc[again, "image_id"]:
            self.drop("image", image_id, "an image of that name was listed before")
        images = images[~again].reset_index(drop=True) if again.any() else images
        captions = self._captions.frame().assign(feature_row=-1)
        return Source(images, captions, {"kind": kind, "root": str(root)}, self.bad, self.skipped)


def check_images(source: Source, root: Path, skip_absent: bool, min_side: int, console: Console) -> None:
    """Decode every image; move those that fail to ``bad``, and record size, digest and dhash of the others."""
    images = source.images
    count = len(images)
    sides = np.zeros((2, count), np.int32)
    hashes = np.zeros((2, count), np.uint64)
    good = np.ones(count, bool)
    absent = 0
    with console.progress("checking images", count) as advance:
        for i, seen in enumerate(look_at_all(root, images["locator"], advance)):
            sides[:, i], hashes[:, i] = (seen.width, seen.height), (seen.digest, seen.dhash)
            reason = seen.reason
            if not reason and min(seen.width, seen.height) < min_side:
                reason = f"{seen.width} x {seen.height} pixels, less than prepare.min_side ({min_side})"
            good[i] = not reason
            if skip_absent and reason == ABSENT:
                absent += 1
            elif reason:
                source.bad.append({"kind": "image", "item": str(root / images["locator"].iloc[i]), "reason": reason})
    if skip_absent:
        source.skipped["images without a file"] = absent
    images = images.assign(width=sides[0], height=sides[1], digest=hashes[0], dhash=hashes[1], feature_row=np.int64(-1))
    source.images = images[good].reset_index(drop=True)
