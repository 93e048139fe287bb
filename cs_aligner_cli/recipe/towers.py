"""The recipe's section on one tower in training: what of it is trained, adapters, LoRA."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from cs_aligner_cli.recipe.messages import KIND_IS_NEEDED, Strict, by_kind


class LinearAdapter(Strict, json_schema_extra=KIND_IS_NEEDED):
    """One linear map (identity at the start where the dimensions agree)."""

    kind: Literal["linear"] = Field("linear", description="A linear map.")
    bias: bool = Field(True, description="Add a learned offset.")


class ResidualMlpAdapter(Strict):
    """A skip path plus a two-layer MLP (zero at the start, so that training begins at the skip path)."""

    kind: Literal["residual_mlp"] = Field("residual_mlp", description="Skip path plus MLP.")
    hidden_dim: int = Field(1024, ge=1, le=65536, description="Hidden units.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the hidden units.")


class BottleneckAdapter(Strict, json_schema_extra=KIND_IS_NEEDED):
    """CLIP-Adapter: a narrow MLP mixed with the skip path by a learned residual ratio."""

    kind: Literal["bottleneck"] = Field("bottleneck", description="CLIP-Adapter.")
    hidden_dim: int = Field(128, ge=1, le=65536, description="Hidden units (CLIP-Adapter: a quarter of the input).")
    ratio: float = Field(0.2, gt=0, lt=1, description="Share of the MLP at the start.")
    learn_ratio: bool = Field(True, description="Train the ratio; false: it stays, as in the paper.")


class TransformerAdapter(Strict, json_schema_extra=KIND_IS_NEEDED):
    """A small transformer over the encoder's tokens, as ECLIPSE's prior; needs reads: tokens."""

    kind: Literal["transformer"] = Field("transformer", description="A transformer over tokens.")
    width: int = Field(512, ge=8, le=8192, description="Width of the blocks.")
    layers: int = Field(2, ge=1, le=200, description="Pre-norm blocks of attention and MLP.")
    heads: int = Field(8, ge=1, le=256, description="Attention heads; divides width.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the blocks.")
    pooling: Literal["mean", "query"] = Field(
        "mean", description="The tower's embedding: the mean of the mapped tokens, or what a learned query attends to."
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> TransformerAdapter:
        _refuse_split_heads(self.heads, self.width)
        return self


class PriorAdapter(Strict, json_schema_extra=KIND_IS_NEEDED):
    """A causal transformer over tokens, pooled embedding and a learned output token, of the size of ECLIPSE's prior."""

    kind: Literal["prior"] = Field("prior", description="The paper's text adapter for unCLIP decoders.")
    width: int = Field(512, ge=8, le=8192, description="Width of the blocks.")
    layers: int = Field(10, ge=1, le=200, description="Pre-norm blocks of attention and MLP.")
    heads: int = Field(16, ge=1, le=256, description="Attention heads; divides width.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the blocks.")
    max_tokens: int = Field(77, ge=1, le=8192, description="Tokens of a caption at most.")

    @model_validator(mode="after")
    def _whole_heads(self) -> PriorAdapter:
        _refuse_split_heads(self.heads, self.width)
        return self


def _refuse_split_heads(heads: int, width: int) -> None:
    if width % heads:
        raise ValueError(f"heads ({heads}) must divide width ({width})")


AdapterSpec: TypeAlias = LinearAdapter | ResidualMlpAdapter | BottleneckAdapter | TransformerAdapter | PriorAdapter
Adapter = Annotated[
    Annotated[LinearAdapter, Tag("linear")]
    | Annotated[ResidualMlpAdapter, Tag("residual_mlp")]
    | Annotated[BottleneckAdapter, Tag("bottleneck")]
    | Annotated[TransformerAdapter, Tag("transformer")]
    | Annotated[PriorAdapter, Tag("prior")],
    by_kind("residual_mlp"),
]


class Lora(Strict):
    """Low-rank updates of linear maps inside a frozen tower, by peft."""

    rank: int = Field(8, ge=1, le=4096, description="Rank of every update.")
    alpha: float = Field(16.0, gt=0, description="Updates are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the updates' input.")
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Names of linear maps, whole or their last parts (q_proj, mlp.c_fc); null: all maps of attention.",
    )


class Tower(Strict):
    """What is trained of one tower."""

    tune: Literal["frozen", "adapter", "lora", "full"] = Field(
        "adapter",
        description="frozen: nothing; adapter: a map on cached features; lora: low-rank updates inside the encoder,"
        " live; full: the encoder itself, live.",
    )
    reads: Literal["pooled", "tokens"] = Field(
        "pooled",
        description="What the encoder gives: pooled, one embedding; tokens, all its tokens, which the adapter maps, and"
        " which it pools to the tower's embedding.",
    )
    adapter: Adapter = Field(ResidualMlpAdapter(), description="Used with tune: adapter, and with adapter_on_top.")
    adapter_on_top: bool = Field(
        False, description="With tune lora and full: train the adapter on top of the live tower, too."
    )
    lora: Lora = Field(Lora(), description="Used with tune: lora.")
    train_blocks: int | None = Field(
        None, ge=0, description="With tune: full: train only the last so many blocks and what follows; null: all."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="With lora and full: a block's learning rate is the next block's times this."
    )
    grad_checkpointing: bool = Field(
        False, description="With lora and full: keep no activations inside blocks and compute them again: less memory."
    )

    @property
    def live(self) -> bool:
        """Whether training runs the encoder itself."""
        return self.tune in ("lora", "full")

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained."""
        return self.tune == "adapter" or self.adapter_on_top

    @model_validator(mode="after")
    def _nothing_idle(self) -> Tower:
        if self.adapter_on_top and not self.live:
            raise ValueError(f"adapter_on_top: true goes with tune lora or full, not {self.tune}")
        if self.adapts and self.adapter.kind in ("transformer", "prior") and self.reads != "tokens":
            raise ValueError(f"adapter of kind {self.adapter.kind} goes with reads: tokens")
        if self.reads == "tokens" and self.live and not self.adapter_on_top:
            raise ValueError(f"reads: tokens with tune: {self.tune} needs adapter_on_top: true")
        if self.train_blocks is not None and self.tune != "full":
            raise ValueError(f"train_blocks goes with tune: full, not {self.tune}")
        if (self.layer_decay != 1 or self.grad_checkpointing) and not self.live:
            raise ValueError(f"layer_decay and grad_checkpointing go with tune lora or full, not {self.tune}")
        return self
