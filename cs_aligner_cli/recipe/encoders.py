"""The recipe's section on encoders: the two towers before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, NAME_PATTERN, FilePath, Strict, by_kind, resolve_path
from cs_aligner_cli.recipe.paths import RUN, run_folder

OPEN_CLIP_FOLDER = "open_clip"


def _divides(section: Strict, small: str, large: str) -> None:
    part, whole = getattr(section, small), getattr(section, large)
    if whole % part:
        raise ValueError(f"{small} ({part}) must divide {large} ({whole})")


def _layers(value: Any) -> Any:
    """Pydantic would report each member of a union; a user needs one message."""
    numbers = value if isinstance(value, list) and len(value) == 4 else [value]
    if all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 200 for n in numbers):
        return value
    raise ValueError("expected a number from 1 to 200, or a list of four: the blocks of a ResNet's stages")


Blocks = Annotated[int, Field(ge=1, le=200)]


class VisionConfig(Strict):
    """open_clip's vision_cfg, as far as a small ViT or ResNet needs it."""

    image_size: int = Field(64, ge=8, le=1024, description="Side of the square input, pixels.")
    patch_size: int = Field(8, ge=2, le=256, description="Side of a patch, pixels; a ResNet has none.")
    width: int = Field(128, ge=8, le=8192, description="Width of the transformer; of a ResNet's first stage.")
    layers: Annotated[Blocks | Annotated[list[Blocks], Field(min_length=4, max_length=4)], BeforeValidator(_layers)] = (
        Field(
            4,
            description="Number of transformer blocks; a list of four: the blocks of the stages of CLIP's ResNet.",
        )
    )
    head_width: int = Field(
        32, ge=4, le=512, description="Width of one attention head; divides width (of a ResNet, 32 times width)."
    )

    @model_validator(mode="after")
    def _fits(self) -> VisionConfig:
        if isinstance(self.layers, int):
            _divides(self, "head_width", "width")
            _divides(self, "patch_size", "image_size")
        elif self.image_size % 32:
            raise ValueError(f"image_size ({self.image_size}): a ResNet's must be a multiple of 32")
        elif 32 * self.width % self.head_width:
            raise ValueError(f"head_width ({self.head_width}) must divide 32 times width ({self.width}) of a ResNet")
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


def _colour(value: Any) -> Any:
    from PIL import ImageColor

    if isinstance(value, str):
        try:
            ImageColor.getrgb(value)
        except ValueError:
            raise ValueError(f"{value!r} is no colour; expected one as CSS writes it: white, '#f0f0f0'") from None
    return value


def _named_layers(value: Any) -> Any:
    """Pydantic would report each member of a union; a user needs one message."""
    if value is not None and not (isinstance(value, list) and value and all(type(n) is int and n for n in value)):
        raise ValueError("expected a list of layers, as in [-1, -4]: they count from 1, or from the end")
    if value and len({*value}) < len(value):
        raise ValueError("a layer is named twice")
    return value


Layer = Annotated[int, Field(ge=-1000, le=1000)]


class _Layers(Strict):
    """What the kinds that run a model share."""

    layers: Annotated[list[Layer] | None, BeforeValidator(_named_layers)] = Field(
        None,
        min_length=1,
        description="Blocks of the model whose pooled states, side by side, are the embedding, as in [-1, -4]: from 1,"
        " or from the end; -1 gives the embedding without this key.",
    )


class _Pictures(Strict):
    """What the kinds that read pictures share."""

    background: Annotated[str, BeforeValidator(_colour)] | None = Field(
        None,
        description="Image tower: colour behind transparent pictures (white, '#f0f0f0'); null: as the encoder's own"
        " library sees them.",
    )


class FeaturesEncoder(Strict):
    """Features that another program computed; the manifest (kind: embeddings) says where they lie."""

    kind: Literal["features"] = Field("features", description="Stored features.")
    power: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Signed power applied to each value (0.5: the square root, as for post-ReLU features).",
    )


class OpenClipEncoder(_Pictures, _Layers, json_schema_extra=KIND_IS_NEEDED):
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
        if isinstance(model, str) and model.startswith(RUN):
            data["model"] = f"local-dir:{exported_model(run_folder(model))}"
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
            raise ValueError("a model from local-dir: or hf-hub: brings its weights; drop pretrained and random_init")
        if not own_weights and bool(self.pretrained) == self.random_init:
            raise ValueError(
                "say where the weights come from: either pretrained (a tag or a file) or random_init: true"
            )
        return self


class _Pretrained(_Layers):
    """What the kinds whose models come from a folder or a hub share."""

    model: str = Field(
        min_length=1,
        description="local-dir:FOLDER as the library saves it, or ORG/NAME on the model hub.",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_folder(cls, data: Any, info: ValidationInfo) -> Any:
        """The path inside local-dir:FOLDER follows the rule of every other path."""
        model = data.get("model") if isinstance(data, dict) else None
        if isinstance(model, str) and model.startswith("local-dir:"):
            return {**data, "model": f"local-dir:{resolve_path(model, info, prefix='local-dir:')}"}
        return data


def _prompt(value: Any) -> Any:
    if isinstance(value, str) and "{text}" not in value:
        raise ValueError("expected a template that holds {text}, the place of the caption")
    return value


Prompt = Annotated[str, BeforeValidator(_prompt)]


class TransformersEncoder(_Pretrained, _Pictures, json_schema_extra=KIND_IS_NEEDED):
    """A model of the transformers library: a text model, a decoder LLM, a vision model, a tower of CLIP or SigLIP."""

    kind: Literal["transformers"] = Field("transformers", description="A transformers model.")
    pooling: Literal["auto", "mean", "cls", "last", "pooler", "features"] = Field(
        "auto",
        description="How token states become one vector; features: the model's own get_text_features or"
        " get_image_features; auto: features where there are such, the last token of decoders, the mean of other"
        " text models, the pooled output (else cls) of vision models.",
    )
    prompt: Prompt = Field("{text}", description="Template put around every caption; {text} is the caption.")
    max_length: int | None = Field(
        None, ge=1, le=131072, description="Tokens per caption, longer ones are cut; null: the model's own limit."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type the weights are held in.")


class SentenceTransformersEncoder(_Pretrained, json_schema_extra=KIND_IS_NEEDED):
    """A sentence-transformers pipeline, text only, with its own pooling, projection and normalisation."""

    kind: Literal["sentence_transformers"] = Field(
        "sentence_transformers", description="A sentence-transformers folder."
    )
    prompt: Prompt | None = Field(
        None, description="Template around every caption, with {text}; null: the pipeline's own default prompt."
    )


class TimmEncoder(_Pretrained, _Pictures, json_schema_extra=KIND_IS_NEEDED):
    """An image model of timm, headless, with its own preprocessing."""

    kind: Literal["timm"] = Field("timm", description="A timm model.")
    model: str = Field(
        min_length=1,
        description="timm's name (vit_small_patch14_dinov2.lvd142m), local-dir:FOLDER or hf-hub:ORG/NAME.",
    )
    checkpoint: FilePath | None = Field(None, description="A weights file of the named model, in place of the hub's.")
    random_init: bool = Field(False, description="Begin from random weights (seeded by the recipe).")

    @model_validator(mode="after")
    def _one_source(self) -> TimmEncoder:
        own_weights = self.model.startswith(("local-dir:", "hf-hub:"))
        if (self.checkpoint is not None) + self.random_init + own_weights > 1:
            raise ValueError("name one source of weights: checkpoint, random_init, or the model's own")
        return self


def exported_model(run_dir: Path) -> Path:
    """Where a run with fully trained towers leaves its model as an open_clip folder."""
    return run_dir / "train" / "aligned" / OPEN_CLIP_FOLDER


EncoderSpec: TypeAlias = (
    FeaturesEncoder | OpenClipEncoder | TransformersEncoder | SentenceTransformersEncoder | TimmEncoder
)
Encoder = Annotated[
    Annotated[FeaturesEncoder, Tag("features")]
    | Annotated[OpenClipEncoder, Tag("open_clip")]
    | Annotated[TransformersEncoder, Tag("transformers")]
    | Annotated[SentenceTransformersEncoder, Tag("sentence_transformers")]
    | Annotated[TimmEncoder, Tag("timm")],
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
    further: dict[Annotated[str, Field(pattern=NAME_PATTERN)], FeaturesEncoder] = Field(
        {},
        description="Further modalities by name, as in {audio: {kind: features}}: those that the manifest brings.",
    )

    @model_validator(mode="after")
    def _fits_modality(self) -> Encoders:
        if self.image.kind == "sentence_transformers":
            raise ValueError("image: sentence_transformers encodes text only")
        if self.of("text").kind == "timm":
            raise ValueError("text: timm has no text models; name a text encoder of another kind")
        if self.text is not None and getattr(self.text, "background", None):
            raise ValueError("text: background is for pictures; it belongs to image")
        if own := {"image", "text"} & self.further.keys():
            raise ValueError(f"further: {', '.join(sorted(own))} is no further modality; it has a key of its own")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities: image, text, and the further ones."""
        return "image", "text", *self.further

    def of(self, modality: str) -> EncoderSpec:
        """The encoder of a modality; a text tower of the image's model is without the layers, which are the image's."""
        if modality in self.further:
            return self.further[modality]
        if modality != "text":
            return self.image
        if self.text is None and getattr(self.image, "layers", None):
            return self.image.model_copy(update={"layers": None})
        return self.text or self.image

    def refuse_layers(self, modality: str, tune: str) -> None:
        """Raise ValueError if a tower that is trained itself, by ``tune``, names its layers."""
        if getattr(self.of(modality), "layers", None):
            raise ValueError(
                f"train.{modality}.tune: {tune} trains the encoder; encoders.{modality}.layers is of frozen ones"
            )
