"""One tower before training, of whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor, nn


@dataclass
class Encoder:
    """One tower.

    ``load(rows)`` turns rows of the modality's table into a model input (a CPU tensor, first axis the
    items); ``module`` maps that input to (B, dim) embeddings, not normalised; ``identity`` says exactly
    what this tower is; ``backbone`` is the library's own model inside ``module``, as its users know it;
    ``clip`` is the whole open_clip model that the tower belongs to, None for other kinds.
    """

    modality: str
    dim: int
    module: nn.Module
    load: Callable[[pd.DataFrame], Tensor]
    identity: dict[str, Any]
    backbone: Any = field(repr=False)
    clip: Any = field(default=None, repr=False)

    @property
    def reads_captions(self) -> bool:
        """Whether the input of a row is its caption and nothing else."""
        return self.modality == "text" and self.identity["kind"] != "features"
