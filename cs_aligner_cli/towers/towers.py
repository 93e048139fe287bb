"""The towers being aligned: from cached features or raw items to L2-normalised embeddings in one space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.token_sequences import pad_tokens
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.inputs import joined
from cs_aligner_cli.objectives import Logits
from cs_aligner_cli.recipe.towers import Adapter, Lora
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers.adapters import make_adapter
from cs_aligner_cli.towers.blocks import freeze_below
from cs_aligner_cli.towers.embedder import Embedder, Values, under
from cs_aligner_cli.towers.token_adapters import TokenTower

_DEFAULT_DIM = 512
# Adapters over cached features are so small that only large batches keep a core busy.
_CACHED_BATCH, _CACHED_TOKEN_BATCH = 4096, 64


@dataclass(frozen=True)
class TowerPlan:
    """What one tower is made of; written into every weights file, so that the file describes itself."""

    tune: str
    adapter: dict[str, Any] | None
    in_dim: int
    out_dim: int
    lora: dict[str, Any] | None = None
    train_blocks: int | None = None
    encoder: dict[str, Any] | None = None
    reads: str = "pooled"

    @property
    def live(self) -> bool:
        """Whether the encoder itself is part of the tower."""
        return self.tune in ("lora", "full")


def plan_towers(
    train: Train, dims: Mapping[str, int], identities: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, TowerPlan]:
    """Decide the shared dimension and each tower's parts; ``dims`` holds those of what the towers read.

    ``identities`` say which encoders they are, where that is known; the plans pass it on.

    Raises InputError if a tower without adapter does not have the shared dimension.
    """
    tunes = {m: train.tower(m) for m in dims}
    fixed = {dims[m] for m in dims if not tunes[m].adapts}
    common = next(iter({*dims.values()})) if len({*dims.values()}) == 1 else None
    out_dim = train.embed_dim or common or (min(fixed) if fixed else _DEFAULT_DIM)
    for modality in dims:
        tower, own = tunes[modality], dims[modality]
        if not tower.adapts and own != out_dim:
            key = f"train.{modality}" if modality in MODALITIES else f"train.further.{modality}"
            adapter = f"{key}.{'adapter_on_top=true' if tower.live else 'tune=adapter'}"
            raise InputError(
                f"{key}.tune: {tower.tune} keeps the tower's own {own} dimensions, but the shared space has {out_dim}",
                f"Give it an adapter (--set {adapter}), or set train.embed_dim to {own}.",
            )
    return {
        m: TowerPlan(
            tunes[m].tune,
            tunes[m].adapter.model_dump(mode="json") if tunes[m].adapts else None,
            dims[m],
            out_dim,
            tunes[m].lora.model_dump(mode="json") if tunes[m].tune == "lora" else None,
            tunes[m].train_blocks,
            (identities or {}).get(m),
            tunes[m].reads,
        )
        for m in dims
    }


class Towers(nn.Module):
    """All towers and the logits' scale and bias: everything that training may change."""

    def __init__(
        self,
        plans: Mapping[str, TowerPlan],
        encoders: Mapping[str, Encoder],
        logit_scale: float = 1.0,
        logit_bias: float = 0.0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.plans, self.precision = dict(plans), precision
        self.parts = nn.ModuleDict({m: _module(m, plan, encoders.get(m)) for m, plan in plans.items()})
        self.log_logit_scale = nn.Parameter(torch.tensor(logit_scale).log())
        self.logit_bias = nn.Parameter(torch.tensor(logit_bias))

    @property
    def logits(self) -> Logits:
        """What turns cosines into logits."""
        return Logits(self.log_logit_scale.exp(), self.logit_bias)

    def forward(self, modality: str, inputs: Tensor) -> Tensor:
        """L2-normalised float32 embeddings (B, out_dim) of one modality's inputs."""
        with under(self.precision, inputs.device):
            outputs = self.parts[modality](inputs)
        return l2_normalize(outputs.float())

    def forward_tokens(self, modality: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` and the tokens behind it: L2-normalised float32 (B, out_dim) and (B, L, out_dim), the latter
        padded with NaN (``token_sequences.token_mask``). For towers that read tokens."""
        with under(self.precision, inputs.device):
            found = self.parts[modality].mapped(inputs)  # type: ignore[operator]
        return l2_normalize(found.pooled.float()), pad_tokens(l2_normalize(found.tokens.float()), found.mask)

    def encoder(self, modality: str) -> nn.Module | None:
        """The live encoder of a tower, None where the tower is an adapter on cached features."""
        plan, part = self.plans[modality], self.parts[modality]
        if not plan.live:
            return None
        if isinstance(part, TokenTower):
            return part.encoder
        return part if plan.adapter is None else part[0]  # type: ignore[index]

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that training may change, and buffers: what a weights file holds.

        The frozen weights under LoRA are left out: the encoder brings them.
        """
        frozen = {name for name, p in self.parts.named_parameters(prefix="parts") if not p.requires_grad}
        named = dict(self.named_parameters())  # weights that two modules share stand here once
        buffers = dict(self.named_buffers())
        kept = self.state_dict().keys() - frozen
        return {name: value for name, value in {**named, **buffers}.items() if name in kept}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``own_state``; RuntimeError if a name or a shape does not fit."""
        own = self.own_state()
        if state.keys() != own.keys():
            odd = sorted(state.keys() ^ own.keys())
            raise RuntimeError(f"{len(odd)} tensors are missing or too many, the first being {odd[0]}")
        self.load_state_dict(dict(state), strict=False)


def _module(modality: str, plan: TowerPlan, encoder: Encoder | None) -> nn.Module:
    adapter: nn.Module = nn.Identity()
    if plan.adapter is not None:
        adapter = make_adapter(TypeAdapter(Adapter).validate_python(plan.adapter), plan.in_dim, plan.out_dim)
    reads_tokens = plan.reads == "tokens"
    if not plan.live:
        return TokenTower(None, adapter) if reads_tokens else adapter
    assert encoder is not None
    if not list(encoder.module.parameters()):
        raise InputError(f"train.{modality}.tune: {plan.tune}, but stored features have no weights to train")
    if plan.lora is not None:
        from cs_aligner_cli.towers.lora import add_lora  # peft takes seconds to import

        encoder.module.requires_grad_(False)  # also what a pipeline has behind its backbone
        add_lora(encoder.backbone, Lora.model_validate(plan.lora), f"train.{modality}.lora")
    elif plan.train_blocks is not None:
        freeze_below(encoder.module, plan.train_blocks, f"train.{modality}.train_blocks")
    if reads_tokens:
        return TokenTower(encoder.token_reader(f"train.{modality}.reads").module, adapter)
    return encoder.module if plan.adapter is None else nn.Sequential(encoder.module, adapter)


def count_parameters(towers: Towers) -> dict[str, tuple[int, int, int]]:
    """(trained tensors, trained weights, all weights) of each part: encoder, LoRA and adapter of each tower."""
    counts: dict[str, tuple[int, int, int]] = {}
    for modality in towers.parts:
        encoder, plan = towers.encoder(modality), towers.plans[modality]
        inside = {id(p) for p in encoder.parameters()} if encoder is not None else set()
        for p in towers.parts[modality].parameters():
            live = f"the {modality} encoder{' by LoRA' if plan.tune == 'lora' else ''}"
            part = live if id(p) in inside else f"the {modality} adapter"
            tensors, trained, total = counts.get(part, (0, 0, 0))
            on = p.requires_grad
            counts[part] = tensors + on, trained + on * p.numel(), total + p.numel()
    return counts


class Inputs:
    """Where a tower's inputs come from: the frozen or token stores, or the items themselves for a live tower."""

    def __init__(
        self,
        plans: Mapping[str, TowerPlan],
        encoders: Mapping[str, Encoder],
        stores: Mapping[str, Store],
        tokens: Mapping[str, TokenStore] | None = None,
    ) -> None:
        self._load: dict[str, Callable[[Split, Ints], Tensor]] = {}
        self._stores = stores
        self.live = {modality: encoders[modality] for modality, plan in plans.items() if plan.live}
        self.reads = {modality: plan.reads for modality, plan in plans.items()}
        for modality, reads in self.reads.items():
            live = self.live.get(modality)
            read_from = (tokens or {}) if reads == "tokens" else stores
            self._load[modality] = _live(live) if live else _cached(modality, read_from)

    def __call__(self, modality: str, split: Split, rows: Ints) -> Tensor:
        """The inputs of some rows of a split's table, as a CPU tensor."""
        return self._load[modality](split, rows)

    def features(self, modality: str, items: Sequence[tuple[Split, Ints]], loaded: Tensor | None = None) -> Tensor:
        """What the frozen encoder gives for some items, pooled (N, D); ``loaded``: the tower's inputs, if at hand.

        What a tower of cached features reads, the mean of the tokens that another one reads, and beside a live tower
        the frozen store.
        """
        if modality in self.live:
            read = _cached(modality, self._stores)
            return torch.cat([read(split, rows) for split, rows in items])
        if loaded is None:
            loaded = joined([self(modality, split, rows) for split, rows in items])
        return loaded.float().nanmean(dim=1) if self.reads[modality] == "tokens" else loaded.float()


def _live(encoder: Encoder) -> Callable[[Split, Ints], Tensor]:
    return lambda split, rows: encoder.load(split.table(encoder.modality).iloc[rows])


def _cached(modality: str, stores: Mapping[str, Store] | Mapping[str, TokenStore]) -> Callable[[Split, Ints], Tensor]:
    arrays = {name: store.array(modality) for name, store in stores.items() if (store.folder / modality).is_dir()}
    return lambda split, rows: torch.from_numpy(arrays[split.name].take(rows))


def tower_embedder(
    towers: Towers, inputs: Inputs, modality: str, split: Split, device: torch.device, batch_size: int | None
) -> Embedder:
    """What computes a tower's embeddings (rows, out_dim) of a split, in the mode that the towers are in."""
    live = inputs.live.get(modality)
    cached_batch = _CACHED_TOKEN_BATCH if inputs.reads[modality] == "tokens" else _CACHED_BATCH
    return Embedder(
        lambda batch: towers(modality, batch),
        lambda rows: inputs(modality, split, rows),
        device,
        batch_size if live else max(batch_size or 0, cached_batch),
        split.table(modality)["text"].tolist() if live and live.reads_captions else None,
        live.load if live else None,
    )


def embed_split(
    towers: Towers,
    inputs: Inputs,
    modality: str,
    split: Split,
    rows: Ints,
    device: torch.device,
    batch_size: int | None = None,
) -> Values:
    """The towers' embeddings (len(rows), out_dim) of some rows of a split, in eval mode."""
    was_training = towers.training
    towers.eval()
    values = tower_embedder(towers, inputs, modality, split, device, batch_size).all(rows)
    towers.train(was_training)
    return values
