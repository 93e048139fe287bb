"""What train returns: every run, what it trained on and how well its best weights rank the validation images."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.results import Frozen, StageResult, Status
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import percent


class Round(Frozen):
    """What one round of self-training took for pairs."""

    epoch: int = Field(description="after which it came")
    mutual: int = Field(description="unpaired items that were each other's nearest")
    accepted: int = Field(description="those that were trained on as pairs until the next round")
    known: int = Field(description="accepted ones of which the data say whose caption it is (paired_fraction)")
    right: int = Field(description="those of them that are right")


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
    left_out_pairs: int | None = Field(None, description="by objective.noise_filter, over all steps; absent without")
    judged_pairs: int | None = Field(None, description="those that it has seen, over all steps")
    self_training: list[Round] = Field([], description="absent without train.self_training")


class TrainedHead(Frozen):
    """One finished training of a matching head."""

    status: Status
    seconds: float
    steps: int
    epochs: int
    trainable_parameters: int
    best_step: int
    val_recall: dict[str, float] = Field(
        alias="val_R@1", description="of the best head, the first ten hits reranked, by direction (i2t, t2i)"
    )


class TrainResult(StageResult):
    """The training runs: the recipe's own and, where it wants one, the control without the divergence."""

    runs: dict[str, TrainedRun]
    heads: dict[str, TrainedHead] = Field({}, description="matching heads by run; absent without train.matching")

    def findings(self) -> list[str]:
        """Which runs went on from a finished one, so that they are none of that many epochs in one go; wrong pairs,
        and those that were left out."""
        in_parts = [
            f"{name}: {counted(run.epochs, 'epochs')} in parts: it had been finished after "
            + " and ".join(map(str, run.continued_from_epochs))
            for name, run in self.runs.items()
            if run.continued_from_epochs
        ]
        rounds = [(name, r) for name, run in self.runs.items() for r in run.self_training]
        wrong = [
            f"{name}: of {r.known} pairs that self-training accepted after epoch {r.epoch}, {r.right} are right"
            for name, r in rounds
            if r.right < r.known
        ]
        left_out = [
            f"{name}: the noise filter left out {run.left_out_pairs} of the {run.judged_pairs} pairs that it saw, over"
            " all steps"
            for name, run in self.runs.items()
            if run.judged_pairs
        ]
        return [*in_parts, *wrong, *left_out]

    def tables(self) -> list[Table]:
        """One row per training run and per matching head."""
        trained: dict[str, TrainedRun | TrainedHead] = {**self.runs}
        trained |= {f"matching head {name}": head for name, head in self.heads.items()}
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
            for name, run in trained.items()
        ]
        columns = ["run", "steps", "trained weights", "best step", "val i2t R@1", "val t2i R@1", "time", "status"]
        return [table("training", columns, rows)]
