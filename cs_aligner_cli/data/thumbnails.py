"""Thumbnails of a data set's photos, where there are any."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cs_aligner_cli.data.images import BadImageError, read_image
from cs_aligner_cli.data.pictures import as_rgb

_SIDE = 176


@dataclass(frozen=True)
class Photos:
    """Photos by their row of the images table: at its locator under ``root``, else by image id in ``folder``.

    ``background`` is the colour behind transparent places, as the encoder sees them; None: the colours that they hide.
    """

    root: Path
    folder: Path | None = None
    background: str | None = None

    def thumbnail(self, row: Any, side: int = _SIDE) -> bytes | None:
        """A JPEG of at most ``side`` x ``side`` pixels; None where the row has no photo, or none that can be read."""
        path = self._path(str(row["locator"]), str(row["image_id"]))
        if path is None:
            return None
        return thumbnail(path, side, self.background)

    def _path(self, locator: str, image_id: str) -> Path | None:
        if locator:
            return self.root / locator
        return photo_in(self.folder, image_id) if self.folder is not None and image_id else None


def photo_in(folder: Path, image_id: str) -> Path | None:
    """Where the photo of an id lies in a folder or its sub-folders; None where the id leads out of it: ids are data."""
    path = Path(image_id)
    return None if path.anchor or ".." in path.parts else folder / path


def thumbnail(path: Path, side: int, background: str | None = None) -> bytes | None:
    """The picture of a file or a tar's member, as an encoder sees it, as a JPEG of at most ``side`` x ``side`` pixels;
    None where there is none that can be read."""
    try:
        image = as_rgb(read_image(path).image, background)
    except (BadImageError, ValueError):  # ValueError: a NUL character in the path
        return None
    enlarged = max(image.size) < side  # on the page, where the usual compression would be seen
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 90, "subsampling": 0} if enlarged else {"quality": 72}))
    return buffer.getvalue()
