"""The recipe's section on the gap report: what is measured, compared and drawn."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator

from cs_aligner_cli.recipe.messages import FilePath, Strict
from cs_aligner_cli.recipe.paths import RunFolder
from cs_aligner_cli.recipe.train import SplitName

Baseline: TypeAlias = Literal["centred", "mean_shift", "whitened", "procrustes", "cca", "csa", "asif"]


class Baselines(Strict):
    """Closed forms that the report itself fits and measures beside the stores: what is to be had for free."""

    frozen: list[Baseline] = Field(
        ["centred", "mean_shift", "whitened", "procrustes", "cca"],
        description="On top of the frozen store; the first three need towers of one dimension. csa and asif are what"
        " few pairs are worth without training.",
    )
    pairwise_only: list[Baseline] = Field(
        ["centred"], description="On top of the control, where there is one: what is left for the divergence to win."
    )
    aligned: list[Baseline] = Field([], description="On top of the aligned store.")
    split: SplitName | None = Field(
        None,
        description="The split they are fitted on; null: the training split, where training has its features cached "
        "(else there are no baselines).",
    )
    pairs: int = Field(20_000, ge=10, description="Pairs (captions with their images) they are fitted on at most.")


class GapReport(Strict):
    """Which gap numbers and pictures are made."""

    split: SplitName | None = Field(None, description="The split measured; null: that of eval_retrieval.")
    modalities: list[str] = Field(
        ["image", "text"],
        min_length=2,
        max_length=2,
        description="The two modalities measured, as in [audio, text]; the report's words image and text then stand for"
        " the first and the second.",
    )
    bandwidths: list[Annotated[float, Field(ge=0.05, le=1e9)]] = Field(
        [0.5, 0.7071, 1.0],
        min_length=1,
        description="sigma at which D_CS and MMD are reported; below 0.05 a kernel can be 0 between all rows.",
    )
    max_pairs: int = Field(5000, ge=10, description="Pairs measured at most (evenly spaced); the report says how many.")
    exact_pairs: int = Field(
        20_000,
        ge=10,
        description="With more pairs than these, D_CS and other metrics of all pairs of rows take so many evenly spaced"
        " ones.",
    )
    max_gallery: int = Field(
        20_000, ge=10, description="Images (evenly spaced, with all their captions) that R@k is measured on at most."
    )
    baselines: Baselines = Field(Baselines(), description="The closed forms beside the stores.")
    beside: list[RunFolder] = Field(
        [],
        description="Other finished runs (run:NAME for one in ./runs, or a folder) whose stores of the same split are"
        " put beside these.",
    )
    seeds: list[RunFolder] = Field(
        [],
        description="Other finished runs of this recipe (run:NAME, or a folder) that differ in their seed alone; the"
        " verdict then covers seeds of training.",
    )
    examples: int = Field(4, ge=0, le=50, description="Pairs and queries shown of each kind; 0: none.")
    projection: Literal["pca", "tsne", "umap"] = Field(
        "pca",
        description="Draw also a t-SNE or a UMAP of images and texts together (umap: pip install cs-aligner-cli[umap]);"
        " the PCA is always there.",
    )
    formats: list[Literal["png", "pdf"]] = Field(["png"], description="Files of every figure, beside its SVG.")
    photos: FilePath | None = Field(
        None, description="Folder of the photos, by image id, where the data are stored features."
    )

    @field_validator("bandwidths")
    @classmethod
    def _print_unlike(cls, bandwidths: list[float]) -> list[float]:
        if len({f"{sigma:.4g}" for sigma in bandwidths}) < len(bandwidths):
            raise ValueError("two of them are equal when printed to four digits, by which the report names them")
        return bandwidths
