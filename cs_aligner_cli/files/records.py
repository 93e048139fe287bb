"""What a finished stage writes about an output of its own, as stage.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cs_aligner_cli.common.results import Frozen, Number


class Inputs(Frozen):
    """All that determines an output: where it is equal, the output is fresh."""

    form: int = Field(alias="format", description="of the output; older ones count as stale")
    recipe: dict[str, Any] = Field(description="the parts of the recipe that matter")
    needs: dict[str, str | None] = Field(description="fingerprints of the outputs that it is made from")
    sources: str = Field("", description="a digest of names, sizes and times of outside files")
    continues: str = Field("", description="the fingerprint of the finished training that this one goes on from")


class StageRecord(Frozen):
    """A finished output."""

    name: str
    csalign: str = Field(description="the version that wrote it")
    finished: str = Field(description="local time, ISO 8601")
    seconds: Number
    inputs: Inputs
    places: dict[str, str] = Field({}, description="where the files from outside lie; of no matter for freshness")
    summary: dict[str, Any] = Field(description="what the stage returns of it")
    files: dict[str, tuple[int, str]] = Field(description="size and BLAKE2b checksum of every file")
    seal: str = Field("", description="the checksum of this record")
