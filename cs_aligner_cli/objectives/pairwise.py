"""Objectives on pairs: which text belongs to which image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cs_aligner_cli.arrays import ArrayLike, as_rows, same_width
from cs_aligner_cli.errors import InputError

Groups: TypeAlias = npt.NDArray[np.integer] | Tensor


def infonce(image: ArrayLike, text: ArrayLike, logit_scale: float | Tensor, groups: Groups | None = None) -> Tensor:
    """Return the symmetric InfoNCE loss of the pairs (image_i, text_i) as a scalar tensor.

    The mean of the cross-entropies of image against texts and of text against images, with logits
    ``logit_scale * image @ text.T`` (Radford et al., arXiv 2103.00020; equal to open_clip's ClipLoss).

    image and text are (N, d) and used as given: normalise them first for cosine logits. ``logit_scale`` is
    the multiplicative scale itself (1 / temperature), a float or a 0-d tensor. ``groups`` (N,) are integers:
    rows of one group, such as the captions of one image, are no negatives of each other.

    Computed and returned in float32, or in float64 where image or text is, whatever the autocast.

    Raises InputError if the shapes do not fit together or groups are not N integers.
    """
    image, text = as_rows(image, "image"), as_rows(text, "text")
    same_width(image, text)
    if len(image) != len(text):
        raise InputError(f"image and text rows are not pairs: {len(image)} against {len(text)}")
    dtype = torch.promote_types(image.dtype, text.dtype)
    scale = torch.as_tensor(logit_scale, dtype=dtype, device=image.device)
    with torch.autocast(device_type=image.device.type, enabled=False):
        logits = (scale * image.to(dtype)) @ text.to(dtype).T
        if groups is not None:
            logits = logits.masked_fill(_false_negatives(groups, len(image), image.device), -math.inf)
        labels = torch.arange(len(image), device=image.device)
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def _false_negatives(groups: Groups, rows: int, device: torch.device) -> Tensor:
    """(N, N) mask of the pairs i != j whose rows share a group."""
    labels = torch.as_tensor(groups, device=device)
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"groups: expected {rows} integers, got shape {tuple(labels.shape)} of {labels.dtype}")
    return (labels.unsqueeze(1) == labels).fill_diagonal_(False)


PAIRWISE: Final[dict[str, Callable[..., Tensor]]] = {"infonce": infonce}
