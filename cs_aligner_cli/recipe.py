"""The recipe: one typed, frozen description of an experiment that drives every stage."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, Tag, ValidationInfo, model_validator

from cs_aligner_cli import shelf
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.validation import (
    NAME_PATTERN,
    CommandLineText,
    FilePath,
    Strict,
    by_kind,
    resolve_path,
    set_value,
    validate,
)
from cs_aligner_cli.yamlfile import KeyPath, dump_yaml, parse_value, read_yaml

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
OPEN_CLIP_FOLDER = "open_clip"
RECIPE_VARIABLE = "CSALIGN_RECIPE"
DEFAULT_RECIPE = Path("recipe.yaml")
SplitName = Annotated[str, Field(pattern=NAME_PATTERN)]


def _manifest(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if Path(value).suffix in (".yaml", ".yml"):
        return str(resolve_path(value, info))
    if not value or "/" in value:
        raise ValueError("expected the name of a shipped manifest, or a path that ends in .yaml")
    return value


class Data(Strict):
    """What is aligned."""

    manifest: Annotated[str, BeforeValidator(_manifest)] = Field(
        "scenes",
        description="A manifest of the shelf by name, or the path of a manifest file (ends in .yaml).",
    )
    root: FilePath | None = Field(
        None, description="Folder of the data files; replaces the manifest's own root."
    )
    dir: FilePath | None = Field(
        None,
        description="Where the prepared data set lies; null: in run_dir. Runs on the same data may share it.",
    )
    max_bad_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of bad items (missing, truncated, empty) above which prepare exits with 3.",
    )


def _divides(section: Strict, small: str, large: str) -> None:
    part, whole = getattr(section, small), getattr(section, large)
    if whole % part:
        raise ValueError(f"{small} ({part}) must divide {large} ({whole})")


class VisionConfig(Strict):
    """open_clip's vision_cfg, as far as a small ViT needs it."""

    image_size: int = Field(64, ge=8, le=1024, description="Side of the square input, pixels.")
    patch_size: int = Field(8, ge=2, le=256, description="Side of a patch, pixels.")
    width: int = Field(128, ge=8, le=8192, description="Width of the transformer.")
    layers: int = Field(4, ge=1, le=200, description="Number of transformer blocks.")
    head_width: int = Field(32, ge=4, le=512, description="Width of one attention head; divides width.")

    @model_validator(mode="after")
    def _fits(self) -> VisionConfig:
        _divides(self, "head_width", "width")
        _divides(self, "patch_size", "image_size")
        return self


class TextConfig(Strict):
    """open_clip's text_cfg, as far as a small text transformer needs it."""

    context_length: int = Field(32, ge=4, le=4096, description="Tokens per caption; longer captions are cut.")
    width: int = Field(128, ge=8, le=8192, description="Width of the transformer.")
    heads: int = Field(4, ge=1, le=256, description="Attention heads; divides width.")
    layers: int = Field(3, ge=1, le=200, description="Number of transformer blocks.")

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        _divides(self, "heads", "width")
        return self


class ClipConfig(Strict):
    """A small open_clip architecture, named in open_clip's own words."""

    embed_dim: int = Field(128, ge=2, le=8192, description="Dimension of the joint embedding space.")
    vision_cfg: VisionConfig = Field(VisionConfig(), description="The image tower.")
    text_cfg: TextConfig = Field(TextConfig(), description="The text tower.")


# In the JSON Schema: a section without a kind is one of the default kind, and matches no other.
_KIND_IS_NEEDED: dict[str, Any] = {"required": ["kind"]}


class FeaturesEncoder(Strict):
    """Features that another program computed; the manifest (kind: embeddings) says where they lie."""

    kind: Literal["features"] = Field("features", description="Stored features.")
    power: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Signed power applied to each value (0.5: the square root, as for post-ReLU features).",
    )


class OpenClipEncoder(Strict, json_schema_extra=_KIND_IS_NEEDED):
    """A tower of an open_clip model, with the model's own preprocessing and tokenizer."""

    kind: Literal["open_clip"] = Field("open_clip", description="An open_clip model.")
    model: str | None = Field(
        None,
        description="Architecture name (ViT-B-32), hf-hub:ORG/NAME, local-dir:FOLDER as open_clip saves it,"
        " or run:NAME: the model that the run in ./runs/NAME trained.",
    )
    pretrained: str | None = Field(
        None, description="Pretrained tag of the named architecture, or a checkpoint's path."
    )
    config: ClipConfig | None = Field(None, description="Instead of model: a small architecture of your own.")
    random_init: bool = Field(
        False,
        description="Begin from random weights (seeded by the recipe), for models trained from scratch.",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any, info: ValidationInfo) -> Any:
        """Paths inside local-dir:FOLDER and of checkpoint files follow the rule of every other path."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        model, pretrained = data.get("model"), data.get("pretrained")
        if isinstance(model, str) and model.startswith("run:"):
            data["model"] = f"local-dir:{exported_model(Path.cwd() / 'runs' / model.removeprefix('run:'))}"
        elif isinstance(model, str) and model.startswith("local-dir:"):
            data["model"] = f"local-dir:{resolve_path(model, info, prefix='local-dir:')}"
        if isinstance(pretrained, str) and Path(pretrained).suffix:  # a file; pretrained tags have no dot
            data["pretrained"] = str(resolve_path(pretrained, info))
        return data

    @model_validator(mode="after")
    def _one_source(self) -> OpenClipEncoder:
        if (self.model is None) == (self.config is None):
            raise ValueError("give exactly one of model and config")
        own_weights = self.model is not None and self.model.startswith(("local-dir:", "hf-hub:"))
        if own_weights and (self.pretrained or self.random_init):
            raise ValueError(
                "a model from local-dir: or hf-hub: brings its weights; drop pretrained and random_init"
            )
        if not own_weights and bool(self.pretrained) == self.random_init:
            raise ValueError(
                "say where the weights come from: either pretrained (a tag or a file) or random_init: true"
            )
        return self


def exported_model(run_dir: Path) -> Path:
    """Where a run with fully trained towers leaves its model as an open_clip folder."""
    return run_dir / "train" / "aligned" / OPEN_CLIP_FOLDER


Encoder = Annotated[
    Annotated[FeaturesEncoder, Tag("features")] | Annotated[OpenClipEncoder, Tag("open_clip")],
    by_kind("features"),
]


class Encoders(Strict):
    """The two towers as they come, before any training."""

    image: Encoder = Field(
        OpenClipEncoder(kind="open_clip", config=ClipConfig(), random_init=True),
        description="The image tower; without this section a small open_clip model with random weights.",
    )
    text: Encoder | None = Field(
        None, description="The text tower; null: of the same kind and model as the image tower."
    )

    def of(self, modality: str) -> FeaturesEncoder | OpenClipEncoder:
        """The encoder of "image" or "text"."""
        return self.text if modality == "text" and self.text is not None else self.image


class Embed(Strict):
    """How embeddings are computed and stored."""

    device: Device = Field(
        "auto", description="Where encoders run; auto: CUDA where there is one, else the CPU."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Autocast precision of the encoders."
    )
    batch_size: int = Field(128, ge=1, description="Items per forward pass.")
    shard_rows: int = Field(
        65536, ge=1, description="Rows per shard; a finished shard is never computed again."
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="Type of the stored values.")
    dir: FilePath | None = Field(
        None,
        description="Where the frozen store lies; null: in run_dir. Runs with equal encoders may share it.",
    )
    checkpoint: Literal["best", "last"] = Field(
        "best", description="Which trained weights the aligned store uses."
    )
    weights: FilePath | None = Field(
        None,
        description="Weights of another run (best.safetensors) to align with, in place of training here.",
    )


class LinearAdapter(Strict, json_schema_extra=_KIND_IS_NEEDED):
    """One linear map (identity at the start where the dimensions agree)."""

    kind: Literal["linear"] = Field("linear", description="A linear map.")
    bias: bool = Field(True, description="Add a learned offset.")


class ResidualMlpAdapter(Strict):
    """A skip path plus a two-layer MLP (zero at the start, so that training begins at the skip path)."""

    kind: Literal["residual_mlp"] = Field("residual_mlp", description="Skip path plus MLP.")
    hidden_dim: int = Field(1024, ge=1, le=65536, description="Hidden units.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the hidden units.")


Adapter = Annotated[
    Annotated[LinearAdapter, Tag("linear")] | Annotated[ResidualMlpAdapter, Tag("residual_mlp")],
    by_kind("residual_mlp"),
]


class Tower(Strict):
    """What is trained of one tower."""

    tune: Literal["frozen", "adapter", "full"] = Field(
        "adapter",
        description="frozen: nothing; adapter: a map on cached features; full: the encoder itself, live.",
    )
    adapter: Adapter = Field(ResidualMlpAdapter(), description="Used with tune: adapter.")


class LogitScale(Strict):
    """The inverse temperature, as open_clip counts it (100 = temperature 0.01)."""

    init: float = Field(1 / 0.07, gt=0, le=1000, description="Value at the start.")
    learn: bool = Field(True, description="Train it; false: it stays at init.")
    max: float = Field(100.0, gt=0, le=1000, description="Upper clamp of the learned value (CLIP's is 100).")

    @model_validator(mode="after")
    def _ordered(self) -> LogitScale:
        if self.init > self.max:
            raise ValueError(f"init ({self.init:g}) must not exceed max ({self.max:g})")
        return self


class InfoNce(Strict):
    """Symmetric InfoNCE; captions of one image are no negatives of each other."""

    kind: Literal["infonce"] = Field("infonce", description="CLIP's loss.")
    weight: float = Field(1.0, ge=0, description="Weight of the term.")
    logit_scale: LogitScale = Field(LogitScale(), description="The inverse temperature.")


def _bandwidth(value: Any) -> Any:
    """Pydantic would report each member of the union; a user needs one message."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "median" or (is_number and value > 0 and math.isfinite(value)):
        return value
    raise ValueError("expected a number more than 0 (sigma of the Gaussian kernel), or median")


Bandwidth = Annotated[Annotated[float, Field(gt=0)] | Literal["median"], BeforeValidator(_bandwidth)]


class CauchySchwarz(Strict):
    """The Cauchy-Schwarz divergence between the two clouds."""

    kind: Literal["cs"] = Field("cs", description="Cauchy-Schwarz divergence.")
    weight: float = Field(1.0, ge=0, description="lambda; 0 still logs the value but trains without it.")
    bandwidth: Bandwidth = Field(
        0.7071,
        description="sigma of the Gaussian kernel, or median: the median pairwise distance of each batch.",
    )
    estimator: Literal["v", "u"] = Field(
        "v", description="v: diagonals included (the paper's); u: diagonal-free."
    )


Pairwise: TypeAlias = InfoNce
Divergence: TypeAlias = CauchySchwarz


class Objective(Strict):
    """The loss: pairwise term plus weighted divergence."""

    pairwise: Pairwise = Field(InfoNce(), description="Ranks pairs.")
    divergence: Divergence = Field(CauchySchwarz(), description="Brings the two distributions together.")


class Train(Strict):
    """What is trained, on what, and how."""

    split: SplitName = Field("train", description="The split trained on.")
    val_split: SplitName | None = Field(
        None, description="Split for validation; null: val_fraction of split is held out."
    )
    val_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of the images held out where val_split is null."
    )
    image: Tower = Field(Tower(), description="The image tower.")
    text: Tower = Field(Tower(), description="The text tower.")
    embed_dim: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="Adapters' output dimension; null: the towers' own if they share one, else 512.",
    )
    objective: Objective = Field(Objective(), description="The loss.")
    pairwise_only: bool = Field(
        False, description="Also train a control: the same recipe and seed with divergence weight 0."
    )
    epochs: int = Field(12, ge=1, description="Passes over the images.")
    batch_size: int = Field(512, ge=2, description="Pairs per step: the size of the contrast.")
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
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Also save the last state every so many steps; null: each epoch."
    )
    log_steps: int = Field(10, ge=1, description="Write the terms and gradient ratios every so many steps.")

    @property
    def cached_towers(self) -> bool:
        """Whether some tower trains on cached features, and so needs the training split's frozen store."""
        return self.image.tune != "full" or self.text.tune != "full"

    @model_validator(mode="after")
    def _trains_something(self) -> Train:
        if self.image.tune == self.text.tune == "frozen":
            raise ValueError(
                "image.tune and text.tune are both frozen, so nothing would be trained (train: null skips it)"
            )
        return self


class EvalRetrieval(Strict):
    """Which retrieval numbers are computed."""

    split: SplitName = Field("test", description="The split evaluated.")
    ks: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10], min_length=1, description="The k of R@k.")
    neighbors: int = Field(10, ge=1, description="Neighbours saved per query; at most the gallery is saved.")


class GapReport(Strict):
    """Which gap numbers and pictures are made."""

    split: SplitName | None = Field(None, description="The split measured; null: that of eval_retrieval.")
    bandwidths: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 0.7071, 1.0], min_length=1, description="sigma at which D_CS is reported."
    )
    max_pairs: int = Field(
        5000, ge=10, description="Pairs measured at most (evenly spaced); the report says how many."
    )


class Recipe(Strict):
    """One experiment from data to report."""

    name: str = Field(pattern=NAME_PATTERN, description="Short name; letters, digits, _ . -")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of every random draw.")
    run_dir: FilePath | None = Field(
        None, description="Where the run is written; null: runs/NAME in the current folder."
    )
    data: Data = Field(Data(), description="What is aligned.")
    encoders: Encoders = Field(Encoders(), description="The towers before training.")
    embed: Embed = Field(Embed(), description="How embeddings are computed.")
    train: Train | None = Field(
        Train(), description="What is trained; null: nothing, the frozen towers are measured."
    )
    eval_retrieval: EvalRetrieval = Field(EvalRetrieval(), description="Retrieval numbers.")
    gap_report: GapReport = Field(GapReport(), description="Gap numbers and pictures.")

    @property
    def trains(self) -> bool:
        """Whether this recipe trains anything itself."""
        return self.train is not None and self.embed.weights is None

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run_dir or Path.cwd() / "runs" / self.name

    def to_yaml(self) -> str:
        """The recipe with every default written out and every path absolute; csalign reads it back."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def gap_split(self) -> str:
        """The split that the gap report measures."""
        return self.gap_report.split or self.eval_retrieval.split

    @property
    def measured_splits(self) -> list[str]:
        """The splits that eval-retrieval and gap-report read."""
        return list(dict.fromkeys([self.eval_retrieval.split, self.gap_split]))


def load_recipe(name_or_path: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    ``name_or_path`` is a file or a recipe of the shelf; None means $CSALIGN_RECIPE, then ./recipe.yaml. Each
    override is ``a.b.c=value``. Raises InputError with all problems in one report.
    """
    file = read_yaml(find_recipe(name_or_path))
    changes: dict[KeyPath, str] = {}
    for text in overrides:
        path, raw = _override(text)
        set_value(file.data, path, _from_command_line(parse_value(raw, f"--set {text}")))
        changes[path] = raw
    return validate(Recipe, file, changes)


def find_recipe(name_or_path: str | None = None) -> Path:
    """The recipe file that is meant; raise InputError if there is none."""
    if name_or_path is not None:
        return shelf.find("recipes", name_or_path)
    if named := os.environ.get(RECIPE_VARIABLE):
        return shelf.find("recipes", named, said_by=f"${RECIPE_VARIABLE}: ")
    if DEFAULT_RECIPE.is_file():
        return DEFAULT_RECIPE
    raise InputError(
        f"no recipe is named, ${RECIPE_VARIABLE} is not set, and there is no {DEFAULT_RECIPE} here",
        "Name a file or one of: " + ", ".join(shelf.names("recipes")),
    )


def _override(text: str) -> tuple[KeyPath, str]:
    key, separator, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not separator or not all(path):
        raise InputError(f"--set {text}: expected key.path=value, for example --set train.lr=1e-3")
    return path, value.strip()


def _from_command_line(value: Any) -> Any:
    """Mark all text inside a value as given on the command line."""
    if isinstance(value, dict):
        return {key: _from_command_line(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_from_command_line(inner) for inner in value]
    return CommandLineText(value) if isinstance(value, str) else value


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes; shipped recipes name it in their second line for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
