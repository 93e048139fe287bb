"""The recipe's terms for few pairs: they see the geometry within each modality, of paired and of unpaired items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict
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
    """The teacher term: the batch's transport plan is drawn to that of linear maps in closed form (SOTAlign's KLOT)."""

    kind: Literal["cca", "procrustes", "ridge"] = Field(
        "cca", description="The teacher, fitted on the training pairs before the first step; see train.start."
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
