"""Random rows that the numerical tests share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float64]


def random_rows(seed: int, rows: int, width: int, unit: bool = True) -> Matrix:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


def tensor_rows(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.from_numpy(random_rows(seed, rows, width))
