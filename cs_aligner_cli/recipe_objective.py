"""The recipe's section on the objective: the pairwise term, the divergence, and their weights."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from cs_aligner_cli.validation import Strict


class LogitScale(Strict):
    """The inverse temperature, as open_clip counts it (100 = temperature 0.01)."""

    init: float = Field(1 / 0.07, gt=0, le=1000, description="Value at the start.")
    learn: bool = Field(True, description="Train it; false: it stays at init.")
    max: float = Field(100.0, gt=0, le=1000, description="Upper clamp of the learned value (CLIP's is 100).")

    @model_validator(mode="after")
    def _ordered(self) -> LogitScale:
        if self.init > self.max:
            raise ValueError(f"init ({self.init:g}) must not exceed max ({self.max:g})")
        return self


class InfoNce(Strict):
    """Symmetric InfoNCE; captions of one image are no negatives of each other."""

    kind: Literal["infonce"] = Field("infonce", description="CLIP's loss.")
    weight: float = Field(1.0, ge=0, description="Weight of the term.")
    logit_scale: LogitScale = Field(LogitScale(), description="The inverse temperature.")


def _bandwidth(value: Any) -> Any:
    """Pydantic would report each member of the union; a user needs one message."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "median" or (is_number and value > 0 and math.isfinite(value)):
        return value
    raise ValueError("expected a number more than 0 (sigma of the Gaussian kernel), or median")


Bandwidth = Annotated[Annotated[float, Field(gt=0)] | Literal["median"], BeforeValidator(_bandwidth)]


class CauchySchwarz(Strict):
    """The Cauchy-Schwarz divergence between the two clouds."""

    kind: Literal["cs"] = Field("cs", description="Cauchy-Schwarz divergence.")
    weight: float = Field(1.0, ge=0, description="lambda; 0 still logs the value but trains without it.")
    bandwidth: Bandwidth = Field(
        0.7071,
        description="sigma of the Gaussian kernel, or median: the median pairwise distance of each batch.",
    )
    estimator: Literal["v", "u"] = Field("v", description="v: diagonals included (the paper's); u: diagonal-free.")


Pairwise: TypeAlias = InfoNce
Divergence: TypeAlias = CauchySchwarz


class Objective(Strict):
    """The loss: pairwise term plus weighted divergence."""

    pairwise: Pairwise = Field(InfoNce(), description="Ranks pairs.")
    divergence: Divergence = Field(CauchySchwarz(), description="Brings the two distributions together.")
