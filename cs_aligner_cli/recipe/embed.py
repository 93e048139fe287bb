"""The recipe's section on embedding: where encoders run, and how their vectors are stored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cs_aligner_cli.recipe.messages import FilePath, Strict
from cs_aligner_cli.recipe.paths import RunFolder
from cs_aligner_cli.recipe.train import Device, Precision


class Embed(Strict):
    """How embeddings are computed and stored."""

    device: Device = Field("auto", description="Where encoders run; auto: CUDA where there is one, else the CPU.")
    precision: Precision = Field(
        "auto",
        description="Autocast precision of the frozen encoders; auto: bf16 on CUDA (fp16 on older cards), else fp32."
        " Trained towers run in train.precision.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Items per forward pass; null: 32 on the CPU, 512 elsewhere. Halved where memory does not hold it.",
    )
    decoders: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes that decode photos; 0: threads. null: beside a GPU one for each core but one where there"
        " are more than 8, else threads. Of open_clip's and timm's image towers, on Linux.",
    )
    jpeg: Literal["exact", "reduced", "device"] = Field(
        "exact",
        description="How JPEGs become an encoder's pictures. exact: as its library does it. reduced: decoded at 1/2,"
        " 1/4 or 1/8 where that is no smaller than what they are resized to. device: decoded (nvJPEG) and resized on a"
        " CUDA device. The last two are faster, change pixels, and are for open_clip's and timm's image towers.",
    )
    compile: bool = Field(False, description="Compile the encoders with torch.compile: slower to start, then faster.")
    shard_rows: int = Field(65536, ge=1, description="Rows per shard; a finished shard is never computed again.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Type of the stored values.")
    token_dtype: Literal["float16", "float32"] = Field(
        "float16", description="Type of stored tokens, which towers with reads: tokens have."
    )
    dir: RunFolder | None = Field(
        None,
        description="Where the frozen store lies; null: in run_dir. Runs with equal encoders may share it, as in"
        " run:NAME/embeddings/frozen, that of a run in ./runs.",
    )
    checkpoint: Literal["best", "last"] = Field("best", description="Which trained weights the aligned store uses.")
    weights: FilePath | None = Field(
        None,
        description="Another run (its folder, or its best.safetensors) to align with; nothing is trained here.",
    )

    def refuse_jpegs_of(self, kind: str) -> None:
        """Raise ValueError if JPEGs cannot be read as ``jpeg`` says for an image encoder of that kind."""
        if self.jpeg != "exact" and kind not in ("open_clip", "timm"):
            raise ValueError(f"embed.jpeg: {self.jpeg} goes with image encoders of kind open_clip or timm, not {kind}")
