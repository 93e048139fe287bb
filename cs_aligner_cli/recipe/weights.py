"""Weights of the objective's terms: a number, a schedule, or a ratio of gradients."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, PLAIN, Strict, plain_or_kind


def is_number(value: Any) -> bool:
    """Whether a value of a recipe is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class ScheduledWeight(Strict):
    """A weight that changes linearly with training: a warm-up, or a curriculum."""

    kind: Literal["scheduled"] = Field("scheduled", description="Changes from start to end.")
    start: float = Field(0.0, ge=0, description="Weight up to the share `begin` of the steps.")
    end: float = Field(1.0, ge=0, description="Weight from the share `until` of the steps on.")
    begin: float = Field(0.0, ge=0, lt=1, description="Share of the steps at which it starts to change.")
    until: float = Field(0.3, gt=0, le=1, description="Share of the steps at which `end` is reached.")

    @model_validator(mode="after")
    def _ordered(self) -> ScheduledWeight:
        if self.begin >= self.until:
            raise ValueError(f"begin ({self.begin:g}) must lie before until ({self.until:g})")
        return self


class RelativeWeight(Strict, json_schema_extra=KIND_IS_NEEDED):
    """A weight that keeps the divergence's gradient at a share of the pairwise term's."""

    kind: Literal["relative"] = Field("relative", description="Relative to the pairwise term's gradient norm.")
    ratio: float = Field(
        0.5,
        gt=0,
        description="Norm of the weighted gradient along the sphere, in norms of the pairwise term's.",
    )
    every: int = Field(
        1, ge=1, description="Measured every so many steps; held in between. 1 costs a third of the loss's time."
    )


def _plain_weight(value: Any) -> Any:
    if is_number(value) and value >= 0:
        return value
    raise ValueError("expected a number of at least 0, or a section of kind scheduled or relative")


Weight = Annotated[
    Annotated[float, Field(ge=0), BeforeValidator(_plain_weight), Tag(PLAIN)]
    | Annotated[ScheduledWeight, Tag("scheduled")]
    | Annotated[RelativeWeight, Tag("relative")],
    plain_or_kind("scheduled"),
]


def _plain_or_scheduled(value: Any) -> Any:
    if is_number(value) and value >= 0:
        return value
    raise ValueError("expected a number of at least 0, or a section of kind scheduled")


# The weight of a term whose gradient is not measured against the pairwise term's.
FixedOrScheduledWeight = Annotated[
    Annotated[float, Field(ge=0), BeforeValidator(_plain_or_scheduled), Tag(PLAIN)]
    | Annotated[ScheduledWeight, Tag("scheduled")],
    plain_or_kind("scheduled"),
]
