"""What of a split a gap report measures: its pairs, and the gallery that retrieval is measured in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split, captions_of
from cs_aligner_cli.data.text_groups import text_groups
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.report.figures import MAX_POINTS
from cs_aligner_cli.stages.gap_stores import Features, Take


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a split's tables by modality: ``rows``, the measured pairs, and those of them that are ``drawn``;
    ``gallery``, and each text's image there, ``owner`` (-1: none). ``labels`` of the pairs, "" for none; ``groups`` of
    the gallery's texts, equal ones being one, None where every text counts by itself."""

    split: Split
    rows: dict[str, Ints]
    drawn: dict[str, Ints]
    labels: npt.NDArray[np.object_]
    gallery: dict[str, Ints]
    owner: Ints
    groups: Ints | None

    @classmethod
    def of(cls, recipe: Recipe, split: Split) -> Sample:
        """What the recipe asks for."""
        spec = recipe.gap_report
        images, captions = split.pairs
        kept = evenly_spaced(len(images), spec.max_pairs)
        rows = {"image": images[kept], "text": captions[kept]}
        drawn = np.sort(np.random.default_rng(recipe.data_seed).permutation(len(kept))[:MAX_POINTS])
        gallery, owner = _gallery(split, spec.max_gallery)
        groups = None
        if recipe.data.groups == "text" and spec.modalities == [*MODALITIES]:
            groups = text_groups(split.captions["text"].iloc[gallery["text"]])
        of_drawn = {m: of_modality[drawn] for m, of_modality in rows.items()}
        return cls(split, rows, of_drawn, split.labels[rows["image"]], gallery, owner, groups)

    def __len__(self) -> int:
        return len(self.rows["image"])

    def in_gallery(self, take: Take) -> tuple[Features, Features]:
        """The features of the gallery's images and texts in a store."""
        return take("image", self.gallery["image"]), take("text", self.gallery["text"])

    def pairs_in_gallery(self) -> tuple[Ints, Ints]:
        """The measured pairs whose images and captions are in the gallery, as its rows."""
        places = [np.searchsorted(self.gallery[m], self.rows[m]) for m in MODALITIES]
        there = np.ones(len(self), bool)
        for m, place in zip(MODALITIES, places, strict=True):
            there &= self.gallery[m][np.minimum(place, len(self.gallery[m]) - 1)] == self.rows[m]
        return places[0][there], places[1][there]

    def notes(self, recipe: Recipe) -> list[str]:
        """What a reader must know of the sample."""
        spec, pairs, images = recipe.gap_report, len(self), len(self.split.pairs[0])
        first, second = spec.modalities
        notes = (
            [] if spec.modalities == ["image", "text"] else [f"Here, image stands for {first}, and text for {second}."]
        )
        notes += [f"{pairs} of {images} images, each paired with one of its captions drawn at random."]
        if pairs > spec.exact_pairs:
            notes.append(
                f"Centroids and pairs are measured on all {pairs} pairs, kernels (CS, MMD, energy) on "
                f"{spec.exact_pairs} evenly spaced ones, as their intervals know."
            )
        if len(self.gallery["image"]) < len(self.split.images):
            notes.append(
                f"R@k is measured on {len(self.gallery['image'])} of {len(self.split.images)} images, evenly spaced, "
                "with all their captions: in a smaller gallery it is higher."
            )
        if self.groups is not None:
            notes.append("Captions of equal text count as one: each is a right answer to the images of the others.")
        return notes


def _gallery(split: Split, most: int) -> tuple[dict[str, Ints], Ints]:
    """Rows of images and texts that retrieval is measured on, and each text's image among them (-1: none)."""
    images = evenly_spaced(len(split.images), most)
    if len(images) == len(split.images):
        return {"image": images, "text": np.arange(len(split.captions))}, split.image_of_caption
    captions = captions_of(split, images)
    return {"image": images, "text": captions}, np.searchsorted(images, split.image_of_caption[captions])
