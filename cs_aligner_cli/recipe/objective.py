"""The recipe's section on the objective: the pairwise term beside a divergence, and their weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from cs_aligner_cli.recipe.bandwidths import Bandwidth, Sigmas
from cs_aligner_cli.recipe.few_pairs import Agreement, PseudoPairs, Structure, Teacher
from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, Strict, by_kind
from cs_aligner_cli.recipe.pairwise import InfoNce, NoiseFilter, Pairwise
from cs_aligner_cli.recipe.token_terms import Level, TokenExchange
from cs_aligner_cli.recipe.weights import RelativeWeight, Weight


class Nystroem(Strict):
    """Kernel sums through random rows of the batch: linear in the batch."""

    kind: Literal["nystroem"] = Field("nystroem", description="Nystroem's method.")
    landmarks: int = Field(256, ge=2, le=65536, description="Rows that stand for all.")


class Rff(Strict, json_schema_extra=KIND_IS_NEEDED):
    """Kernel sums through random Fourier features; for sigma of at least 0.5 on unit rows."""

    kind: Literal["rff"] = Field("rff", description="Random Fourier features.")
    features: int = Field(
        4096, ge=4, le=2**20, multiple_of=2, description="Features: cosines and sines of half as many frequencies."
    )


Approximation = Annotated[
    Annotated[Nystroem, Tag("nystroem")] | Annotated[Rff, Tag("rff")],
    by_kind("nystroem"),
]


class _Divergence(Strict):
    kind: str
    weight: Weight = Field(1.0, description="lambda (0: logged, but trained without), or a section, below.")


class _KernelSum(_Divergence):
    bandwidth: Bandwidth = Field(
        0.7071,
        description="sigma of the Gaussian kernel; a list: the mean of several kernels; median, auto: with the "
        "defaults of these kinds, below.",
    )
    estimator: Literal["v", "u"] = Field("v", description="v: diagonals included (the paper's); u: diagonal-free.")
    products: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Precision of the matrix products; bf16 costs about 1e-3 in value and gradient, fp16 rounds rows "
        "finer; tf32 is CUDA's, elsewhere fp32.",
    )


class CauchySchwarz(_KernelSum):
    """The Cauchy-Schwarz divergence between the two clouds."""

    kind: Literal["cs"] = Field("cs", description="Cauchy-Schwarz divergence.")
    approximation: Approximation | None = Field(None, description="Approximate the kernel sums; null: exact.")

    @model_validator(mode="after")
    def _approximates_v(self) -> CauchySchwarz:
        if self.approximation and (self.estimator, self.products) != ("v", "fp32"):
            raise ValueError("approximation goes with estimator: v and products: fp32")
        return self


class Mmd(_KernelSum, json_schema_extra=KIND_IS_NEEDED):
    """The squared maximum mean discrepancy with the same kernels."""

    kind: Literal["mmd"] = Field("mmd", description="Maximum mean discrepancy.")


class Energy(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """The energy distance: MMD with minus the distance as kernel, without a bandwidth."""

    kind: Literal["energy"] = Field("energy", description="Energy distance.")
    estimator: Literal["v", "u"] = Field("v", description="v: diagonals included; u: diagonal-free.")


class Hoelder(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """The Hoelder divergence, of which Cauchy-Schwarz is the case alpha = gamma = 2."""

    kind: Literal["hoelder"] = Field("hoelder", description="Hoelder divergence.")
    bandwidth: Bandwidth = Field(0.7071, description="sigma of the Gaussian kernel; all forms that it has for cs.")
    alpha: float = Field(2.0, gt=1, le=100, description="Hoelder's exponent of the images' density.")
    gamma: float = Field(2.0, gt=0, le=100, description="Power of the densities that is integrated.")


class GeneralizedCs(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """The Cauchy-Schwarz divergence of all modalities at once; of two it is cs."""

    kind: Literal["generalized_cs"] = Field("generalized_cs", description="CS divergence of several clouds.")
    bandwidth: Bandwidth = Field(0.7071, description="sigma of the Gaussian kernel; all forms that it has for cs.")


class _Moments(_Divergence):
    shrinkage: float = Field(
        0.1, gt=0, le=1, description="Share of the isotropic matrix in each covariance, which alone is singular."
    )


class GaussianKl(_Moments, json_schema_extra=KIND_IS_NEEDED):
    """Kullback-Leibler divergence of Gaussians fitted to images and texts."""

    kind: Literal["gaussian_kl"] = Field("gaussian_kl", description="KL(images || texts) of fitted Gaussians.")


class Jeffreys(_Moments, json_schema_extra=KIND_IS_NEEDED):
    """Jeffreys divergence: KL both ways, of fitted Gaussians."""

    kind: Literal["jeffreys"] = Field("jeffreys", description="Symmetric KL of fitted Gaussians.")


class Frechet(_Moments, json_schema_extra=KIND_IS_NEEDED):
    """Squared Frechet distance of fitted Gaussians, the one in FID."""

    kind: Literal["frechet"] = Field("frechet", description="Frechet distance of fitted Gaussians.")


class Coral(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """Distance of the covariances (deep CORAL): it sees spread and correlation, not the means."""

    kind: Literal["coral"] = Field("coral", description="Correlation alignment.")


class SlicedWasserstein(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """Wasserstein distance along random directions, to the power p."""

    kind: Literal["sliced_wasserstein"] = Field("sliced_wasserstein", description="Sliced Wasserstein distance.")
    projections: int = Field(128, ge=1, le=65536, description="Directions drawn at every step.")
    p: int = Field(2, ge=1, le=2, description="Order of the distance.")


class Sinkhorn(_Divergence, json_schema_extra=KIND_IS_NEEDED):
    """Debiased entropic optimal transport."""

    kind: Literal["sinkhorn"] = Field("sinkhorn", description="Sinkhorn divergence.")
    blur: float = Field(0.05, gt=0, le=1e9, description="Length at which transport is blurred.")
    p: int = Field(2, ge=1, le=2, description="Order of the cost.")
    scaling: float = Field(
        0.5, gt=0, lt=1, description="Step of the annealing from the diameter of the rows down to blur."
    )
    tolerance: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="How far the plan's marginals may be off (sum of absolute differences) at the end.",
    )


Divergence = Annotated[
    Annotated[CauchySchwarz, Tag("cs")]
    | Annotated[Mmd, Tag("mmd")]
    | Annotated[Energy, Tag("energy")]
    | Annotated[Hoelder, Tag("hoelder")]
    | Annotated[GeneralizedCs, Tag("generalized_cs")]
    | Annotated[GaussianKl, Tag("gaussian_kl")]
    | Annotated[Jeffreys, Tag("jeffreys")]
    | Annotated[Frechet, Tag("frechet")]
    | Annotated[Coral, Tag("coral")]
    | Annotated[SlicedWasserstein, Tag("sliced_wasserstein")]
    | Annotated[Sinkhorn, Tag("sinkhorn")],
    by_kind("cs"),
]
AnyDivergence: TypeAlias = (
    CauchySchwarz
    | Mmd
    | Energy
    | Hoelder
    | GeneralizedCs
    | GaussianKl
    | Jeffreys
    | Frechet
    | Coral
    | SlicedWasserstein
    | Sinkhorn
)


class Tokens(Strict):
    """The token term: the mean over pairs of the Cauchy-Schwarz divergence between their tokens."""

    weight: float = Field(1.0, ge=0, description="Weight of the term (0: logged, but trained without).")
    bandwidth: Sigmas = Field(0.7071, description="sigma of the Gaussian kernel; a list: the mean of several kernels.")


class Objective(Strict):
    """The loss: pairwise term plus weighted divergence, and the token term where there is one."""

    pairwise: Pairwise = Field(InfoNce(), description="Ranks pairs.")
    divergence: Divergence = Field(CauchySchwarz(), description="Brings the two distributions together.")
    tokens: Tokens | None = Field(
        None, description="Brings the tokens of every pair together; null: no such term. Needs reads: tokens."
    )
    levels: list[Level] = Field(
        [],
        description="Further levels of alignment: tokens (group: 1) and groups of them, beside the items themselves."
        " Need reads: tokens.",
    )
    token_exchange: TokenExchange | None = Field(
        None,
        description="Items with tokens of the other modality stay near what they were; null: no such term. Needs reads:"
        " tokens.",
    )
    structure: Structure | None = Field(
        None,
        description="Keeps what lies near what within each modality as it was before the towers; null: no such term.",
    )
    teacher: Teacher | None = Field(
        None, description="Draws images and texts towards the plan of a closed-form teacher; null: no such term."
    )
    pseudo_pairs: PseudoPairs | None = Field(
        None, description="Draws unpaired items to the pairs that they resemble; null: no such term."
    )
    agreement: Agreement | None = Field(
        None, description="Brings both directions' retrieval distributions together; null: no such term."
    )
    noise_filter: NoiseFilter | None = Field(
        None,
        description="Leave pairs that are unlikely to be any out of all terms of pairs, control included; null: none.",
    )
    memory: int = Field(
        0,
        ge=0,
        le=2**20,
        description="Past embeddings of each modality that the divergence sees beside the batch, without a gradient;"
        " agreement sees those that were pairs.",
    )
    memory_momentum: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Remember what an exponential average of the towers makes of items; the average keeps so much of"
        " itself at every step (MoCo, COTS: 0.99 and more). null: what the towers made of them.",
    )

    @property
    def sees_tokens(self) -> bool:
        """Whether a term sees the tokens behind the embeddings."""
        return self.tokens is not None or bool(self.levels) or self.token_exchange is not None

    @property
    def sees_features(self) -> bool:
        """Whether a term compares embeddings with what they were before the towers."""
        return any(term is not None for term in (self.structure, self.teacher, self.pseudo_pairs))

    @property
    def sees_unpaired(self) -> bool:
        """Whether unpaired items change anything: a term that sees them has a weight."""
        exchange = self.token_exchange if self.token_exchange and self.token_exchange.partner == "nearest" else None
        terms = (self.divergence, self.structure, self.teacher, self.pseudo_pairs, exchange)
        of_clouds = [term.weight for term in terms if term is not None] + [level.divergence for level in self.levels]
        return self.pairwise.sees_unpaired or any(weight != 0 for weight in of_clouds)

    @property
    def is_pairwise_alone(self) -> bool:
        """Whether nothing but the pairwise term, on the pairs alone, has a weight."""
        of_pairs = [term.weight for term in (self.tokens, self.agreement, self.token_exchange) if term]
        of_levels = [weight for level in self.levels for weight in (level.weight, level.divergence)]
        return not self.sees_unpaired and not any((*of_pairs, *of_levels))

    def pairwise_alone(self) -> Objective:
        """The control: the pairwise term on the pairs alone, those that self-training finds with it among them."""
        changes: dict[str, Any] = dict.fromkeys(
            ("tokens", "token_exchange", "structure", "teacher", "pseudo_pairs", "agreement")
        )
        changes |= {"levels": [], "memory_momentum": None}
        changes["divergence"] = self.divergence.model_copy(update={"weight": 0.0})
        if self.pairwise.sees_unpaired:
            changes["pairwise"] = self.pairwise.model_copy(update={"unpaired_negatives": False})
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _averages_for_a_memory(self) -> Objective:
        if self.memory_momentum is not None and not self.memory:
            raise ValueError("memory_momentum says how a memory is filled, and memory is 0")
        return self

    @model_validator(mode="after")
    def _levels_differ(self) -> Objective:
        sizes = [level.group for level in self.levels]
        if twice := {size for size in sizes if sizes.count(size) > 1}:
            raise ValueError(f"levels: two have group: {min(twice)}; give both weights to one")
        if (self.levels or self.token_exchange) and self.pairwise.kind == "align_uniform":
            key = "levels" if self.levels else "token_exchange"
            raise ValueError(f"{key} ranks with the pairwise term's logit scale, and align_uniform has none")
        return self

    @model_validator(mode="after")
    def _relative_to_something(self) -> Objective:
        if isinstance(self.divergence.weight, RelativeWeight) and self.pairwise.weight == 0:
            raise ValueError("divergence.weight is relative to the pairwise term, whose weight is 0")
        return self

    @model_validator(mode="after")
    def _trains_on_something(self) -> Objective:
        if self.pairwise.weight == 0 and self.is_pairwise_alone:
            raise ValueError("pairwise.weight is 0, and so is every other weight: nothing would be trained")
        return self
