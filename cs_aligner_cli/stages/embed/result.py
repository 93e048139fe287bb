"""What embed returns: every store, how large it is and how fast it was made."""

from __future__ import annotations

from pydantic import Field, RootModel

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Frozen, StageResult, Status
from cs_aligner_cli.common.tables import Table


class Embedded(Frozen):
    """One modality of a store."""

    rows: int
    dim: int
    tokens: int = Field(0, description="in a token store, the tokens of all rows")
    seconds: float
    computed: int = Field(description="rows computed, equal captions once, by all ranks")
    per_second: float
    encoder_busy: float = Field(description="share of the time in which the encoder computed")


class StoreSummary(RootModel[dict[str, Embedded | Status]], frozen=True):
    """A store by modality; ``status`` says whether it was made now."""

    @property
    def status(self) -> str:
        """done or fresh."""
        return str(self.root["status"])

    def cells(self, modality: str) -> tuple[object, ...]:
        """Rows, dimension and speed of one modality; dashes where the store holds none of it."""
        part = self.root.get(modality)
        return (part.rows, part.dim, f"{part.per_second:,.0f}") if isinstance(part, Embedded) else ("-", "-", "-")


class EmbedResult(StageResult):
    """The embedding stores."""

    stores: dict[str, dict[str, StoreSummary]] = Field(description="by the store's name and its split")
    waiting_for_training: list[str] = Field(description="aligned stores that cannot be made before csalign train")

    def tables(self) -> list[Table]:
        """Rows and dimensions of every store, and how fast each was made."""
        rows = [
            (name, split, *part.cells("image"), *part.cells("text"), part.status)
            for name, splits in self.stores.items()
            for split, part in splits.items()
        ]
        columns = ["store", "split", "images", "dim", "per s", "texts", "dim", "per s", "status"]
        return [table("embedding stores", columns, rows, names=2)]

    def remarks(self) -> list[str]:
        """Which stores wait for training."""
        return [
            f"no finished training run {name} yet: csalign train, then csalign embed makes its store"
            for name in self.waiting_for_training
        ]
