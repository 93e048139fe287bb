"""The recipe's sections on the matching head: how it is trained, and what it puts in another order."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.recipe.messages import Strict


class Matching(Strict):
    """A matching head: trained on the tokens of the finished towers, it judges whether an image and a text match."""

    width: int = Field(64, ge=1, le=4096, description="Hidden units of the comparison of tokens.")
    epochs: int = Field(
        10, ge=1, le=1_000_000, description="Passes over the training images, after the towers are trained."
    )
    batch_size: int = Field(
        100, ge=2, description="Images with captions per step, among which hard negatives are drawn."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Pairs and negatives that go through the head at a time, and items through a tower; the gradient is"
        " that of the whole batch; null: all at once.",
    )
    lr: float = Field(3e-3, gt=0, le=10, description="Peak learning rate; all else of the optimizer is train's.")
    negatives: int = Field(1, ge=1, le=16, description="Hard negatives of each image and of each text in a step.")
    temperature: float = Field(
        0.05,
        ge=1e-3,
        le=100,
        description="Negatives are drawn by a softmax of cosines over this: low: the most similar ones alone.",
    )


class Rerank(Strict):
    """Reranking: the first hits of the exact search in the order of the matching head."""

    top_k: int = Field(20, ge=2, le=10_000, description="How many of each query's first hits; at most the gallery.")
