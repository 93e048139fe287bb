"""The teacher of the few pairs: linear maps in closed form, whose moments may know unpaired items, and other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import double, l2_normalize
from cs_aligner_cli.common.closed_forms import cca, procrustes, ridge
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.data.prepared import Split, captions_of
from cs_aligner_cli.objectives import Clouds, Logits, plan_divergence
from cs_aligner_cli.objectives.terms import TermLoss
from cs_aligner_cli.recipe.few_pairs import Teacher as TeacherSpec
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.other_runs import ORIGIN_FILE, trained_file
from cs_aligner_cli.towers.towers import Inputs, TowerPlan, Towers
from cs_aligner_cli.towers.weights import load_towers, read_plans

# Pairs, and unpaired items of each modality, that the moments are taken over.
MAX_PAIRS = 20_000
_READ_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Teacher:
    """What teaches: a closed form, the towers of other runs, or both side by side.

    The closed form is ``(unit features - mean) @ weight`` of images and texts, in float64: ``means`` (D,), ``weights``
    (D, k), by modality; empty where there is none. ``members``: towers of cached features, in eval mode.
    """

    means: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    members: Sequence[Towers] = ()

    def __call__(self, modality: str, features: Tensor) -> Tensor:
        """Map features (N, D) of one modality to float64 (N, k): the cosine of two rows is the mean over all parts."""
        parts = []
        if self.weights:
            parts.append((l2_normalize(double(features)) - self.means[modality]) @ self.weights[modality])
        with torch.no_grad():
            parts += [double(member(modality, features)) for member in self.members]
        return torch.cat([l2_normalize(part) for part in parts], dim=1)

    def to(self, device: torch.device) -> Teacher:
        """The same on a device; the closed form stays on the CPU where that has no float64."""
        members = [member.to(device) for member in self.members]
        device = torch.device("cpu") if device.type == "mps" else device
        means, weights = (
            {m: tensor.to(device) for m, tensor in tensors.items()} for tensors in (self.means, self.weights)
        )
        return Teacher(means, weights, members)

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
    plans: Mapping[str, TowerPlan] = {},
) -> Teacher:
    """Fit the maps on the training pairs (each caption with its image) of some images, and read the runs that teach.

    Cross-covariances are those of the pairs; means and covariances, where ``spec.unpaired_moments``, those of pairs and
    ``unpaired`` items together (SOTAlign, arXiv 2602.23353). All ranks get rank 0's. ``plans`` are those of the towers
    that are taught. Raises InputError for a run that is absent, or whose towers read other features or live encoders.
    """
    members = [_member(run, plans) for run in spec.runs]
    if spec.kind == "runs":
        return Teacher({}, {}, members)
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
        members,
    )
    ranks.broadcast_tensors([*teacher.means.values(), *teacher.weights.values()])
    return teacher


def _member(run: Path, plans: Mapping[str, TowerPlan]) -> Towers:
    path = trained_file(run, ORIGIN_FILE, "train.objective.teacher.runs")
    theirs = read_plans(path)
    for m in MODALITIES:
        if theirs[m].live or theirs[m].reads != "pooled":
            raise InputError(
                f"train.objective.teacher.runs: {path}: its {m} tower reads no stored pooled features",
                "A run can teach whose towers are adapters on cached features, as in train.image.tune: adapter.",
            )
    dims = {m: plans[m].in_dim for m in MODALITIES if m in plans}
    identities = {m: encoder for m, plan in plans.items() if (encoder := plan.encoder) is not None and m in theirs}
    towers = load_towers(path, {}, dims, identities)
    return towers.requires_grad_(False).eval()


def _maps(spec: TeacherSpec, x: Floats, y: Floats, spread: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    if spec.kind == "cca":
        return cca(x, y, spec.shrinkage, spread)
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
