"""torchvision's transforms of an encoder taken apart: a crop of 8 bits by PIL, and the rest of it on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cs_aligner_cli.data.crops import Crop


@dataclass(frozen=True)
class Parts:
    """``crop``, and the mean and standard deviation of each channel by which its pixels from 0 to 1 are normalised."""

    crop: Crop
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, crops: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float32 of crops (B, H, W, 3) uint8, where they lie: bitwise torchvision's.

        A division by a number of the host would become a product with its reciprocal on CUDA.
        """
        full = torch.tensor(255.0, device=crops.device)
        mean, std = (torch.tensor(part, device=crops.device).view(3, 1, 1) for part in (self.mean, self.std))
        pixels = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(full).sub_(mean).div_(std)

    def on_background(self, colour: str | None) -> Parts:
        """The same of pictures that are laid on a ground."""
        return replace(self, crop=replace(self.crop, background=colour))


def parts_of(compose: Any, rgb_first: bool) -> Parts | None:
    """The parts of a torchvision ``Compose`` of Resize, CenterCrop, to RGB, ToTensor and Normalize; None of another.

    They go by their names, as open_clip and timm have some of their own. ``rgb_first``: the pictures that it gets are
    RGB.
    """
    steps = [step for step in getattr(compose, "transforms", ()) if not _only_converts(step)]
    kinds = [type(step).__name__ for step in steps]
    cropped = kinds == ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"]
    if not cropped and kinds != ["Resize", "MaybeToTensor", "Normalize"]:
        return None
    resize, normalize = steps[0], steps[-1]
    filters = {kind.name: int(kind) for kind in Image.Resampling}
    if resize.max_size is not None or resize.interpolation.name not in filters:
        return None
    size = (resize.size,) if isinstance(resize.size, int) else tuple(resize.size)
    height, width = _pair(steps[1].size if cropped else size)
    if len(size) == 1 and not (cropped and size[0] >= max(height, width)):
        return None  # a picture of any height, or one that is padded
    crop = Crop(size, height, width, filters[resize.interpolation.name], rgb_first)
    return Parts(crop, _floats(normalize.mean), _floats(normalize.std))


def _only_converts(step: Any) -> bool:
    return type(step).__name__ == "MaybeConvertMode" or getattr(step, "__name__", "") == "_convert_to_rgb"


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[-1])


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
