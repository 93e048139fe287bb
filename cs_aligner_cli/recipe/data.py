"""The recipe's section on the data: which data set, where it lies, and its unpaired items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from cs_aligner_cli.recipe.messages import NAME_PATTERN, Strict, resolve_path
from cs_aligner_cli.recipe.paths import RootPath, RunFolder


def _manifest(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if Path(value).suffix.lower() in (".yaml", ".yml"):
        return str(resolve_path(value, info))
    if not value or "/" in value:
        raise ValueError("expected the name of a shipped manifest, or a path that ends in .yaml")
    return value


Manifest = Annotated[str, BeforeValidator(_manifest)]


class UnpairedSource(Strict):
    """Further items from another manifest: whatever pairs it has, each item stands for itself."""

    manifest: Manifest = Field(description="As data.manifest.")
    root: RootPath | None = Field(None, description="As data.root.")
    split: str = Field("train", pattern=NAME_PATTERN, description="The split taken.")
    modalities: list[Literal["image", "text"]] = Field(
        ["image", "text"], min_length=1, description="What is taken of it; one alone is enough."
    )


class Unpaired(Strict):
    """Items that are in no pair, for the divergence: from the training split itself, and from elsewhere."""

    paired_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the training split's images that keep their captions (drawn with the recipe's seed);"
        " the other images and captions are unpaired. Below 1 it answers what unpaired data are worth.",
    )
    sources: list[UnpairedSource] = Field([], description="Other manifests with further items.")


class Data(Strict):
    """What is aligned."""

    manifest: Manifest = Field(
        "scenes",
        description="A manifest of the shelf by name, or the path of a manifest file (ends in .yaml).",
    )
    root: RootPath | None = Field(
        None,
        description="Folder of the data files, or hf:ORG/NAME for a data set of Hugging Face's hub; replaces the"
        " manifest's own root.",
    )
    dir: RunFolder | None = Field(
        None,
        description="Where the prepared data set lies; null: in run_dir. Runs on the same data may share it, as in"
        " run:NAME/data, that of a run in ./runs.",
    )
    max_bad_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of bad items (missing, truncated, empty) above which prepare exits with 3.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of what is drawn of the data: the images held out, the pairs of unpaired.paired_fraction, and"
        " what is drawn in measuring; null: the recipe's seed. Stated, it stays while seeds of training vary.",
    )
    groups: Literal["image", "text"] = Field(
        "image",
        description="What belongs together. image: an image and its own captions; text: also all captions with equal"
        " texts (labels as captions, say), which are then no negatives of each other in training, and all of them right"
        " answers in retrieval, mixed corpora and the gap report's among them.",
    )
    unpaired: Unpaired | None = Field(
        None, description="Items beside the pairs, which training draws as train.unpaired_per_pair says; null: none."
    )
