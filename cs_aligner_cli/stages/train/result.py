"""What train returns: every run, what it trained on and how well its best weights rank the validation images."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.results import Frozen, StageResult, Status
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import percent


class TrainedRun(Frozen):
    """One finished training run."""

    status: Status
    seconds: float
    steps: int
    epochs: int
    batch_size: int
    train_images: int
    left_out_images: int = Field(0, description="of every epoch, since they do not fill its last batch")
    val_images: int
    unpaired_items: dict[str, int]
    trainable_parameters: int
    best_step: int
    val_recall: dict[str, float] = Field(alias="val_R@1", description="of the best weights, by direction (i2t, t2i)")
    continued_from_epochs: list[int] = Field(
        [], description="after which the training had been finished before it went on with more, and their schedule"
    )
    bandwidth: float | list[float] | None = Field(
        None, description="chosen before training, where the recipe says auto"
    )


class TrainResult(StageResult):
    """The training runs: the recipe's own and, where it wants one, the control without the divergence."""

    runs: dict[str, TrainedRun]

    def findings(self) -> list[str]:
        """Which runs went on from a finished one: they are no runs of that many epochs in one go."""
        return [
            f"{name}: {counted(run.epochs, 'epochs')} in parts: it had been finished after "
            + " and ".join(map(str, run.continued_from_epochs))
            for name, run in self.runs.items()
            if run.continued_from_epochs
        ]

    def tables(self) -> list[Table]:
        """One row per training run."""
        rows = [
            (
                name,
                run.steps,
                f"{run.trainable_parameters:,}",
                run.best_step,
                *(percent(run.val_recall.get(direction)) for direction in ("i2t", "t2i")),
                f"{run.seconds:.0f} s",
                run.status,
            )
            for name, run in self.runs.items()
        ]
        columns = ["run", "steps", "trained weights", "best step", "val i2t R@1", "val t2i R@1", "time", "status"]
        return [table("training", columns, rows)]
