"""The recipe's sections on what is done with tokens beside the token term: levels of alignment."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict


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
