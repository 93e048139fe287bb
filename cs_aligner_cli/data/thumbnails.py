"""Thumbnails of a data set's photos, where there are any."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_aligner_cli.data.images import BadImageError, read_image

_SIDE = 176


@dataclass(frozen=True)
class Photos:
    """Photos by their row of the images table: at its locator under ``root``, else by image id in ``folder``."""

    root: Path
    folder: Path | None = None

    def thumbnail(self, row: Any, side: int = _SIDE) -> bytes | None:
        """A JPEG of at most ``side`` x ``side`` pixels; None where the row has no photo, or none that can be read."""
        path = self._path(str(row["locator"]), str(row["image_id"]))
        if path is None:
            return None
        try:
            image, _ = read_image(path)
        except (BadImageError, ValueError):
            return None
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=72)
        return buffer.getvalue()

    def _path(self, locator: str, image_id: str) -> Path | None:
        if locator:
            return self.root / locator
        # An id is data: it must not lead out of the folder.
        if self.folder is None or Path(image_id).name != image_id:
            return None
        return self.folder / image_id
