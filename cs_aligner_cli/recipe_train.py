"""The recipe's section on training: the towers, the objective, and how it is optimised."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cs_aligner_cli.recipe_objective import Objective
from cs_aligner_cli.recipe_towers import Tower
from cs_aligner_cli.validation import NAME_PATTERN, Strict

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Start: TypeAlias = Literal["plain", "centre", "whiten", "procrustes", "cca", "ridge"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
SplitName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Train(Strict):
    """What is trained, on what, and how."""

    split: SplitName = Field("train", description="The split trained on.")
    val_split: SplitName | None = Field(
        None, description="Split for validation; null: val_fraction of split is held out."
    )
    val_fraction: float = Field(0.05, gt=0, lt=1, description="Share of the images held out where val_split is null.")
    image: Tower = Field(Tower(), description="The image tower.")
    text: Tower = Field(Tower(), description="The text tower.")
    embed_dim: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="Adapters' output dimension; null: the towers' own if they share one, else 512.",
    )
    start: Start = Field(
        "plain",
        description="Where adapters begin. plain: the identity, or a random orthogonal map; otherwise closed forms from"
        " the training pairs: centre, whiten, procrustes, cca, ridge (image features regressed on the text's).",
    )
    objective: Objective = Field(Objective(), description="The loss.")
    pairwise_only: bool = Field(
        False, description="Also train a control: the same recipe and seed with divergence weight 0."
    )
    epochs: int = Field(12, ge=1, description="Passes over the images.")
    batch_size: int = Field(512, ge=2, description="Pairs per step: the size of the contrast.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Pairs that go through the towers at once (it must divide batch_size); null: the whole batch. "
        "The loss is that of the whole batch either way.",
    )
    lr: float = Field(1e-3, gt=0, le=10, description="Peak learning rate of AdamW.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.98],
        min_length=2,
        max_length=2,
        description="AdamW's decay rates of the moments (open_clip's for ViTs).",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay, on matrices only.")
    warmup_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps with linear warm-up; then cosine to 0."
    )
    grad_clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null: no clipping.")
    device: Device = Field("auto", description="Where training runs.")
    precision: Precision = Field(
        "fp32",
        description="Autocast precision of the towers; losses stay in float32. auto: bf16 on CUDA (fp16 with loss"
        " scaling on older cards), else fp32.",
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Also save the last state every so many steps; null: each epoch."
    )
    log_steps: int = Field(10, ge=1, description="Write the terms and gradient ratios every so many steps.")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [],
        description="Where the logged numbers go besides metrics.jsonl, at every checkpoint; each is an extra"
        " to install (pip install cs-aligner-cli[tensorboard]).",
    )
    conflict_steps: int | None = Field(
        None, ge=1, description="Write the conflict of alignment and uniformity every so many steps; null: never."
    )

    @property
    def cached_towers(self) -> bool:
        """Whether some tower trains on cached features, and so needs the training split's frozen store."""
        return not (self.image.live and self.text.live)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Train:
        size, micro = self.batch_size, self.micro_batch_size
        if micro is not None and size % micro:
            near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - micro), d))
            raise ValueError(f"micro_batch_size ({micro}) must divide batch_size ({size}); the nearest is {near}")
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> Train:
        if self.image.tune == self.text.tune == "frozen":
            raise ValueError(
                "image.tune and text.tune are both frozen, so nothing would be trained (train: null skips it)"
            )
        if self.start != "plain" and not (self.image.adapts or self.text.adapts):
            raise ValueError(f"start: {self.start} is a start of adapters, but no tower has one")
        return self
