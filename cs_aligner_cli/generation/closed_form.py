"""A decoder in closed form: ridge regression on random features, from image embeddings to pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_WEIGHTS = "closed_form.safetensors"
_FEATURES = 1024
_SHRINKAGE = 1e-3
# Sides of the pictures that are fitted; they are drawn at this size whatever those of training.
SIDE = 32


class ClosedForm:
    """Pictures (B, 3, side, side) as a linear map of cos(x W / sigma + b), random W and b, of embeddings x (B, dim).

    Random Fourier features (Rahimi & Recht 2007) of a Gaussian kernel whose sigma is the root mean squared distance of
    training rows. It draws without noise: the mean picture of an embedding, whatever the seed.
    """

    def __init__(self, tensors: dict[str, Tensor], side: int) -> None:
        self.tensors, self.side = {name: value.double() for name, value in tensors.items()}, side
        self.dim = tensors["directions"].shape[0]

    @classmethod
    def fit(
        cls, embeddings: Tensor, batches: Callable[[Tensor], Tensor], seed: int, advance: Callable[[int], None]
    ) -> ClosedForm:
        """Fit on embeddings (N, dim) and pictures by ``batches(rows)`` (B, 3, side, side) in [-1, 1]."""
        rows = embeddings.double()
        spread = rows.var(dim=0, unbiased=False).sum().mul(2).sqrt().clamp_min(1e-12)
        draw = torch.Generator().manual_seed(seed)
        directions = torch.randn(rows.shape[1], _FEATURES, generator=draw, dtype=torch.float64) / spread
        phases = 2 * torch.pi * torch.rand(_FEATURES, generator=draw, dtype=torch.float64)
        features = torch.cos(rows @ directions + phases)
        centre = features.mean(dim=0)
        products = targets = total = None
        for part in torch.split(torch.arange(len(rows)), 256):
            pixels = batches(part).double().flatten(1)
            inputs = features[part] - centre
            products = inputs.T @ inputs + (0 if products is None else products)
            targets = inputs.T @ pixels + (0 if targets is None else targets)
            total = pixels.sum(dim=0) + (0 if total is None else total)
            advance(len(part))
        assert products is not None and targets is not None and total is not None
        ridge = _SHRINKAGE * products.diagonal().mean() * torch.eye(_FEATURES, dtype=torch.float64)
        weights = torch.linalg.solve(products + ridge, targets)
        side = round((targets.shape[1] / 3) ** 0.5)
        found = {"directions": directions, "phases": phases, "centre": centre, "weights": weights}
        return cls({**found, "mean": total / len(rows)}, side)

    def save(self, folder: Path) -> None:
        """Write the decoder into a folder."""
        tensors = {name: value.float().contiguous() for name, value in self.tensors.items()}
        save_file(tensors, folder / _WEIGHTS, {"side": json.dumps(self.side)})

    @classmethod
    def load(cls, folder: Path) -> ClosedForm:
        """Read what ``save`` wrote."""
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return cls(tensors, json.loads(file.metadata()["side"]))

    def pixels(self, conditions: Tensor) -> Tensor:
        """(B, 3, side, side) in [-1, 1] of conditions (B, dim)."""
        t = self.tensors
        features = torch.cos(conditions.double() @ t["directions"] + t["phases"]) - t["centre"]
        flat = features @ t["weights"] + t["mean"]
        return flat.reshape(len(conditions), 3, self.side, self.side).clamp(-1, 1).float()

    def draw(self, conditions: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each condition; ``prompts`` and ``seeds`` change nothing."""
        # One at a time: a product's rounding may depend on how many rows it has, and the pictures must not.
        return [to_picture(self.pixels(row[None])[0]) for row in conditions]


def to_picture(pixels: Tensor) -> Image.Image:
    """The picture of pixels (3, H, W) in [-1, 1]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values))


def to_pixels(picture: Image.Image, side: int) -> Tensor:
    """(3, side, side) in [-1, 1] of a picture: its middle square, scaled by averaging."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    resampling = Image.Resampling.BOX if short % side == 0 else Image.Resampling.LANCZOS
    square = picture.convert("RGB").resize((side, side), resampling, box=(left, top, left + short, top + short))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1
