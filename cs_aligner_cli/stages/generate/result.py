"""What generate returns: what was drawn, and what was measured of the pictures of every store."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.results import Measured, StageResult
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import number, percent

_COLUMNS = (
    *("condition_cosine", "clip_score", "prompt_R@1", "prompt_R@10", "frechet@encoder", "frechet@metric_encoder"),
    *("frechet@inception", "accuracy_background", "accuracy_colour", "accuracy_shape", "accuracy_cell", "accuracy_all"),
)
_FRACTIONS = ("prompt_", "accuracy_")


class GenerateResult(StageResult):
    """Pictures drawn from text embeddings in the place of image embeddings."""

    folder: str
    decoder: dict[str, Measured] = Field(description="what training it has reached; empty for a decoder that was taken")
    drawn: dict[str, dict[str, Measured]] = Field(description="by store or bound: pictures, norm, seconds_each")
    split: str
    prompts: int
    generate: dict[str, dict[str, Measured]] = Field(description="by store or bound: every metric")
    floors: dict[str, Measured] = Field(description="the Frechet distance of two halves of the real pictures, by space")
    published: dict[str, Measured] = Field(description="published values of the recipe, by metric")
    protocol: dict[str, Any] = Field(description="all that a table's caption must say")
    sheet: str
    notes: list[str]

    def remarks(self) -> list[str]:
        """What was left out, and where the contact sheet lies."""
        return [*self.notes, f"contact sheet: {self.sheet}"]

    def tables(self) -> list[Table]:
        """What was measured of every store, the floors, and published values; shares in percent."""
        present = {metric for found in (*self.generate.values(), self.published) for metric in found}
        keys = [key for key in _COLUMNS if key in present]

        def row(name: str, found: dict[str, Measured]) -> tuple[str, ...]:
            return name, *((percent if k.startswith(_FRACTIONS) else number)(found.get(k)) for k in keys)

        rows = [row(name, found) for name, found in self.generate.items()]
        rows += [row("floor", self.floors)] if self.floors else []
        rows += [row("published", self.published)] if self.published else []
        title = f"pictures of {counted(self.prompts, 'prompts')} of split {self.split} (prompt, accuracy in %)"
        return [table(title, ["store", *(key.replace("_", " ") for key in keys)], rows)]
