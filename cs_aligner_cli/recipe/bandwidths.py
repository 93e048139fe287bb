"""How a recipe states the bandwidth of a kernel: a number, several, or a rule that chooses it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, PLAIN, Strict, plain_or_kind
from cs_aligner_cli.recipe.weights import is_number

# The smallest sigma that the kernels take, and one far beyond what unit rows can tell from any larger.
_SMALLEST, _LARGEST = 1e-9, 1e9


class MedianBandwidth(Strict):
    """The median distance between two rows of the batch, smoothed over steps."""

    kind: Literal["median"] = Field("median", description="Median heuristic.")
    factor: float = Field(
        1.0, gt=0, le=_LARGEST, description="Multiplies the median (some authors divide it by sqrt 2)."
    )
    every: int = Field(10, ge=1, description="Estimated every so many steps.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the former value that an estimate keeps.")


class AutoBandwidth(Strict, json_schema_extra=KIND_IS_NEEDED):
    """Chosen once, before training, on the held-out pairs: the finest kernel that enough pairs still feel."""

    kind: Literal["auto"] = Field("auto", description="Smallest sigma with enough effective pairs.")
    effective_share: float = Field(
        0.9, gt=0, lt=1, description="Share of the cross pairs that must carry the gradient (Kish's effective number)."
    )


class AnnealedBandwidth(Strict, json_schema_extra=KIND_IS_NEEDED):
    """From a wide kernel to a narrow one (or back), geometrically."""

    kind: Literal["annealed"] = Field("annealed", description="Changes from start to end.")
    start: float = Field(2.0, ge=_SMALLEST, le=_LARGEST, description="sigma at the first step.")
    end: float = Field(0.5, ge=_SMALLEST, le=_LARGEST, description="sigma from the share `until` of the steps on.")
    until: float = Field(0.5, gt=0, le=1, description="Share of the steps at which `end` is reached.")


def _is_sigma(value: Any) -> bool:
    return is_number(value) and _SMALLEST <= value <= _LARGEST


def _plain_bandwidth(value: Any) -> Any:
    """Pydantic would report each member of a union; a user needs one message."""
    if value in ("median", "auto") or _is_sigma(value):
        return value
    if isinstance(value, list):
        if not value:
            raise ValueError("a mixture needs at least one sigma, as in [0.5, 1.0]")
        if all(map(_is_sigma, value)):
            return value
        if all(is_number(sigma) and sigma > 0 for sigma in value):
            raise ValueError(f"expected sigmas from {_SMALLEST:g} to {_LARGEST:g} in a mixture")
        raise ValueError("expected numbers more than 0 in a mixture, as in [0.5, 1.0]")
    if is_number(value) and value > 0:
        raise ValueError(f"expected a sigma from {_SMALLEST:g} to {_LARGEST:g}")
    raise ValueError("expected a number more than 0 (sigma), a list of them, median, auto, or a section with a kind")


_Sigma = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]
Bandwidth = Annotated[
    Annotated[
        _Sigma | Annotated[list[_Sigma], Field(min_length=1)] | Literal["median", "auto"],
        BeforeValidator(_plain_bandwidth),
        Tag(PLAIN),
    ]
    | Annotated[MedianBandwidth, Tag("median")]
    | Annotated[AutoBandwidth, Tag("auto")]
    | Annotated[AnnealedBandwidth, Tag("annealed")],
    plain_or_kind("median"),
]


def _sigmas(value: Any) -> Any:
    if value in ("median", "auto"):
        raise ValueError("expected a number more than 0 (sigma), or a list of them")
    return _plain_bandwidth(value)


# Where no rule can choose: one sigma or several.
Sigmas = Annotated[_Sigma | Annotated[list[_Sigma], Field(min_length=1)], BeforeValidator(_sigmas)]
