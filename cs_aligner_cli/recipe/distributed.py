"""The recipe's section on several processes, started by torchrun."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict


class Distributed(Strict):
    """How the ranks talk where torchrun starts several."""

    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="What carries tensors between ranks; auto: nccl for those on GPUs, gloo for the others."
    )
    timeout_minutes: float = Field(
        10.0,
        gt=0,
        le=10080,
        description="How long a rank waits for the others within a step before it gives them up and ends the job."
        " Waiting for rank 0, which validates and writes alone, has no limit.",
    )
