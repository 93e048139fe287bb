"""What a command returns, prints and writes: frozen models whose JSON Schema is published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.tables import Table

# Counts stay whole numbers in JSON.
Number: TypeAlias = int | float
# A measured number; null where it is not defined.
Measured: TypeAlias = Number | None
Interval: TypeAlias = tuple[Measured, Measured]
Status: TypeAlias = Literal["done", "fresh"]


class Frozen(BaseModel):
    """A part of a result: what it holds is named, typed and does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def data(self) -> dict[str, Any]:
        """The JSON object, with the keys that were given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def finite(value: Any) -> Any:
    """A JSON value with null for the numbers that JSON does not have: NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StageResult(Frozen):
    """What a stage returns: whether anything was done, and what a person or a program is told of it."""

    status: Status

    def tables(self) -> list[Table]:
        """What people see of it on stdout."""
        return []

    def remarks(self) -> list[str]:
        """What is said on stderr beside the result."""
        return []

    def findings(self) -> list[str]:
        """What whoever reads the numbers of later stages must know, too: `csalign run` repeats it."""
        return []

    def warnings(self) -> list[str]:
        """What is said on stderr also with --quiet."""
        return []


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of what a model's ``data`` gives."""
    found = model.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def flattened(directions: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(direction, metric, value) of an evaluation; a part of a direction is named "mixed/image"."""
    rows: list[tuple[str, str, Any]] = []
    for direction, metrics in directions.items():
        for name, value in metrics.items():
            rows += flattened({f"{direction}/{name}": value}) if isinstance(value, dict) else [(direction, name, value)]
    return rows
