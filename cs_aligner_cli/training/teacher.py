"""The teacher of the few pairs: linear maps in closed form, whose moments may also know the unpaired items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import double, l2_normalize
from cs_aligner_cli.common.closed_forms import cca_path, procrustes, ridge
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.data.prepared import Split, captions_of
from cs_aligner_cli.objectives import Clouds, Logits, plan_divergence
from cs_aligner_cli.objectives.terms import TermLoss
from cs_aligner_cli.recipe.few_pairs import Teacher as TeacherSpec
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.towers.towers import Inputs

# Pairs, and unpaired items of each modality, that the moments are taken over.
MAX_PAIRS = 20_000
_READ_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Teacher:
    """``(unit features - mean) @ weight`` of images and texts, in float64: ``means`` (D,), ``weights`` (D, k)."""

    means: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    def __call__(self, modality: str, features: Tensor) -> Tensor:
        """Map features (N, D) of one modality to (N, k)."""
        return (l2_normalize(double(features)) - self.means[modality]) @ self.weights[modality]

    def to(self, device: torch.device) -> Teacher:
        """The same on a device; on the CPU where that has no float64."""
        device = torch.device("cpu") if device.type == "mps" else device
        means, weights = (
            {m: tensor.to(device) for m, tensor in tensors.items()} for tensors in (self.means, self.weights)
        )
        return Teacher(means, weights)

    def term(self, epsilon: float) -> TermLoss:
        """``plan_divergence`` of all images and texts of a step towards this teacher's plan."""

        def loss(clouds: Clouds, logits: Logits) -> Tensor:
            image, text = (self(m, clouds.feature_cloud(m)) for m in MODALITIES)
            return plan_divergence(clouds.cloud("image"), clouds.cloud("text"), image, text, epsilon)

        return loss


def fit_teacher(
    spec: TeacherSpec,
    inputs: Inputs,
    split: Split,
    image_rows: Ints,
    unpaired: Mapping[str, Sequence[tuple[Split, Ints]]],
    ranks: Ranks,
) -> Teacher:
    """Fit the maps on the training pairs (each caption with its image) of some images.

    Cross-covariances are those of the pairs; means and covariances, where ``spec.unpaired_moments``, those of pairs and
    ``unpaired`` items together (SOTAlign, arXiv 2602.23353). All ranks get rank 0's.
    """
    captions = captions_of(split, image_rows)
    captions = captions[np.linspace(0, len(captions) - 1, min(len(captions), MAX_PAIRS)).astype(int)]
    rows = {"image": split.image_of_caption[captions], "text": captions}
    pairs = {m: _unit_features(inputs, m, [(split, rows[m])]) for m in MODALITIES}
    every = dict(pairs)
    if spec.unpaired_moments:
        more = {m: items for m, items in unpaired.items() if items}
        every |= {m: np.concatenate([pairs[m], _unit_features(inputs, m, items)]) for m, items in more.items()}
    means = {m: every[m].mean(axis=0) for m in MODALITIES}
    x, y = (pairs[m] - pairs[m].mean(axis=0) for m in MODALITIES)
    weights = _maps(spec, x, y, (every["image"] - means["image"], every["text"] - means["text"]))
    teacher = Teacher(
        {m: torch.from_numpy(mean) for m, mean in means.items()},
        {m: torch.from_numpy(np.ascontiguousarray(w)) for m, w in zip(MODALITIES, weights, strict=True)},
    )
    ranks.broadcast_tensors([*teacher.means.values(), *teacher.weights.values()])
    return teacher


def _maps(spec: TeacherSpec, x: Floats, y: Floats, spread: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    if spec.kind == "cca":
        return cca_path(x, y, [spec.shrinkage], spread)[0]
    if spec.kind == "procrustes":
        return procrustes(x, y)
    return ridge(x, y, spec.shrinkage, spread[0]), np.eye(y.shape[1])


def _unit_features(inputs: Inputs, modality: str, items: Sequence[tuple[Split, Ints]]) -> npt.NDArray[np.float64]:
    """Unit rows (N, D) of some items, read a part at a time: tokens are large before they are pooled."""
    parts = [
        inputs.features(modality, [(split, rows[start : start + _READ_AT_ONCE])])
        for split, rows in items
        for start in range(0, len(rows), _READ_AT_ONCE)
    ]
    return l2_normalize(torch.cat(parts).double()).numpy()
