"""What zero-shot returns: accuracies of every store."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Interval, Number, StageResult
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import percent


class ZeroShotResult(StageResult):
    """Classification of a split's images by prompts of class names."""

    split: str
    folder: str
    classes: int
    templates: list[str]
    zero_shot: dict[str, dict[str, Number]] = Field(description="by store: accuracies as fractions, and the images")
    intervals: dict[str, dict[str, Interval]] = Field(
        {}, description="by store: 95%, Wilson's over images, of the accuracies over all images"
    )
    notes: list[str]

    def remarks(self) -> list[str]:
        """What was left out, and why."""
        return self.notes

    def tables(self) -> list[Table]:
        """Accuracies per store, in percent."""
        names = list(next(iter(self.zero_shot.values())))
        rows = [
            (store, *(self._cell(store, name, value) for name, value in found.items()))
            for store, found in self.zero_shot.items()
        ]
        title = f"zero-shot on split {self.split}: {self.classes} classes, {len(self.templates)} prompts each (in %)"
        return [table(title, ["store", *(name.replace("_", " ") for name in names)], rows)]

    def _cell(self, store: str, name: str, value: Number) -> str:
        if name == "images":
            return str(value)
        span = self.intervals.get(store, {}).get(name)
        return percent(value) + (f" [{percent(span[0])}, {percent(span[1])}]" if span else "")
