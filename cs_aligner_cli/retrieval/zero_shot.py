"""Zero-shot classification from embeddings: accuracy, mean per class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.shares import share_interval
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.rows import Rows


def class_rows(prompts: Tensor, classes: int) -> Tensor:
    """One unit row per class (classes, d): the mean of its unit prompt rows (classes * templates, d), class by class
    (Radford et al., 2021, section 3.1.4)."""
    return l2_normalize(l2_normalize(prompts).view(classes, -1, prompts.shape[1]).mean(dim=1))


def classify(image: Rows, classes: Tensor, top: int) -> Ints:
    """The ``top`` nearest classes (M, top) of every image row, nearest first; equal cosines go to the first class."""
    if image.dim != classes.shape[1]:
        raise InputError(f"image and text rows differ in dimension: {image.dim} against {classes.shape[1]}")
    found = []
    for start in range(0, len(image), 4096):
        rows = image.take(slice(start, min(start + 4096, len(image))))
        # As ``scores`` has it: in float64, rounded once, so that equal rows tie.
        cosines = (rows.double() @ classes.double().T).float()
        found.append(torch.argsort(cosines, dim=1, descending=True, stable=True)[:, :top].numpy())
    return np.concatenate(found)


def accuracies(predicted: Ints, labels: Ints, names: Sequence[str]) -> dict[str, float | int]:
    """Accuracy over images and its mean over the classes that have images, top-1 and (with over 5 classes) top-5.

    ``predicted`` (M, top) as from ``classify``, ``labels`` (M,) class numbers.
    """
    result: dict[str, float | int] = {}
    for k in (1, 5):
        if k <= predicted.shape[1] and (k == 1 or len(names) > k):
            hit = (predicted[:, :k] == labels[:, None]).any(axis=1).astype(float)
            count = np.bincount(labels, minlength=len(names))
            per_class = np.bincount(labels, hit, minlength=len(names))[count > 0] / count[count > 0]
            suffix = "" if k == 1 else f"_top{k}"
            result[f"accuracy{suffix}"] = float(hit.mean())
            result[f"mean_per_class{suffix}"] = float(per_class.mean())
    return {**result, "images": len(labels)}


def accuracy_intervals(found: Mapping[str, float | int]) -> dict[str, list[float]]:
    """The 95% interval of every accuracy over images among ``accuracies``; means over classes have none that held."""
    images, z = int(found["images"]), float(stdtrit(max(int(found["images"]) - 1, 1), 0.975))
    shares = {key: float(found[key]) for key in ("accuracy", "accuracy_top5") if key in found}
    return {key: share_interval(share, share * (1 - share) / images, images, z) for key, share in shares.items()}
