"""The recipe's section on training: the towers, the objective, and how it is optimised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, Tag, create_model, model_validator

from cs_aligner_cli.recipe.few_pairs import Mixup, SelfTraining, StartMoments
from cs_aligner_cli.recipe.matching import Matching
from cs_aligner_cli.recipe.messages import NAME_PATTERN, PLAIN, Strict, plain_or_kind
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.recipe.paths import RunFolder
from cs_aligner_cli.recipe.towers import Tower

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Start: TypeAlias = Literal["plain", "centre", "whiten", "procrustes", "cca", "ridge", "spectral"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
SplitName = Annotated[str, Field(pattern=NAME_PATTERN)]


class WeightedCaptions(Strict):
    """One caption of each image, drawn with weights by its position in the table."""

    kind: Literal["weighted"] = Field("weighted", description="Drawn with weights.")
    weights: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0],
        min_length=1,
        description="Weight of the first caption, the second, ...; the last one is that of all others.",
    )


def _plain_captions(value: Any) -> Any:
    if value in ("one_random", "first", "all"):
        return value
    raise ValueError("expected one_random, first, all, or a section of kind weighted")


Captions = Annotated[
    Annotated[Literal["one_random", "first", "all"], BeforeValidator(_plain_captions), Tag(PLAIN)]
    | Annotated[WeightedCaptions, Tag("weighted")],
    plain_or_kind("weighted"),
]


class UnpairedPerPair(Strict):
    """How many unpaired items a step draws beside its pairs, where data.unpaired names some."""

    image: float = Field(1.0, ge=0, le=1000, description="Unpaired images per pair.")
    text: float = Field(1.0, ge=0, le=1000, description="Unpaired captions per pair.")


if TYPE_CHECKING:

    class _Begun(Strict):
        """The key ``from``, which Python cannot spell."""

else:
    _Begun = create_model(
        "_Begun",
        __base__=Strict,
        **{
            "from": (
                RunFolder | None,
                Field(
                    None,
                    description="Another run whose trained weights (its last ones) this training begins with, with an"
                    " optimizer and a schedule of its own (and a logit scale and bias, where they are not learned):"
                    " run:NAME for the one in ./runs, its folder, or one such as train/aligned.1; null: none.",
                ),
            )
        },
    )


class Train(_Begun):
    """What is trained, on what, and how."""

    split: SplitName = Field("train", description="The split trained on.")
    val_split: SplitName | None = Field(
        None, description="Split for validation; null: val_fraction of split is held out."
    )
    val_fraction: float = Field(0.05, gt=0, lt=1, description="Share of the images held out where val_split is null.")
    image: Tower = Field(Tower(), description="The image tower.")
    text: Tower = Field(Tower(), description="The text tower.")
    further: dict[str, Tower] = Field(
        {}, description="The towers of further modalities by name; those not named are as by default."
    )
    edges: list[list[str]] | None = Field(
        None,
        min_length=1,
        description="Pairs of modalities that the pairwise term ranks, as in [[image, text], [audio, text]]; null:"
        " image and text, and each further modality with text.",
    )
    embed_dim: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="Adapters' output dimension; null: the towers' own if they share one, else 512.",
    )
    start: Start = Field(
        "plain",
        description="Where adapters begin. plain: the identity, or a random orthogonal map; otherwise closed forms from"
        " the training pairs: centre, whiten, procrustes, cca, ridge (image features regressed on the text's), spectral"
        " (both regressed on the coordinates of a graph of neighbours and partners).",
    )
    start_moments: StartMoments | None = Field(
        None, description="What a closed-form start is computed from; null: the pairs, with shrinkage 1."
    )
    objective: Objective = Field(Objective(), description="The loss.")
    mixup: Mixup | None = Field(
        None, description="Mix the features of a step's pairs with one another; null: pairs as they are."
    )
    self_training: SelfTraining | None = Field(
        None, description="Rounds that take unpaired items for pairs; null: pairs are those of the data."
    )
    pairwise_only: bool = Field(
        False,
        description="Also train a control: the same recipe and seed, with nothing but the pairwise term of the pairs.",
    )
    captions: Captions = Field(
        "one_random",
        description="Which captions of an image a step sees: one_random, first, all (each in a pair of its own), or a"
        " section of kind weighted, below.",
    )
    unpaired_per_pair: UnpairedPerPair = Field(
        UnpairedPerPair(), description="Unpaired items in a step: every term sees them but those of pairs."
    )
    epochs: int = Field(12, ge=1, le=1_000_000, description="Passes over the images; see train.last_batch.")
    batch_size: int = Field(512, ge=2, description="Images with captions per step: the size of the contrast.")
    last_batch: Literal["drop", "keep"] = Field(
        "drop",
        description="What becomes of the images of an epoch that do not fill its last batch. drop: they are left out of"
        " it, others every epoch; keep: they are a smaller batch (of 2 at least, and one image for every rank).",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Items that go through a tower at once (it must divide batch_size); null: the whole batch. "
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
    matching: Matching | None = Field(
        None,
        description="Train a matching head on the tokens of the finished towers, for eval_retrieval.rerank; null: none."
        " Needs reads: tokens, from stores.",
    )
    device: Device = Field("auto", description="Where training runs.")
    precision: Precision = Field(
        "fp32",
        description="Autocast precision of the towers; losses stay in float32. auto: bf16 on CUDA (fp16 with loss"
        " scaling on older cards), else fp32.",
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Also save the last state every so many steps; null: each epoch."
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Save the last state at least so often: what a killed job loses at most."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="How many of the last states are kept, so that a damaged one costs little."
    )
    keep_states: int = Field(
        0,
        ge=0,
        description="How many states remain when training has ended (three times the trained weights each). With one,"
        " a raised train.epochs goes on from there.",
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
    def origin(self) -> Path | None:
        """The run whose weights this training begins with."""
        origin: Path | None = getattr(self, "from")
        return origin

    @property
    def other_runs(self) -> list[tuple[str, Path]]:
        """The runs whose weights this training reads, each with the key that names it."""
        found = [("train.from", self.origin)] if self.origin is not None else []
        teacher = self.objective.teacher
        return found + [("train.objective.teacher.runs", run) for run in (teacher.runs if teacher else ())]

    def tower(self, modality: str) -> Tower:
        """The tower of a modality."""
        return {"image": self.image, "text": self.text}.get(modality) or self.further.get(modality, Tower())

    @property
    def cached_towers(self) -> bool:
        """Whether some tower trains on cached features, and so needs the training split's frozen store."""
        return not (self.image.live and self.text.live)

    def cached_reading(self, reads: str, modalities: Sequence[str]) -> list[str]:
        """Those of the modalities whose towers train on stored "pooled" embeddings, or on stored "tokens"."""
        towers = {modality: self.tower(modality) for modality in modalities}
        return [m for m, tower in towers.items() if not tower.live and tower.reads == reads]

    def reads_frozen(self, modalities: Sequence[str]) -> list[str]:
        """Those of the modalities whose stored pooled embeddings training reads: for cached towers, and beside live
        ones where a term compares embeddings with what they were before training."""
        beside = [m for m in modalities if self.tower(m).live] if self.objective.sees_features else []
        return [*self.cached_reading("pooled", modalities), *beside]

    @model_validator(mode="after")
    def _tokens_are_there(self) -> Train:
        pooled = [m for m in ("image", "text") if getattr(self, m).reads == "pooled"]
        if self.objective.sees_tokens and pooled:
            key = next(key for key in ("tokens", "levels", "token_exchange") if getattr(self.objective, key))
            raise ValueError(f"objective.{key} needs {' and '.join(f'{m}.reads: tokens' for m in pooled)}")
        if self.start != "plain" and len(pooled) < 2:
            raise ValueError(f"start: {self.start} is computed from pooled embeddings, and goes with reads: pooled")
        return self

    @model_validator(mode="after")
    def _moments_of_a_start(self) -> Train:
        if self.start_moments is not None and self.start == "plain":
            raise ValueError("start_moments goes with a closed-form start, as in start: cca")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Train:
        _refuse_misfits(self)
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Train:
        if self.origin is not None and self.start != "plain":
            raise ValueError(f"from and start: {self.start} are two beginnings; name one")
        return self

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Train:
        size, micro = self.batch_size, self.micro_batch_size
        if micro is not None and size % micro:
            near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - micro), d))
            raise ValueError(f"micro_batch_size ({micro}) must divide batch_size ({size}); the nearest is {near}")
        return self

    @model_validator(mode="after")
    def _further_are_cached(self) -> Train:
        for name, tower in self.further.items():
            if tower.live:
                raise ValueError(f"further.{name}.tune: {tower.tune} needs a live encoder; use adapter or frozen")
            if tower.reads == "tokens":
                raise ValueError(f"further.{name}.reads: tokens is for image and text; further modalities are pooled")
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


def keys_of_unpaired_items(train: Train) -> list[str]:
    """The keys of a recipe that make no sense without unpaired items."""
    objective, moments = train.objective, train.start_moments
    wanting = {
        "unpaired_per_pair": train.unpaired_per_pair != UnpairedPerPair(),
        "objective.pairwise.unpaired_negatives": objective.pairwise.sees_unpaired,
        "self_training": train.self_training is not None,
        "objective.pseudo_pairs": objective.pseudo_pairs is not None,
        "start_moments.unpaired": moments is not None and moments.unpaired,
    }
    return [f"train.{key}" for key, wants in wanting.items() if wants]


def _refuse_misfits(train: Train) -> None:
    """Raise ValueError where mixup, self-training, a matching head or the control cannot do their work."""
    if train.pairwise_only and train.objective.pairwise.weight == 0:
        raise ValueError(
            "pairwise_only trains on objective.pairwise alone, whose weight is 0; use pairwise_only: false"
        )
    for name, tower in (("image", train.image), ("text", train.text)) if train.matching else ():
        if tower.reads == "pooled":
            raise ValueError(f"matching compares tokens, and needs {name}.reads: tokens")
        if tower.live:
            raise ValueError(f"matching reads stored tokens, and {name}.tune: {tower.tune} has none; use adapter")
    rounds = train.self_training
    if rounds and rounds.first_epoch >= train.epochs:
        raise ValueError(f"self_training.first_epoch ({rounds.first_epoch}) must be less than epochs ({train.epochs})")
    for name, tower in (("image", train.image), ("text", train.text)):
        if not tower.live and tower.reads != "tokens":
            continue
        what = f"tune: {tower.tune}" if tower.live else "reads: tokens"
        if train.mixup:
            raise ValueError(f"mixup mixes stored pooled features, and {name}.{what} reads none")
        if rounds and rounds.agreement:
            raise ValueError(
                f"self_training.agreement compares stored pooled features, and {name}.{what} reads none; use []"
            )
