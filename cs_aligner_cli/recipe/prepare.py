"""The recipe's section on prepare: what is checked, and whether the data are packed into shards."""

from __future__ import annotations

from pydantic import Field

from cs_aligner_cli.recipe.messages import FilePath, Strict


class Repack(Strict):
    """Writing the prepared data set as WebDataset shards."""

    shard_mb: int = Field(256, ge=1, le=65536, description="Size at which a shard is closed, MB.")
    dir: FilePath | None = Field(None, description="Where the shards lie; null: shards/ in run_dir.")


class Prepare(Strict):
    """What prepare checks, and what it writes beside the two tables."""

    min_side: int = Field(1, ge=1, description="Images with a shorter side, in pixels, are bad.")
    near_distance: int | None = Field(
        3,
        ge=0,
        le=8,
        description="Images of different splits whose 64-bit difference hashes differ in at most so many bits are told"
        " as near duplicates; null: none are looked for.",
    )
    repack: Repack | None = Field(
        None, description="Write the prepared images and captions as WebDataset shards, too; null: no."
    )
