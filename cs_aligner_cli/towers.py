"""The towers being aligned: from cached features or raw items to L2-normalised embeddings in one space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cs_aligner_cli.adapters import make_adapter
from cs_aligner_cli.arrays import l2_normalize
from cs_aligner_cli.data.batches import Rows, prefetched
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import MODALITIES
from cs_aligner_cli.objectives import Logits
from cs_aligner_cli.recipe_train import Adapter, Train
from cs_aligner_cli.store import Store

_DEFAULT_DIM = 512


@dataclass(frozen=True)
class TowerPlan:
    """What one tower is made of; written into every weights file, so that the file describes itself."""

    tune: str
    adapter: dict[str, Any] | None
    in_dim: int
    out_dim: int


def plan_towers(train: Train, dims: Mapping[str, int]) -> dict[str, TowerPlan]:
    """Decide the shared dimension and each tower's parts; ``dims`` holds the encoders' own dimensions.

    Raises InputError if a tower without adapter does not have the shared dimension.
    """
    tunes = {"image": train.image, "text": train.text}
    fixed = {dims[m] for m in MODALITIES if tunes[m].tune != "adapter"}
    common = next(iter({*dims.values()})) if len({*dims.values()}) == 1 else None
    out_dim = train.embed_dim or common or (min(fixed) if fixed else _DEFAULT_DIM)
    for modality in MODALITIES:
        tune, own = tunes[modality].tune, dims[modality]
        if tune != "adapter" and own != out_dim:
            raise InputError(
                f"train.{modality}.tune: {tune} keeps the tower's own {own} dimensions, but the shared space has "
                f"{out_dim}",
                f"Give it an adapter (--set train.{modality}.tune=adapter), or set train.embed_dim to {own}.",
            )
    return {
        m: TowerPlan(
            tunes[m].tune,
            tunes[m].adapter.model_dump(mode="json") if tunes[m].tune == "adapter" else None,
            dims[m],
            out_dim,
        )
        for m in MODALITIES
    }


class Towers(nn.Module):
    """Both towers and the logits' scale and bias: everything that training may change."""

    def __init__(
        self,
        plans: Mapping[str, TowerPlan],
        encoders: Mapping[str, Encoder],
        logit_scale: float = 1.0,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.plans = dict(plans)
        self.parts = nn.ModuleDict({m: _module(plan, encoders.get(m)) for m, plan in plans.items()})
        self.log_logit_scale = nn.Parameter(torch.tensor(logit_scale).log())
        self.logit_bias = nn.Parameter(torch.tensor(logit_bias))

    @property
    def logits(self) -> Logits:
        """What turns cosines into logits."""
        return Logits(self.log_logit_scale.exp(), self.logit_bias)

    def forward(self, modality: str, inputs: Tensor) -> Tensor:
        """L2-normalised float32 embeddings (B, out_dim) of one modality's inputs."""
        return l2_normalize(self.parts[modality](inputs).float())


def _module(plan: TowerPlan, encoder: Encoder | None) -> nn.Module:
    if plan.tune == "full":
        assert encoder is not None
        if not list(encoder.module.parameters()):
            raise InputError(f"train.{encoder.modality}.tune: full, but stored features have no weights to train")
        return encoder.module
    if plan.adapter is None:
        return nn.Identity()
    return make_adapter(TypeAdapter(Adapter).validate_python(plan.adapter), plan.in_dim, plan.out_dim)


class Inputs:
    """Where a tower's inputs come from: the frozen stores, or the items themselves for a live tower."""

    def __init__(
        self, plans: Mapping[str, TowerPlan], encoders: Mapping[str, Encoder], stores: Mapping[str, Store]
    ) -> None:
        self._load: dict[str, Callable[[Split, Rows], Tensor]] = {}
        for modality, plan in plans.items():
            if plan.tune == "full":
                encoder = encoders[modality]
                self._load[modality] = _live(encoder)
            else:
                self._load[modality] = _cached(modality, stores)

    def __call__(self, modality: str, split: Split, rows: Rows) -> Tensor:
        """The inputs of some rows of a split's table, as a CPU tensor."""
        return self._load[modality](split, rows)


def _live(encoder: Encoder) -> Callable[[Split, Rows], Tensor]:
    return lambda split, rows: encoder.load(split.table(encoder.modality).iloc[rows])


def _cached(modality: str, stores: Mapping[str, Store]) -> Callable[[Split, Rows], Tensor]:
    arrays = {name: store.array(modality) for name, store in stores.items()}
    return lambda split, rows: torch.from_numpy(arrays[split.name].take(rows))


@torch.inference_mode()
def embed_split(
    towers: Towers,
    inputs: Inputs,
    modality: str,
    split: Split,
    rows: Rows,
    device: torch.device,
    batch_size: int,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The towers' embeddings (len(rows), out_dim) of some rows of a split, in eval mode."""
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    was_training = towers.training
    towers.eval()
    loaded = prefetched(lambda i: inputs(modality, split, parts[i]), range(len(parts)))
    blocks = [towers(modality, batch.to(device)).cpu().numpy() for batch in loaded]
    towers.train(was_training)
    return np.concatenate(blocks)
