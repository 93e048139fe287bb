"""The recipe's section on sweeps: many runs of one recipe, as configurations times seeds."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cs_aligner_cli.recipe.messages import Strict

Settings = dict[str, Any]
_MOST_SEEDS = 1000
PRUNED_BY_RECALL = (
    "search.prune_after ends trials by their validation R@1, which says nothing of a metric that is to be small: "
    "expected an objective that is to be large, or prune_after null"
)

Direction = Literal["maximize", "minimize"]
Choices = Annotated[list[Any], Field(min_length=1)]


class Space(Strict):
    """The values that one key may take: a range of numbers, or choices."""

    low: float | None = Field(None, ge=-1e9, le=1e9, description="Smallest number.")
    high: float | None = Field(None, ge=-1e9, le=1e9, description="Largest number.")
    log: bool = Field(False, description="Draw the logarithm evenly; low must be above 0.")
    whole: bool = Field(False, description="Whole numbers only.")
    choices: Choices | None = Field(None, description="In place of a range: the values that are chosen from.")

    @model_validator(mode="after")
    def _is_a_range_or_a_choice(self) -> Space:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.whole:
                raise ValueError("expected either choices, or low and high; got both")
        elif (self.low is None) != (self.high is None):
            raise ValueError("expected low and high, or choices")
        elif self.low is None or self.high is None:
            return self
        elif self.high < self.low:
            raise ValueError(f"expected low <= high, got {self.low:g} and {self.high:g}")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: true needs low above 0, got {self.low:g}")
        elif self.whole and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"there is no whole number from {self.low:g} to {self.high:g}")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest number of a range."""
        assert self.low is not None and self.high is not None
        return self.low, self.high


class Drawn(Strict):
    """Configurations whose values are drawn at random."""

    count: int = Field(20, ge=1, le=100_000, description="How many configurations are drawn.")
    keys: dict[str, Space] = Field({}, description="Key path to the values that it may take; at least one.")
    draw_seed: int = Field(0, ge=0, lt=2**31, description="Seed of the draws; no run's own seed.")


class Search(Strict):
    """Configurations that an optimizer chooses by what the earlier ones measured (Optuna; the extra `search`).

    Every trial is one configuration, run with every seed; it is judged by the mean of `sweep.objective`. The best of a
    search is good on the split that it was chosen by: measure it again on another one.
    """

    trials: int = Field(50, ge=1, le=100_000, description="How many configurations are tried.")
    keys: dict[str, Space] = Field({}, description="Key path to the values that it may take; at least one.")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="tpe: tree-structured Parzen estimator (Bergstra et al. 2011); random: independent draws."
    )
    startup_trials: int = Field(
        10, ge=1, le=100_000, description="Trials drawn at random, and never ended early, before the others."
    )
    draw_seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choices; no run's own seed.")
    prune_after: int | None = Field(
        None,
        ge=1,
        description="Epochs after which a trial ends early where the validation R@1 of its first seed's training is "
        "below the median that earlier trials had after as many epochs; null: every trial is run to its end.",
    )


def _counted(value: Any) -> Any:
    """The seeds that a number stands for: 0, 1, and so on."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= _MOST_SEEDS:
            raise ValueError(f"expected 1 to {_MOST_SEEDS} seeds, or a list of them")
        return list(range(value))
    return value


Seeds = Annotated[
    Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=_MOST_SEEDS)],
    BeforeValidator(_counted, json_schema_input_type=int | list[int]),
]


class Slurm(Strict):
    """The jobs of `csalign sweep --launch slurm` (submitit; the extra `slurm`): one array of --jobs equal jobs."""

    minutes: int = Field(
        240, ge=1, description="Limit of a job; one that reaches it, or is preempted, is queued again and goes on."
    )
    requeues: int = Field(20, ge=0, description="How often a job whose time is up is queued again.")
    cpus: int = Field(4, ge=1, description="Cores of a job.")
    gpus: int = Field(0, ge=0, description="GPUs of a job.")
    memory_gb: int = Field(16, ge=1, description="Memory of a job in GB.")
    partition: str | None = Field(None, description="Partition; null: the cluster's own default.")
    account: str | None = Field(None, description="Account; null: the user's own default.")
    options: dict[str, str | Annotated[int, Field(ge=0)]] = Field(
        {}, description="Further options of sbatch, as in {constraint: a100}."
    )


class Objective(Strict):
    """The metric that is tested, and by which the best is told."""

    metric: str = Field(
        "eval_retrieval.aligned.mean.R@1",
        min_length=1,
        description="Path in a run's JSON, as eval_retrieval.STORE.DIRECTION.METRIC (DIRECTION: i2t, t2i, or mean for "
        "the mean of both) or gap_report.STORE.METRIC.",
    )
    direction: Direction | None = Field(
        None, description="Which way is better; null: what is known of the metric (R@K is to be large, a gap small)."
    )


class Sweep(Strict):
    """Many runs of one recipe: the union of the configurations below, each with every seed."""

    grid: dict[str, Choices] = Field({}, description="Key path to its values; all combinations are run.")
    settings: dict[str, Settings] = Field(
        {}, description="Configurations by name, each a map of key path to value; {} is the recipe as it stands."
    )
    random: Drawn | None = Field(None, description="Configurations drawn at random.")
    search: Search | None = Field(None, description="Configurations that an optimizer chooses, one after another.")
    ablation: list[str] = Field(
        [],
        description="Components that are taken away from the recipe, each in turn and all together: a key path, which "
        "is set to null, or path=value for what stands for its absence.",
    )
    seeds: Seeds = Field([0, 1, 2], description="Replicates of every configuration: how many (0, 1, ...), or which.")
    control: str | None = Field(
        None, description="Name of the configuration that the others are tested against; null: none."
    )
    objective: Objective = Field(Objective(), description="The metric by which configurations are ranked.")
    slurm: Slurm = Field(Slurm(), description="What a job of --launch slurm is given.")
    report: bool = Field(
        False, description="Write every run's gap report too; without it a sweep measures the headline gap metrics."
    )

    @model_validator(mode="after")
    def _has_distinct_seeds(self) -> Sweep:
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: {next(s for s in self.seeds if self.seeds.count(s) > 1)} is named twice")
        return self

    @model_validator(mode="after")
    def _search_can_be_judged(self) -> Sweep:
        if self.search and not self.search.keys:
            raise ValueError("search.keys: expected at least one key path and its values")
        if self.search and self.search.prune_after and self.objective.direction == "minimize":
            raise ValueError(PRUNED_BY_RECALL)
        return self

    @property
    def varied_keys(self) -> dict[str, str]:
        """Every key path that configurations set, and the place in the recipe where they do."""
        found = {key: f"sweep.grid.{key}" for key in self.grid}
        found |= {key: f"sweep.settings.{name}.{key}" for name, own in self.settings.items() for key in own}
        found |= {key: f"sweep.random.keys.{key}" for key in (self.random.keys if self.random else ())}
        found |= {key: f"sweep.search.keys.{key}" for key in (self.search.keys if self.search else ())}
        return found | {c.partition("=")[0].strip(): f"sweep.ablation: {c}" for c in self.ablation}
