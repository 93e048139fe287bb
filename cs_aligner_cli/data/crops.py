"""From a picture to the 8-bit crop that an encoder's preprocessing makes of it, by PIL alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cs_aligner_cli.data.images import read_image
from cs_aligner_cli.data.pictures import as_rgb, on_background, without_palette_alpha


@dataclass(frozen=True)
class Crop:
    """Resizing, then the centre of ``height`` x ``width`` pixels, as torchvision's transforms do it to a picture.

    ``resize``: the shorter side alone, or height and width. ``resample``: PIL's number of the filter. ``rgb_first``:
    convert to RGB before resizing, and not after. ``reduced``: JPEGs may be decoded at a part of their size.
    """

    resize: tuple[int, ...]
    height: int
    width: int
    resample: int
    rgb_first: bool
    background: str | None = None
    reduced: bool = False

    def of(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The crop (height, width, 3) of a picture in the mode of its file."""
        if self.background is not None:
            image = on_background(image, self.background)
        image = as_rgb(image) if self.rgb_first else without_palette_alpha(image)
        size = self.size_of(*image.size)
        image = image if size == image.size else image.resize(size, Image.Resampling(self.resample))
        left, top = self.corner(*image.size)
        image = image.crop((left, top, left + self.width, top + self.height))
        return np.asarray(image.convert("RGB"))

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """The crop of a file's picture; raise BadImageError if it is no whole photo."""
        return self.of(self.picture(path))

    def picture(self, path: Path) -> Image.Image:
        """A file's picture before it is cropped; raise BadImageError if it is no whole photo."""
        return read_image(path, self._least if self.reduced else None).image

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which a picture is resized."""
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        shorter, longer = self.resize[0], int(self.resize[0] * max(width, height) / min(width, height))
        return (shorter, longer) if width <= height else (longer, shorter)

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the centre of a resized picture."""
        return round((width - self.width) / 2), round((height - self.height) / 2)

    def _least(self, width: int, height: int) -> tuple[int, int]:
        """What is still resized downwards, also where the picture lies on its side."""
        if len(self.resize) == 2:
            return max(self.resize), max(self.resize)
        return self.size_of(width, height)
