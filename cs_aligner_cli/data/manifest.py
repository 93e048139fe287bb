"""Manifests: what a data set is and where its files lie."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.manifest_base import ABSENT_FILES, AbsentFiles, ColumnPattern, Described, Encoding, OnDisk
from cs_aligner_cli.data.manifest_layouts import (
    ClipRetrievalManifest,
    CocoManifest,
    ConversationsManifest,
    FolderManifest,
    KarpathyManifest,
    MixbenchManifest,
    WebDatasetManifest,
)
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.messages import NAME_PATTERN, Strict, validate
from cs_aligner_cli.recipe.paths import HF
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.strict_yaml import read_yaml, shown


class DrawnCounts(Strict):
    """How many images are drawn for each split."""

    train: int = Field(2000, ge=1, description="Images to train on.")
    val: int = Field(250, ge=1, description="Images to choose settings on.")
    test: int = Field(500, ge=1, description="Images to report on.")


class DrawnManifest(Described):
    """A data set that the program makes itself, and that needs no files."""

    seed: int = Field(0, ge=0, description="Seed of the drawings; the recipe's seed does not touch the data.")


class ScenesManifest(DrawnManifest):
    """Captioned pictures that csalign draws itself."""

    kind: Literal["scenes"] = Field("scenes", description="Drawn by the program.")
    images: DrawnCounts = Field(DrawnCounts(), description="Pictures per split.")
    captions_per_image: int = Field(5, ge=1, le=5, description="Captions per picture.")
    size: int = Field(64, ge=32, le=512, description="Side of a picture, pixels.")
    objects: list[Annotated[int, Field(ge=1, le=4)]] = Field(
        [2, 3, 4],
        min_length=1,
        max_length=4,
        description="How many shapes a picture has: one of these, equally often. [1] is what a small decoder can draw.",
    )
    sizes: list[Literal["small", "medium", "large"]] = Field(
        ["small", "medium", "large"], min_length=1, max_length=3, description="Sizes of the shapes, equally often."
    )


class LatentTokens(Strict):
    """Tokens of the items: each item has parts, of which its image shows all and its text names some."""

    image: int = Field(8, ge=1, le=1024, description="Tokens of an image.")
    text: int = Field(5, ge=1, le=1024, description="Tokens of a text at most; half as many at least.")


class LatentManifest(DrawnManifest):
    """Paired features of one latent variable: a toy whose shared information and gap are known."""

    kind: Literal["latent"] = Field("latent", description="Drawn by the program.")
    images: DrawnCounts = Field(DrawnCounts(), description="Pairs per split.")
    dim: int = Field(64, ge=2, le=4096, description="Dimensions of the features.")
    latent_dim: int = Field(16, ge=1, description="Dimensions of the latent variable; less than dim.")
    noise: float = Field(0.2, ge=0, description="Length of each modality's own noise; the latent's part has length 1.")
    gap: float = Field(2.0, ge=0, description="Distance between the means of any two modalities.")
    modalities: list[Annotated[str, Field(pattern=NAME_PATTERN)]] = Field(
        [], description="Further modalities by name, each another view of the latent variable."
    )
    curvature: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each view that is a nonlinear function, its own, of the latent; 0: linear views.",
    )
    tokens: LatentTokens | None = Field(
        None, description="Draw tokens, each with a latent variable of its own; features are their means. null: none."
    )

    @model_validator(mode="after")
    def _room_for_the_gap(self) -> LatentManifest:
        needed = self.latent_dim + 1 + len(self.modalities)
        if needed > self.dim:
            raise ValueError(f"dim ({self.dim}) must be at least {needed}: latent_dim, and one for each gap")
        _refuse_own_names(self.modalities)
        if self.tokens is not None and self.modalities:
            raise ValueError("tokens are drawn of images and texts; leave modalities out")
        return self


class TableManifest(OnDisk):
    """Tables of image paths and captions: CSV, TSV, other separated text, JSON, JSON lines, Parquet, save_to_disk."""

    kind: Literal["table"] = Field("table", description="One row per image and caption.")
    table: Path | None = Field(
        None,
        strict=False,
        description="The table's file or a pattern of several, relative to root, compressed or not; the suffix tells"
        " the format. Or a folder that datasets' save_to_disk wrote.",
    )
    tables: dict[str, str] = Field({}, description="In place of table: files or patterns by split.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="What stands between cells; null: what the first line shows."
    )
    header: list[str] | None = Field(None, description="Names of the columns, where no first line has them.")
    quoting: Literal["csv", "none"] | None = Field(
        None, description="Whether quotes stand around cells (csv) or are characters; null: csv, but none between tabs."
    )
    encoding: Encoding = Field("utf-8", description="Encoding of text, as Python names it (cp1252, utf-16).")
    image_dir: Path = Field(Path(), strict=False, description="Folder of the images, relative to root.")
    image_column: str | None = Field(
        "image",
        description="Column with the image's path, relative to image_dir, or with the image itself (Parquet);"
        " null: captions alone.",
    )
    image_path: ColumnPattern | None = Field(
        None, description="Path of the image made from columns, in place of image_column: {id}.jpg, {id:012d}.jpg."
    )
    caption_column: str | list[str] | None = Field(
        "caption",
        description="Column with the caption or a list of captions, or several such columns; null: images alone.",
    )
    split_column: str | None = Field(
        "split", description="Column with the split's name; null: all rows are split 'all'."
    )
    label_column: str | None = Field(
        None, description="Column with the image's class, for the gap report's clusters; null: there is none."
    )
    absent_files: AbsentFiles = Field("bad", description=ABSENT_FILES)

    @property
    def captions(self) -> list[str]:
        """The columns of captions."""
        column = self.caption_column
        return [] if column is None else [column] if isinstance(column, str) else column

    @model_validator(mode="after")
    def _has_items(self) -> TableManifest:
        if (self.table is None) == (not self.tables):
            raise ValueError("give either table, a file, or tables, files by split")
        if self.image_column is None and self.image_path is None and not self.captions:
            raise ValueError("image_column and caption_column are both null, so nothing would be read")
        if self.tables and "split_column" in self.model_fields_set and self.split_column:
            raise ValueError("tables names the splits, and split_column does, too; leave one out")
        return self


class TokenFeatures(Strict):
    """Padded token features and the mask without which nobody knows which of their rows are tokens."""

    features: Path = Field(strict=False, description="(rows, L, d) array, npy or safetensors, relative to root.")
    tensor: str | None = Field(None, description="Name of the tensor in a safetensors file; null: its only one.")
    mask: Path = Field(strict=False, description="(rows, L) npy of bool, or of 0 and 1: 1 where a token stands.")


_FEATURES = (
    "Array (rows, d) of npy or safetensors, row by row as the table; or features by id, or with ids beside them: npz,"
    " pt, safetensors, parquet, h5. Relative to root."
)


class _Features(Strict):
    table: Path = Field(strict=False, description="Table with one row per item, relative to root.")
    split_column: str | None = Field(
        "split", description="Column with the split's name; null: all rows are split 'all'."
    )
    tensor: str | None = Field(
        None, description="Name of the tensor, array or column in the file of features; null: its only one."
    )
    ids: Path | None = Field(
        None,
        strict=False,
        description="The ids of the features' rows in order, txt or json; null: in the file.",
    )
    tokens: TokenFeatures | None = Field(None, description="Token features of the same items; null: there are none.")


class ImageFeatures(_Features):
    """The images' table and their features."""

    features: Path = Field(strict=False, description=_FEATURES)

    id_column: str = Field("image", description="Column that names the image.")
    label_column: str | None = Field(
        None, description="Column with the image's class, for the gap report's clusters; null: there is none."
    )


class CaptionFeatures(_Features):
    """The captions' table and their features; null: a live encoder reads the captions."""

    features: Path | None = Field(None, strict=False, description=f"{_FEATURES} Null: none.")
    id_column: str | None = Field(None, description="Column by which features by id are found.")

    image_column: str | None = Field(
        "image", description="Column that names the caption's image, empty for an unpaired caption; null: all are."
    )
    caption_column: str = Field("caption", description="Column with the caption.")


class FurtherFeatures(_Features):
    """A further modality's table and its features."""

    features: Path = Field(strict=False, description=_FEATURES)
    id_column: str | None = Field(None, description="Column by which features by id are found.")

    image_column: str | None = Field(
        "image",
        description="Column that names the image that a row belongs to, empty for none; null: none does.",
    )


class EmbeddingsManifest(OnDisk):
    """Features that another program computed, row-aligned with tables."""

    kind: Literal["embeddings"] = Field("embeddings", description="Stored features.")
    images: ImageFeatures | None = Field(None, description="The images; null: captions alone, as unpaired items.")
    captions: CaptionFeatures | None = Field(None, description="The captions; null: images alone, as unpaired items.")
    modalities: dict[str, FurtherFeatures] = Field({}, description="Further modalities by name (audio, depth, ...).")

    @model_validator(mode="after")
    def _has_items(self) -> EmbeddingsManifest:
        if self.images is None and self.captions is None:
            raise ValueError("expected images, captions, or both")
        _refuse_own_names(self.modalities)
        return self


def _refuse_own_names(modalities: Iterable[str]) -> None:
    """Further modalities have tables of their own beside images and captions."""
    for name in modalities:
        if name in ("image", "text", "images", "captions") or not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"modalities: {name!r} cannot be the name of a further modality")


Manifest: TypeAlias = (
    ScenesManifest
    | LatentManifest
    | TableManifest
    | EmbeddingsManifest
    | KarpathyManifest
    | CocoManifest
    | FolderManifest
    | ConversationsManifest
    | MixbenchManifest
    | WebDatasetManifest
    | ClipRetrievalManifest
)

MANIFESTS: dict[str, type[Manifest]] = {
    "scenes": ScenesManifest,
    "latent": LatentManifest,
    "table": TableManifest,
    "embeddings": EmbeddingsManifest,
    "karpathy": KarpathyManifest,
    "coco": CocoManifest,
    "folder": FolderManifest,
    "conversations": ConversationsManifest,
    "mixbench": MixbenchManifest,
    "webdataset": WebDatasetManifest,
    "clip_retrieval": ClipRetrievalManifest,
}

# The kinds that bring features in place of pictures.
STORED_FEATURES = ("embeddings", "latent", "clip_retrieval")


def manifest_path(recipe: Recipe) -> Path:
    """The file of the recipe's manifest."""
    return shelf.find("data_manifests", recipe.data.manifest, said_by="data.manifest: ")


def read_manifest(recipe: Recipe) -> Manifest:
    """Read and validate the recipe's manifest; where its files lie may still be open."""
    file = read_yaml(manifest_path(recipe))
    kind = file.data.get("kind")
    if isinstance(kind, str) and kind in MANIFESTS:
        manifest: Manifest = validate(MANIFESTS[kind], file)
        _check_encoders(recipe, manifest)
        return manifest
    place = file.where(("kind",))
    if "kind" in file.data:
        raise InputError(f"{place}: kind: got {shown(kind)}{did_you_mean(str(kind), list(MANIFESTS))}")
    for near in get_close_matches("kind", file.data, n=1):
        raise InputError(f"{file.where((near,))}: {near}: unknown key; did you mean kind?")
    raise InputError(f"{place}: kind: this key is required, and is missing{did_you_mean('', list(MANIFESTS))}")


def _check_encoders(recipe: Recipe, manifest: Manifest) -> None:
    """Raise InputError if an encoder cannot read what the manifest describes."""
    described = f"the manifest {manifest.name} is of kind {manifest.kind}"
    for modality in ("image", "text"):
        kind = recipe.encoders.of(modality).kind
        features = manifest.kind in STORED_FEATURES
        if kind == "features" and not features:
            raise InputError(
                f"encoders.{modality}: kind features needs a manifest of kind embeddings, but {described}",
                "Name an encoder that reads the items themselves, for example kind: open_clip.",
            )
        if kind != "features" and features and modality == "image":
            raise InputError(
                f"encoders.image: kind {kind} reads pictures, but {described}, which has none",
                "Use its stored features: --set encoders.image.kind=features",
            )


def root_of(recipe: Recipe, manifest: OnDisk) -> Path | None:
    """The folder of the files: the recipe's, the manifest's, else its own; None for a shipped one that names none."""
    folder = manifest_path(recipe).parent
    own = None if folder == shelf.folder("data_manifests") else folder.resolve()
    return recipe.data.root or manifest.root or own


def load_manifest(recipe: Recipe) -> Manifest:
    """Read and validate the recipe's manifest, with the recipe's data.root in place of its own.

    Raises InputError if the manifest is missing or wrong, or if its files need a root that nobody has named.
    """
    manifest = read_manifest(recipe)
    if isinstance(manifest, DrawnManifest):
        return manifest
    root = root_of(recipe, manifest)
    if root is None:
        raise InputError(
            f"data.root: the manifest {manifest_path(recipe)} does not say where its files lie",
            "Name it: --set data.root=FOLDER",
        )
    if str(root).startswith(HF):
        from cs_aligner_cli.data.hub_files import data_set_folder
        from cs_aligner_cli.data.manifest_files import files_to_fetch

        return manifest.model_copy(update={"root": data_set_folder(str(root), *files_to_fetch(manifest))})
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    return manifest.model_copy(update={"root": root})
