"""The recipe's section on what others published for it: values, where they stand, and which settings are ours."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict


class ExpectedValue(Strict):
    """One published value, to be printed beside one's own."""

    metric: str = Field(
        min_length=1, description="Path of the number in run.json, as csalign compare --metric takes it."
    )
    value: float = Field(ge=0, description="The published value, in the metric's own unit (recalls are fractions).")
    tolerance: float = Field(ge=0, description="How far from it one's own number may lie and still count as equal.")
    source: str = Field(min_length=1, description="Where it is published: paper and table.")


class Expected(Strict):
    """What was published of this experiment."""

    values: list[ExpectedValue] = Field([], description="Published values; run and compare print one's own beside.")
    ours: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Keys of this recipe whose values are our choice, since none is published."
    )
    remarks: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="What was published without a value, and what else must be known before numbers are compared."
    )
