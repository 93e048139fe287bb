"""The recipe's section on text to image: the decoder, what it is fed, and what is measured of its pictures."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from cs_aligner_cli.recipe.encoders import Encoder
from cs_aligner_cli.recipe.messages import FilePath, Strict, resolve_path
from cs_aligner_cli.recipe.paths import RUN, RunFolder
from cs_aligner_cli.recipe.train import SplitName

DecoderKind: TypeAlias = Literal["kandinsky22", "stable_unclip", "karlo", "closed_form"]
Bound: TypeAlias = Literal["image", "other_image", "noise"]
PictureMetric: TypeAlias = Literal[
    "frechet", "kid", "cmmd", "coverage", "clip_score", "prompt_retrieval", "condition_cosine", "attributes"
]
PICTURE_METRICS: tuple[PictureMetric, ...] = get_args(PictureMetric)
# Begins the name of a decoder's folder.
LOCAL = "local-dir:"
# Maps of frozen texts to where the images lie, fitted on the training split's pairs.
FREE_MAPS = ("mean_shift", "ridge")
_STORE = re.compile(rf"^(frozen|pairwise_only|aligned|frozen\+({'|'.join(FREE_MAPS)}))$")


class DecoderSpec(Strict):
    """Which decoder draws."""

    kind: DecoderKind = Field(
        "closed_form",
        description="kandinsky22, stable_unclip, karlo: diffusers' pipelines (pip install cs-aligner-cli[t2i]);"
        " closed_form: ridge regression from embeddings to pixels, a floor that takes seconds.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="local-dir:FOLDER, ORG/NAME of the hub, or run:NAME: the decoder that the run in ./runs/NAME"
        " trained; null: what this recipe trains (train_decoder), or closed_form.",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any, info: ValidationInfo) -> Any:
        """local-dir:FOLDER follows the rule of every other path."""
        model = data.get("model") if isinstance(data, dict) else None
        if isinstance(model, str) and model.startswith(LOCAL):
            return {**data, "model": f"{LOCAL}{resolve_path(model, info, prefix=LOCAL)}"}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> DecoderSpec:
        if self.kind == "closed_form" and self.model is not None:
            raise ValueError("closed_form is fitted here and takes no model")
        if self.model is not None and self.model.startswith(RUN) and self.kind != "kandinsky22":
            raise ValueError(f"{self.model}: decoders that runs train are of kind kandinsky22, not {self.kind}")
        return self


class TrainDecoder(Strict):
    """A small decoder of Kandinsky 2.2's form, trained on the frozen image embeddings."""

    steps: int = Field(2000, ge=1, le=10**7, description="Training steps.")
    batch_size: int = Field(64, ge=1, description="Pictures per step.")
    lr: float = Field(2e-3, gt=0, description="Learning rate of AdamW; warmed up over 50 steps, then linearly to 0.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of rows trained without their embedding, for classifier-free guidance."
    )
    widths: list[Annotated[int, Field(ge=32, le=4096, multiple_of=32)]] = Field(
        [128], min_length=1, max_length=5, description="Channels of the UNet's levels, each of half the side."
    )
    patch: Literal[2, 4, 8, 16] = Field(16, description="Side of the patches that the codec makes one latent of.")
    channels: int = Field(96, ge=1, le=768, description="Principal components kept of a patch.")
    side: int = Field(48, ge=16, le=1024, description="Side of the pictures, which training pictures are scaled to.")
    checkpoint_steps: int = Field(200, ge=1, description="Steps after which a killed training need not go back.")

    @model_validator(mode="after")
    def _sides_divide(self) -> TrainDecoder:
        unit = self.patch * 2 ** (len(self.widths) - 1)
        if self.side % unit:
            raise ValueError(f"side ({self.side}) must be a multiple of {unit} with these levels")
        if self.channels > 3 * self.patch**2:
            raise ValueError(f"channels ({self.channels}): a patch has only {3 * self.patch**2} values")
        return self


class Inception(Strict):
    """Inception's features, for FID: weights as torch-fidelity publishes them (pip install cs-aligner-cli[fid])."""

    weights: FilePath = Field(description="The file weights-inception-2015-12-05-6726825d.pth.")
    sha256: str = Field("6726825d", pattern=r"^[0-9a-f]{8,64}$", description="What the file's SHA-256 must begin with.")


class Metrics(Strict):
    """What is measured of the pictures."""

    which: list[PictureMetric] | None = Field(
        None, description="null: all that can be taken; attributes are those of drawn scenes of one shape."
    )
    judge: Literal["frozen", "pairwise_only", "aligned"] = Field(
        "frozen", description="The store whose texts pictures are scored and retrieved by, the same for every store."
    )
    encoder: Encoder | None = Field(
        None, description="An image encoder whose space distances are taken in; null: that of encoders.image."
    )
    inception: Inception | None = Field(None, description="Take distances in Inception's space, too: FID and KID.")


class Published(Strict):
    """Published values of the aligned store."""

    fid: float | None = Field(None, ge=0, description="FID: frechet@inception.")

    @property
    def metrics(self) -> dict[str, float]:
        """By the names of our metrics."""
        return {} if self.fid is None else {"frechet@inception": self.fid}


def _scale(value: Any) -> Any:
    """Pydantic would report each member of a union; a user needs one message."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in ("auto", "none") or (number and 0 < value < math.inf):
        return value
    raise ValueError("expected a number more than 0, auto or none")


class Generate(Strict):
    """Pictures drawn from text embeddings in the place of image embeddings."""

    decoder: DecoderSpec = Field(DecoderSpec(), description="Which decoder draws.")
    train_decoder: TrainDecoder | None = Field(None, description="Train a small decoder first; null: none is trained.")
    stores: list[str] | None = Field(
        None,
        min_length=1,
        description="frozen, pairwise_only, aligned, and frozen+mean_shift or frozen+ridge, which need no training;"
        " null: all of these that the run has.",
    )
    beside: list[RunFolder] = Field(
        [],
        description="Other finished runs (run:NAME for one in ./runs, or a folder) whose aligned stores of the same"
        " split and image encoder are drawn, too; gap_report.beside measures their gap.",
    )
    bounds: list[Bound] = Field(
        ["image", "other_image", "noise"],
        description="Drawn beside them: from the picture's own embedding (the upper bound), from that of another"
        " picture (blind to the prompt), from a random direction.",
    )
    split: SplitName | None = Field(None, description="The split drawn; null: that of eval_retrieval.")
    fit_split: SplitName = Field("train", description="What scale, decoder and the maps of frozen texts are fitted on.")
    captions: Literal["first", "all", "random"] = Field("first", description="Which captions of an image are prompts.")
    limit: int | None = Field(None, ge=2, description="Prompts at most (evenly spaced); null: all.")
    scale: Annotated[Literal["auto", "none"] | Annotated[float, Field(gt=0)], BeforeValidator(_scale)] = Field(
        "auto",
        description="Length that text embeddings are brought to; auto: the median length of frozen training images;"
        " none: as they are.",
    )
    negative: Literal["auto", "zeros"] = Field(
        "auto", description="Kandinsky's negative embedding: auto, the encoder's of an all-zero picture; zeros."
    )
    decoder_prompt: Literal["empty", "caption"] = Field(
        "empty", description="Stable unCLIP reads a text as well: an empty one, or the caption."
    )
    steps: int | None = Field(None, ge=1, le=1000, description="Denoising steps; null: the pipeline's own number.")
    guidance: float | None = Field(None, ge=0, le=100, description="Guidance scale; null: the pipeline's own.")
    noise_level: int = Field(0, ge=0, le=999, description="Noise that Stable unCLIP adds to the embedding.")
    height: int | None = Field(None, ge=8, le=2048, description="Side of a picture; null: the decoder's own.")
    batch_size: int = Field(16, ge=1, description="Pictures drawn at once; pictures depend on it by rounding only.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the decoder's weights; auto: float16 on CUDA, else float32."
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none", description="Keep on the GPU only the part that works (model), or only the layer (sequential)."
    )
    attention_slicing: bool = Field(False, description="Attention in slices: less memory, more time.")
    sheet_prompts: int = Field(12, ge=1, le=100, description="Prompts on the contact sheet.")
    metrics: Metrics = Field(Metrics(), description="What is measured.")
    published: Published = Field(Published(), description="Published values, printed beside one's own.")

    @model_validator(mode="after")
    def _a_decoder_is_there(self) -> Generate:
        trains, named = self.train_decoder is not None, self.decoder.model is not None
        if self.decoder.kind == "closed_form":
            if trains:
                raise ValueError("train_decoder goes with decoder.kind: kandinsky22, not closed_form")
        elif trains and (named or self.decoder.kind != "kandinsky22"):
            raise ValueError("train_decoder goes with decoder.kind: kandinsky22 without a model")
        elif not trains and not named:
            raise ValueError(f"decoder.model: {self.decoder.kind} needs a model, or a train_decoder section")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> Generate:
        kind = self.decoder.kind
        if self.height is not None and kind in ("karlo", "closed_form"):
            raise ValueError(f"height: {kind} draws pictures of one size")
        if (self.noise_level or self.decoder_prompt == "caption") and kind != "stable_unclip":
            raise ValueError(f"noise_level and decoder_prompt go with decoder.kind: stable_unclip, not {kind}")
        return self

    @model_validator(mode="after")
    def _stores_are_known(self) -> Generate:
        for name in self.stores or ():
            if not _STORE.fullmatch(name):
                maps = ", ".join(f"frozen+{m}" for m in FREE_MAPS)
                raise ValueError(f"stores: {name!r} is no store; expected frozen, pairwise_only, aligned, {maps}")
        return self
