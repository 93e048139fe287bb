"""The recipe's terms for few pairs: they see the geometry within each modality, of paired and of unpaired items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cs_aligner_cli.recipe.messages import Strict
from cs_aligner_cli.recipe.paths import RunFolder
from cs_aligner_cli.recipe.weights import FixedOrScheduledWeight


class Structure(Strict):
    """The structure term: similarities within a modality stay what they were before its tower."""

    kind: Literal["js", "kl", "cka", "distance"] = Field(
        "js",
        description="js, kl: divergence between softmax similarities (STRUCTURE); cka: 1 - linear CKA; distance:"
        " squared difference of the similarities.",
    )
    weight: FixedOrScheduledWeight = Field(
        1.0, description="Weight of the term (0: logged, but trained without), or a section of kind scheduled."
    )
    temperature: float = Field(0.05, gt=0, le=100, description="Temperature of js and kl: low: near neighbours alone.")


class Teacher(Strict):
    """The teacher term: the batch's transport plan is drawn to that of a teacher (SOTAlign's KLOT)."""

    kind: Literal["cca", "procrustes", "ridge", "runs"] = Field(
        "cca",
        description="cca, procrustes, ridge: linear maps in closed form, fitted on the training pairs before the first"
        " step (see train.start); runs: the towers of runs, below, alone.",
    )
    runs: list[RunFolder] = Field(
        [],
        description="Finished runs (run:NAME for one in ./runs, or a folder) whose towers teach beside the closed form:"
        " the teacher's similarity is the mean of all.",
    )
    weight: FixedOrScheduledWeight = Field(
        1.0, description="Weight of the term (0: logged, but trained without), or a section of kind scheduled."
    )
    epsilon: float = Field(
        0.05, ge=0.005, le=100, description="Entropic regularisation of both plans, in units of cosines."
    )
    shrinkage: float = Field(
        1.0, gt=0, le=1e6, description="Added to the teacher's covariances, in mean eigenvalues (cca, ridge)."
    )
    unpaired_moments: bool = Field(True, description="Means and covariances of all items; false: of the pairs alone.")

    @model_validator(mode="after")
    def _somebody_teaches(self) -> Teacher:
        if self.kind == "runs" and not self.runs:
            raise ValueError("kind: runs names no runs; list them under runs, as in [run:NAME]")
        return self


class Agreement(Strict):
    """The agreement term (COTS): an image retrieves among texts what its text retrieves among images."""

    weight: FixedOrScheduledWeight = Field(
        1.0, description="Weight of the term (0: logged, but trained without), or a section of kind scheduled."
    )


class StartMoments(Strict):
    """What a closed-form start is computed from."""

    shrinkage: float = Field(
        1.0, gt=0, le=1e6, description="Added to the covariances, in their mean eigenvalues (cca, ridge, spectral)."
    )
    unpaired: bool = Field(
        False,
        description="Means and covariances, or the graph of spectral, are of pairs and unpaired items (data.unpaired)"
        " together.",
    )


class Mixup(Strict):
    """FuseMix: the pairs of a step are mixed with one another, images and texts in the same shares."""

    alpha: float = Field(
        1.0, gt=0, le=100, description="Shares are drawn from Beta(alpha, alpha): low: near the pairs themselves."
    )


class SelfTraining(Strict):
    """Rounds of self-training: unpaired items that are each other's nearest are taken for pairs from then on."""

    first_epoch: int = Field(5, ge=1, description="Epochs before the first round.")
    every: int = Field(5, ge=1, description="Epochs from round to round; each chooses anew, by the towers of its time.")
    min_cosine: float = Field(0.5, ge=-1, le=1, description="Least cosine of two items that are taken for a pair.")
    min_margin: float = Field(
        0.05, ge=0, le=2, description="How far it must exceed the cosines with the second nearest of either side."
    )
    agreement: list[Literal["cca", "procrustes", "ridge"]] = Field(
        ["cca", "ridge"],
        description="Closed-form maps, fitted on the training pairs, under which the two must be each other's nearest,"
        " too; []: the towers decide alone.",
    )
    share: float = Field(
        0.05, gt=0, le=1, description="Most pairs of a round, in items of the modality that has fewer: nearest first."
    )
    per_pair: float = Field(0.5, gt=0, le=100, description="Accepted pairs in a step, per pair.")
    max_items: int = Field(
        20_000, ge=2, description="Unpaired items of each modality that are compared; of more, some at even distances."
    )


class PseudoPairs(Strict):
    """Pseudo pairs (S-CLIP): unpaired items retrieve the captions, or images, of the pairs that they resemble."""

    kind: Literal["transport", "softmax"] = Field(
        "transport",
        description="Soft labels from a transport plan between unpaired and paired items, or from a softmax.",
    )
    weight: FixedOrScheduledWeight = Field(
        1.0, description="Weight of the term (0: logged, but trained without), or a section of kind scheduled."
    )
    temperature: float = Field(
        0.05, ge=0.005, le=100, description="Temperature of the labels, in units of cosines of features."
    )
