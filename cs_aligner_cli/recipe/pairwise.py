"""The recipe's section on the pairwise term: which loss ranks the pairs, and how its logits are scaled."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, Strict, by_kind


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


class LogitBias(Strict):
    """What is added to every logit."""

    init: float = Field(-10.0, ge=-1000, le=1000, description="Value at the start (SigLIP's is -10).")
    learn: bool = Field(True, description="Train it; false: it stays at init.")


class NoiseFilter(Strict):
    """The noise filter (COTS): pairs that are far less alike than the others of a step are no pairs in it."""

    deviations: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Pairs are left out whose cosine lies more than so many standard deviations below the step's mean.",
    )
    begin: float = Field(
        0.2, ge=0, lt=1, description="Share of the steps after which it begins: towers must know something first."
    )


class _Pairwise(Strict):
    kind: str
    weight: float = Field(1.0, ge=0, description="Weight of the term.")

    @property
    def sees_unpaired(self) -> bool:
        """Whether unpaired items change the term."""
        return False


class _WithNegatives(_Pairwise):
    unpaired_negatives: bool = Field(
        False, description="Unpaired items of the batch are further negatives of the pairs' rows."
    )

    @property
    def sees_unpaired(self) -> bool:
        """Whether unpaired items change the term."""
        return self.unpaired_negatives and self.weight != 0


class InfoNce(_WithNegatives):
    """Symmetric InfoNCE; captions of one image are no negatives of each other."""

    kind: Literal["infonce"] = Field("infonce", description="CLIP's loss.")
    logit_scale: LogitScale = Field(LogitScale(), description="The inverse temperature.")


class SigLip(_WithNegatives, json_schema_extra=KIND_IS_NEEDED):
    """Sigmoid loss: every pair of the batch is a yes-or-no question of its own."""

    kind: Literal["siglip"] = Field("siglip", description="SigLIP's loss.")
    logit_scale: LogitScale = Field(LogitScale(init=10.0), description="The inverse temperature (starts at 10).")
    logit_bias: LogitBias = Field(LogitBias(), description="The bias against the many negatives.")


class AlignUniform(_Pairwise, json_schema_extra=KIND_IS_NEEDED):
    """Squared distance within pairs plus uniformity within each modality: the decoupled form, without temperature."""

    kind: Literal["align_uniform"] = Field("align_uniform", description="Alignment plus intra-modal uniformity.")
    uniformity_weight: float = Field(1.0, ge=0, description="Weight of uniformity beside alignment.")
    t: float = Field(2.0, gt=0, le=1000, description="Scale of the uniformity potential exp(-t d^2).")


class L2Contrastive(_Pairwise, json_schema_extra=KIND_IS_NEEDED):
    """Squared distance within pairs plus a light InfoNCE, as ECLIPSE trains its prior."""

    kind: Literal["l2_contrastive"] = Field("l2_contrastive", description="Regression plus contrast.")
    logit_scale: LogitScale = Field(LogitScale(), description="The inverse temperature.")
    contrastive_weight: float = Field(0.2, ge=0, description="Weight of InfoNCE in it (ECLIPSE's is 0.2).")


Pairwise = Annotated[
    Annotated[InfoNce, Tag("infonce")]
    | Annotated[SigLip, Tag("siglip")]
    | Annotated[AlignUniform, Tag("align_uniform")]
    | Annotated[L2Contrastive, Tag("l2_contrastive")],
    by_kind("infonce"),
]
AnyPairwise: TypeAlias = InfoNce | SigLip | AlignUniform | L2Contrastive
