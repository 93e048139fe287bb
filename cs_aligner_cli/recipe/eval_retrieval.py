"""The recipe's sections on retrieval and zero-shot classification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.data import Manifest
from cs_aligner_cli.recipe.matching import Rerank
from cs_aligner_cli.recipe.messages import FilePath, Strict
from cs_aligner_cli.recipe.paths import RootPath
from cs_aligner_cli.recipe.train import Device, SplitName

# The prompt where neither the recipe nor the data set has any.
DEFAULT_TEMPLATE: Final = "a photo of a {}."
_DEFAULT_KS = [1, 5, 10]
Correction: TypeAlias = Literal["centred", "csls", "inverted_softmax", "qb_norm"]


class Index(Strict):
    """The FAISS index that is saved of each modality, for search and for other programs."""

    kind: str = Field(
        "flat",
        min_length=1,
        description="flat (exact), ivf, hnsw, pq, opq, sq, ivfpq, or a FAISS factory string such as IVF1024,PQ64.",
    )
    training_rows: int = Field(
        262144, ge=1, description="Rows drawn to train what must be trained: lists, codes, rotations."
    )
    effort: int | None = Field(
        None,
        ge=1,
        description="How hard an approximate index searches: lists probed (IVF), candidates followed (HNSW);"
        " null: a sixteenth of the lists, 64.",
    )
    on_disk: bool = Field(
        False, description="Build an IVF index in parts and keep its lists on disk: for stores larger than memory."
    )


class QueryBank(Strict):
    """What score corrections learn from: items of the training split, never those that are measured."""

    split: SplitName = Field("train", description="The split that the bank is drawn from.")
    size: int = Field(5000, ge=1, description="Images and captions drawn at most, of each.")
    neighbors: int = Field(10, ge=1, description="csls: nearest bank items whose mean cosine is taken off.")
    beta: float = Field(
        20.0, ge=0.01, le=1e6, description="inverted_softmax, qb_norm: inverse temperature of the softmax."
    )


class Mixed(Strict):
    """One corpus of images and texts: the test in which a gap between them does harm."""

    share: float = Field(
        0.5, gt=0, lt=1, description="Share of the images that stand in the corpus as image, the others as a caption."
    )
    draws: int = Field(5, ge=1, le=1000, description="Corpora drawn; results are means over them.")
    corpus: FilePath | None = Field(
        None,
        description="A folder in MixBench's layout (queries.jsonl, mixed_corpus.jsonl, qrels/qrels.tsv), in place of"
        " drawn corpora; a manifest of kind mixbench prepares the same folder.",
    )


class EvalSet(Strict):
    """A further data set that the trained towers are evaluated on: trained on one, tested on several."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]+$", description="Its name in results; null: that of the manifest."
    )
    manifest: Manifest = Field(description="As data.manifest.")
    root: RootPath | None = Field(
        None, description="Folder of its files; null: the manifest's own, else the folder of its name in data.root."
    )
    split: SplitName = Field("test", description="The split evaluated.")
    folds: int = Field(1, ge=1, description="As eval_retrieval.folds.")
    captions_per_image: int | None = Field(None, ge=1, description="As eval_retrieval.captions_per_image.")

    @property
    def key(self) -> str:
        """What it is called in results and folders."""
        return self.name or Path(self.manifest).stem.replace(".", "-")


class EvalRetrieval(Strict):
    """Which retrieval numbers are computed."""

    split: SplitName = Field("test", description="The split evaluated.")
    ks: list[Annotated[int, Field(ge=1)]] = Field(
        _DEFAULT_KS,
        min_length=1,
        description="The k of R@k, none above the smallest gallery; only the default is cut to a smaller one.",
    )
    neighbors: int = Field(10, ge=1, description="Neighbours saved per query; at most the gallery is saved.")
    captions_per_image: int | None = Field(
        None, ge=1, description="Use the first so many captions of each image (5 in COCO 5K papers); null: all."
    )
    folds: int = Field(
        1, ge=1, description="Cut the images in order into so many galleries, queries pooled (5 over COCO 5K: COCO 1K)."
    )
    relevance: FilePath | None = Field(
        None,
        description="A table of judgements (query, item, score; ids of images and captions) in place of the captions'"
        " own images: many-to-many or graded relevance.",
    )
    relevant_above: float = Field(0.0, ge=0, description="Items judged above this are true answers.")
    bootstrap: int = Field(1000, ge=0, description="Draws behind the 95% intervals of all but R@K; 0: no intervals.")
    device: Device = Field(
        "auto", description="Where scores are computed; auto: CUDA where there is one, else the CPU."
    )
    mixed: Mixed | None = Field(
        Mixed(),
        description="Retrieval from a corpus of both modalities, where an image has two captions or images have labels;"
        " null: none.",
    )
    corrections: list[Correction] = Field(
        [], description="Score corrections that are measured beside the plain cosine."
    )
    query_bank: QueryBank = Field(QueryBank(), description="What score corrections learn from.")
    rerank: Rerank | None = Field(
        None, description="Measure the trained towers' stores a second time, reranked by train.matching; null: not."
    )
    index: Index = Field(Index(), description="The saved index.")
    sets: list[EvalSet] = Field(
        [], description="Further data sets that the same towers are evaluated on, each with its own images and texts."
    )

    def ks_within(self, gallery: int, *, cut: bool = False) -> list[int]:
        """The ks for a smallest gallery of so many items: those of the default are cut to it, and with ``cut`` any.

        Raises InputError if others are larger.
        """
        split, fitting = self.split, sorted({min(k, gallery) for k in self.ks})
        if max(self.ks) > gallery and self.ks != _DEFAULT_KS and not cut:
            raise InputError(
                f"eval_retrieval.ks: got {max(self.ks)}, but the smallest gallery of split {split!r} holds"
                f" {counted(gallery, 'items')}; expected at most {gallery}",
                f"For example: --set 'eval_retrieval.ks={fitting}'",
            )
        return fitting if max(self.ks) > gallery else self.ks

    @field_validator("ks")
    @classmethod
    def _ks_differ(cls, ks: list[int]) -> list[int]:
        if twice := [k for k in ks if ks.count(k) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return ks

    @model_validator(mode="after")
    def _sets_have_names(self) -> EvalRetrieval:
        names = [found.key for found in self.sets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"sets: two are named {min(twice)}; give one another name")
        return self

    @model_validator(mode="after")
    def _reranks_what_is_measured(self) -> EvalRetrieval:
        if self.rerank and self.rerank.top_k < max(self.ks):
            raise ValueError(
                f"rerank.top_k ({self.rerank.top_k}) must be at least the largest of ks ({max(self.ks)}), of which it"
                " can change nothing otherwise"
            )
        return self

    @model_validator(mode="after")
    def _bank_is_apart(self) -> EvalRetrieval:
        if self.corrections and self.query_bank.split == self.split:
            raise ValueError(f"query_bank.split must not be the split that is measured ({self.split})")
        return self


class ZeroShot(Strict):
    """Zero-shot classification: every image goes to the class whose prompts it is nearest to."""

    split: SplitName | None = Field(None, description="The split classified; null: that of eval_retrieval.")
    classes: FilePath | None = Field(
        None, description="A text file with one class name per line; null: nothing is classified, but for from_data."
    )
    labels: FilePath | None = Field(
        None, description="A table with the columns image and label: the class of each image."
    )
    from_data: bool = Field(
        False,
        description="Classify by the labels of the data set itself, in place of classes and labels: the classes of"
        " CLIP_benchmark's shards, with their prompts, or the different labels of the images.",
    )
    templates: list[str] | None = Field(
        None,
        min_length=1,
        description="Prompts; {} is the class name. Their embeddings are averaged. null: those of the data set with"
        " from_data, else a photo of a {}.",
    )
    shots: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        [], description="Also learn classes from so many labelled images of each, as in [1, 2, 4, 8, 16]; []: not."
    )
    shots_split: SplitName | None = Field(
        None, description="The split that shots are drawn from, not the one that is classified; null: train.split."
    )
    draws: int = Field(10, ge=1, le=1000, description="Draws of shots behind each mean and interval.")

    @model_validator(mode="after")
    def _templates_have_a_place(self) -> ZeroShot:
        for template in self.templates or []:
            if template.count("{}") != 1:
                raise ValueError(f"templates: {template!r} needs exactly one {{}} for the class name")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> ZeroShot:
        if self.from_data and (self.classes or self.labels):
            key = "classes" if self.classes else "labels"
            raise ValueError(f"{key}: a file is named, and from_data takes the data set's own; leave one out")
        return self

    @property
    def wanted(self) -> bool:
        """Whether anything is classified."""
        return self.from_data or self.classes is not None

    def made_from(self, with_shots: bool) -> dict[str, Any]:
        """The keys that results depend on; older results, which did not know what is not in use, stay fresh."""
        unused = set() if with_shots else {"shots", "shots_split", "draws"}
        if self.from_data:
            return self.model_dump(mode="json", exclude=unused)
        parts = self.model_dump(mode="json", exclude={*unused, "from_data"})
        return {**parts, "templates": self.templates or [DEFAULT_TEMPLATE]}
