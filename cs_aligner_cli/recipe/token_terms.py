"""The recipe's sections on what is done with tokens beside the token term: levels of alignment, exchanged tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict
from cs_aligner_cli.recipe.weights import FixedOrScheduledWeight


class Level(Strict):
    """A level of hierarchical alignment: tokens in groups, ranked by late interaction and aligned as clouds."""

    group: int = Field(
        1, ge=1, le=4096, description="Tokens in a group, one after another; each group is the mean of its tokens."
    )
    weight: float = Field(
        1.0,
        ge=0,
        description="Weight of InfoNCE over late interaction: each group with the nearest of the other item.",
    )
    divergence: float = Field(
        0.0, ge=0, description="Weight of the divergence, of the kind of the objective's own, between all groups."
    )


class TokenExchange(Strict):
    """Token exchange (VLMixer): items some of whose tokens are the other modality's stay near what they were."""

    weight: FixedOrScheduledWeight = Field(
        1.0, description="Weight of the term (0: logged, but trained without), or a section of kind scheduled."
    )
    share: float = Field(
        0.3, gt=0, le=1, description="Probability with which a token gives way to the nearest one of the partner."
    )
    partner: Literal["pair", "nearest"] = Field(
        "pair",
        description="pair: the item that it is a pair with; nearest: the step's nearest item of the other modality, for"
        " paired and unpaired items.",
    )
