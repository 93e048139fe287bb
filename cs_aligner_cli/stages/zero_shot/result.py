"""What zero-shot returns: accuracies of every store."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.results import Frozen, Interval, Number, StageResult
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import percent


class ShotsResult(Frozen):
    """Accuracy of a method that has seen some labelled images of each class."""

    mean: float = Field(description="over draws")
    interval: Interval = Field(description="95%, Student's t over draws, within 0 and 1; null for one draw")


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
    few_shot: dict[str, dict[str, dict[str, ShotsResult]]] = Field(
        {}, description="by store, method and images of each class; absent without zero_shot.shots"
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
        prompts = counted(len(self.templates), "prompts")
        title = f"zero-shot on split {self.split}: {self.classes} classes, {prompts} each (in %)"
        accuracies = table(title, ["store", *(name.replace("_", " ") for name in names)], rows)
        return [accuracies, *(self._shots(store, found) for store, found in self.few_shot.items())]

    def _shots(self, store: str, found: dict[str, dict[str, ShotsResult]]) -> Table:
        counts = list(next(iter(found.values())))
        rows = [
            (method.replace("_", " "), *(f"{percent(one.mean)}{_spanned(one)}" for one in by_k.values()))
            for method, by_k in found.items()
        ]
        return table(
            f"{store}: accuracy by images of each class that are known (in %, [95% intervals])",
            ["method", *counts],
            rows,
        )

    def _cell(self, store: str, name: str, value: Number) -> str:
        if name == "images":
            return str(value)
        span = self.intervals.get(store, {}).get(name)
        return percent(value) + (f" [{percent(span[0])}, {percent(span[1])}]" if span else "")


def _spanned(one: ShotsResult) -> str:
    low, high = one.interval
    return "" if low is None or high is None or low == high else f" [{percent(low)}, {percent(high)}]"
