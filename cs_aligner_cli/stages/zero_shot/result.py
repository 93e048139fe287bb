"""What zero-shot returns: accuracies of every store."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Number, StageResult
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import percent


class ZeroShotResult(StageResult):
    """Classification of a split's images by prompts of class names."""

    split: str
    folder: str
    classes: int
    templates: list[str]
    zero_shot: dict[str, dict[str, Number]] = Field(description="by store: accuracies as fractions, and the images")
    notes: list[str]

    def remarks(self) -> list[str]:
        """What was left out, and why."""
        return self.notes

    def tables(self) -> list[Table]:
        """Accuracies per store, in percent."""
        names = list(next(iter(self.zero_shot.values())))
        rows = [
            (store, *(str(v) if name == "images" else percent(v) for name, v in found.items()))
            for store, found in self.zero_shot.items()
        ]
        title = f"zero-shot on split {self.split}: {self.classes} classes, {len(self.templates)} prompts each (in %)"
        return [table(title, ["store", *(name.replace("_", " ") for name in names)], rows)]
