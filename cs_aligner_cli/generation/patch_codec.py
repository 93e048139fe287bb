"""A codec that needs no training: the principal components of square patches, in the place of a decoder's VQ model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError

# 0: a squared error of latents is one of pixels; 1: every component counts the same.
_FLATTENING = 0.5


class PatchCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' classes are not typed
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, channels, H / patch, W / patch) and back, linear both ways.

    Latents are the scores of each patch on the first ``channels`` principal components of training patches, each
    divided by the ``flattening``-th power of its standard deviation, and all by one number, so that their mean variance
    is 1. Undivided, the background would outweigh what lies on it: the first component has most of the variance.
    ``decode`` is called as diffusers calls a VQ model's, so that ``KandinskyV22Pipeline`` takes it as ``movq``.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, patch: int = 16, channels: int = 64, block_out_channels: tuple[int, ...] = (1,)) -> None:
        # By the last, Kandinsky's pipeline takes one latent for one pixel, so that pictures may have any number of
        # patches: where it counted pixels, the side of a picture would have to be a multiple of patch squared.
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3 * patch**2), requires_grad=False)
        self.basis = nn.Parameter(torch.zeros(channels, 3 * patch**2), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(channels), requires_grad=False)

    @classmethod
    def fit(cls, batches: Iterator[Tensor], patch: int, channels: int, flattening: float = _FLATTENING) -> PatchCodec:
        """Fit on batches of pictures (B, 3, H, W) in [-1, 1], whose sides ``patch`` must divide.

        Raises InputError where a patch has fewer values than ``channels``.
        """
        width = 3 * patch**2
        if channels > width:
            raise InputError(f"{channels} channels: a patch of side {patch} has only {width} values")
        count, total, products = (
            0,
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, width, dtype=torch.float64),
        )
        for pictures in batches:
            rows = _patches(pictures.double(), patch).flatten(0, 2)
            count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.T @ rows
        mean = total / count
        variances, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        basis = vectors[:, -channels:].flip(1).T
        basis = basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()  # one of the two signs
        codec: PatchCodec = cls(patch, channels)
        codec.mean.copy_(mean)
        codec.basis.copy_(basis)
        spread = variances[-channels:].flip(0).clamp_min(1e-12).sqrt()
        scale = spread**flattening
        codec.scale.copy_(scale * (spread / scale).square().mean().sqrt())
        return codec

    @apply_forward_hook  # type: ignore[untyped-decorator]  # for offload: a call of decode must fetch the weights
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) to latents."""
        rows = _patches(pictures, self.config.patch) - self.mean
        return (rows @ self.basis.T / self.scale).permute(0, 3, 1, 2).contiguous()

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, latents: Tensor, force_not_quantize: bool = True) -> dict[str, Tensor]:
        """Latents to {"sample": pictures}; there is nothing to quantize."""
        batch, _, height, width = latents.shape
        patch = self.config.patch
        rows = latents.permute(0, 2, 3, 1) * self.scale @ self.basis + self.mean
        tiles = rows.reshape(batch, height, width, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return {"sample": tiles.reshape(batch, 3, height * patch, width * patch)}


def _patches(pictures: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) to (B, H / patch, W / patch, 3 * patch * patch)."""
    batch, _, height, width = pictures.shape
    tiles = pictures.reshape(batch, 3, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // patch, width // patch, 3 * patch * patch)
