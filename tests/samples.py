"""Random rows and smooth pictures that tests share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Matrix = npt.NDArray[np.float64]


def random_rows(seed: int, rows: int, width: int, unit: bool = True) -> Matrix:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


def tensor_rows(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.from_numpy(random_rows(seed, rows, width))


def smooth_picture(width: int, height: int) -> Image.Image:
    """Colours that run across: a JPEG of it, and one of its halves, is nearly itself."""
    y, x = np.mgrid[:height, :width]
    across = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return Image.fromarray(np.stack(across, -1).astype(np.uint8))
