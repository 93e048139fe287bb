"""embed: from prepared data and encoders to the frozen stores, through trained towers to the aligned ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Event
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import FROZEN, TOKENS
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.encoders import Encoder, TokenReader, load_encoders, pick_device, weight_files
from cs_aligner_cli.encoders.availability import brings_weights
from cs_aligner_cli.encoders.preflight import check_tower
from cs_aligner_cli.files.artifact import Artifact, Build, file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import make
from cs_aligner_cli.stores.embeddings import ShardWriter, Store, StoredArray, write_keys
from cs_aligner_cli.stores.tokens import TokenArray, TokenStore, TokenWriter
from cs_aligner_cli.towers.embedder import Embedder, Values, pick_precision, under
from cs_aligner_cli.towers.towers import Inputs, TowerPlan, tower_embedder
from cs_aligner_cli.towers.weights import load_towers, read_plans

# How often a rank looks whether another one has written a shard.
_POLL_SECONDS = 0.05
# What computes the rows of a modality.
MakeEmbedder: TypeAlias = Callable[[str], Embedder]


def embed(recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Make every store that can be made now: frozen ones, those of tokens, and aligned ones once training is done.

    Returns {"status": done or fresh, "stores": {name: {split: summary}}, "waiting_for_training": [name]}.
    Raises InputError if the data are not prepared, an encoder does not load, or trained weights do not fit.
    """
    layout = Layout(recipe)
    ranks.broadcast(lambda: layout.prepared.require() is not None)
    job = _Job(recipe, layout, console, force, ranks)
    stores = {FROZEN: {split: job.frozen(split) for split in layout.frozen_splits}}
    if layout.token_splits:
        stores[TOKENS] = {split: job.tokens(split) for split in layout.token_splits}
    if layout.pairing and recipe.train and recipe.train.cached_reading("pooled", layout.modalities):
        stores |= _unpaired(layout, console, force, ranks)
    trained = ranks.broadcast(lambda: [n for n in layout.aligned_names if job.can_align(n)])
    for name in trained:
        stores[name] = {split: job.aligned(name, split) for split in layout.aligned_splits(name)}
    waiting = [name for name in layout.aligned_names if name not in stores]
    done = any(summary["status"] == "done" for splits in stores.values() for summary in splits.values())
    return {"status": "done" if done else "fresh", "stores": stores, "waiting_for_training": waiting}


def _unpaired(layout: Layout, console: Console, force: bool, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Make the frozen stores of unpaired items from elsewhere; raise InputError if their dimension is another one."""
    assert layout.recipe.train is not None and layout.recipe.data.unpaired is not None
    own = Store(layout.frozen(layout.recipe.train.split).path)
    stores: dict[str, dict[str, Any]] = {}
    for number, (name, other) in enumerate(layout.unpaired.items()):
        split = layout.recipe.data.unpaired.sources[number].split
        ranks.broadcast(lambda other=other: other.prepared.require() is not None)  # type: ignore[misc]
        stores[f"unpaired {name}"] = {split: _Job(other.recipe, other, console, force, ranks).frozen(split)}
        theirs = Store(other.frozen(split).path)
        for modality in other.modalities:
            dims = [store.array(modality).shape[1] for store in (theirs, own)]
            if dims[0] != dims[1]:
                raise InputError(
                    f"data.unpaired.sources.{number}: the {modality} embeddings of {name} have {dims[0]} dimensions, "
                    f"but those of the data set have {dims[1]}",
                    "Unpaired items must come from the encoder that the pairs come from.",
                )
    return stores


class _Job:
    """What the stores of one command share: the tables, the frozen encoders (loaded late), the device."""

    def __init__(self, recipe: Recipe, layout: Layout, console: Console, force: bool, ranks: Ranks) -> None:
        self.recipe, self.layout, self.console, self.force, self.ranks = recipe, layout, console, force, ranks
        self.modalities = layout.modalities
        self.data = PreparedData(layout.prepared.path)
        self.device = pick_device(recipe.embed.device)

    def can_align(self, name: str) -> bool:
        """Whether the weights of an aligned store are there."""
        return self.recipe.embed.weights is not None or self.layout.trained(name).fresh() is not None

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The frozen encoders; those with weights from elsewhere must tell items apart."""
        encoders = load_encoders(self.recipe, self.data, self.device, self.modalities)
        for modality, encoder in encoders.items():
            if brings_weights(self.recipe.encoders.of(modality)):
                check_tower(encoder, f"encoders.{modality}", self.data.captions["text"])
        return encoders

    def frozen(self, split_name: str) -> dict[str, Any]:
        """The store of one split as the encoders give it."""
        split = self.data.split(split_name, self._key_of(split_name), self.modalities)

        def start() -> tuple[MakeEmbedder, dict[str, Any]]:
            precision = pick_precision(self.recipe.embed.precision, self.device)
            identity = {m: {**encoder.identity, "precision": precision} for m, encoder in self.encoders.items()}
            return lambda modality: self._frozen_embedder(self.encoders[modality], split, precision), identity

        sources = file_stamps(weight_files(self.recipe))
        return self._store(self.layout.frozen(split_name), split, sources, start)

    def tokens(self, split_name: str) -> dict[str, Any]:
        """The token store of one split: of the modalities whose towers read stored tokens."""
        split = self.data.split(split_name, self._key_of(split_name))
        artifact, sources = self.layout.tokens(split_name), file_stamps(weight_files(self.recipe))
        modalities = self.layout.token_modalities

        def write(build: Build) -> dict[str, Any]:
            precision = pick_precision(self.recipe.embed.precision, self.device)
            readers = {m: self.encoders[m].token_reader(f"train.{m}.reads") for m in modalities}
            summary = {}
            for m, reader in readers.items():
                embedder = self._frozen_embedder(self.encoders[m], split, precision, reader)
                writer = TokenWriter(
                    build.folder / m, len(split.table(m)), self.recipe.embed.shard_rows, self.recipe.embed.token_dtype
                )
                summary[m] = self._fill_tokens(writer, embedder, f"{artifact.name}: {m}")
            about = {m: {"tokens": reader.about, "precision": precision} for m, reader in readers.items()}
            identity = {m: {**self.encoders[m].identity, **about[m]} for m in modalities}
            if self.ranks.main:
                write_keys(build.folder, {m: split.table(m) for m in modalities}, identity)
            return summary

        return self._made(artifact, write, sources)

    def _made(self, artifact: Artifact, write: Callable[[Build], dict[str, Any]], sources: str) -> dict[str, Any]:
        made = make(artifact, write, force=self.force, sources=sources, ranks=self.ranks)
        return {"status": made.status, **made.summary}

    def _fill_tokens(self, writer: TokenWriter, embedder: Embedder, label: str) -> dict[str, Any]:
        """Compute the missing shards, each rank its share; return what is told of the modality."""
        started = time.perf_counter()
        missing = self.ranks.broadcast(writer.reopen)
        mine = [(number, writer.rows_of(number)) for number in self.ranks.mine(missing)]
        with self.console.progress(label, sum(len(part) for _, part in mine)) as advance:
            for number, tokens in embedder.token_shards(mine, advance):
                writer.write_tokens(number, tokens)
        speeds = self.ranks.all_gather(embedder.throughput.record())
        array = TokenArray(writer.folder)
        about = {"rows": len(array), "dim": array.dim, "tokens": int(array.lengths.sum())}
        return {**about, "seconds": round(time.perf_counter() - started, 3), **_together(speeds)}

    def aligned(self, name: str, split_name: str) -> dict[str, Any]:
        """The store of one split as trained towers give it."""
        split = self.data.split(split_name, self._key_of(split_name))
        weights = self.layout.weights(name)

        def start() -> tuple[MakeEmbedder, dict[str, Any]]:
            frozen = Store(self.layout.frozen(split_name).path)
            plans = read_plans(weights)
            if {*plans} != {*self.modalities}:
                raise InputError(
                    f"{weights}: has towers of {', '.join(plans)}, but this recipe's are {', '.join(self.modalities)}",
                    "encoders.further must name what the weights were trained with.",
                )
            # A copy of its own: live towers get trained weights, and the frozen encoders must stay frozen.
            encoders = load_encoders(self.recipe, self.data, self.device, [m for m, plan in plans.items() if plan.live])
            tokens = TokenStore(self.layout.tokens(split_name).path)
            dims = {m: self._dim(m, plan, encoders, frozen, tokens) for m, plan in plans.items()}
            identities = {m: frozen.identity[m] for m in self.modalities}
            precision = pick_precision(self.recipe.train.precision if self.recipe.train else "fp32", self.device)
            towers = load_towers(weights, encoders, dims, identities, precision).eval().to(self.device)
            inputs = Inputs(towers.plans, encoders, {split.name: frozen}, {split.name: tokens})
            size = self.recipe.embed.batch_size
            identity = {"weights": str(weights), "encoders": frozen.identity}
            return lambda m: tower_embedder(towers, inputs, m, split, self.device, size), identity

        own = file_stamps([weights]) if self.recipe.embed.weights and weights.is_file() else ""
        return self._store(self.layout.aligned(name, split_name), split, own, start)

    @staticmethod
    def _dim(m: str, plan: TowerPlan, encoders: dict[str, Encoder], frozen: Store, tokens: TokenStore) -> int:
        """The dimension of what a tower reads."""
        if plan.reads == "pooled":
            return frozen.array(m).shape[1]
        return encoders[m].token_reader(f"train.{m}.reads").dim if plan.live else tokens.array(m).dim

    def _key_of(self, split_name: str) -> str:
        """The recipe's key that names a split."""
        recipe, train = self.recipe, self.recipe.train
        named = {
            "eval_retrieval.split": recipe.eval_retrieval.split,
            "gap_report.split": recipe.gap_split,
            "zero_shot.split": recipe.zero_shot_split,
            "eval_retrieval.query_bank.split": recipe.eval_retrieval.query_bank.split,
        }
        if train is not None and recipe.trains:
            named = {"train.split": train.split, "train.val_split": train.val_split or "", **named}
        named["gap_report.baselines.split"] = recipe.gap_report.baselines.split or ""
        return next((key for key, name in named.items() if name == split_name), "data.unpaired")

    def _store(
        self,
        artifact: Artifact,
        split: Split,
        sources: str,
        start: Callable[[], tuple[MakeEmbedder, dict[str, Any]]],
    ) -> dict[str, Any]:
        spec = self.recipe.embed

        def write(build: Build) -> dict[str, Any]:
            embedder_of, identity = start()
            summary = {}
            for modality in self.modalities:
                rows = len(split.table(modality))
                writer = ShardWriter(build.folder / modality, rows, spec.shard_rows, spec.dtype)
                embedder = embedder_of(modality)
                started = time.perf_counter()
                _fill(writer, embedder, self.ranks, self.console, f"{artifact.name}: {modality}")
                speeds = self.ranks.all_gather(embedder.throughput.record())
                seconds = round(time.perf_counter() - started, 3)
                about = {"rows": rows, "dim": StoredArray(writer.folder).shape[1], "seconds": seconds}
                summary[modality] = {**about, **_together(speeds)}
            if self.ranks.main:
                write_keys(build.folder, {m: split.table(m) for m in self.modalities}, identity)
            return summary

        return self._made(artifact, write, sources)

    def _frozen_embedder(
        self, encoder: Encoder, split: Split, precision: str, tokens: TokenReader | None = None
    ) -> Embedder:
        """What computes the encoder's embeddings of a split or, with ``tokens``, its padded tokens."""
        spec, table = self.recipe.embed, split.table(encoder.modality)
        load = tokens.load if tokens else encoder.load
        plain = tokens.module if tokens else encoder.module
        module = torch.compile(plain, dynamic=True) if spec.compile else plain

        def forward(inputs: Tensor) -> Tensor:
            with under(precision, self.device):
                return module(inputs)  # type: ignore[no-any-return]

        return Embedder(
            forward,
            lambda rows: load(table.iloc[rows]),
            self.device,
            spec.batch_size,
            table["text"].tolist() if encoder.reads_captions else None,
            load,
        )


def _fill(writer: ShardWriter, embedder: Embedder, ranks: Ranks, console: Console, label: str) -> None:
    """Compute the missing shards, each rank its share; each is written while the next one is computed."""
    missing = [(number, writer.rows_of(number)) for number in ranks.broadcast(writer.reopen)]
    mine = ranks.mine(missing)
    shards = dict(mine)
    total = writer.rows if ranks.size == 1 else sum(len(part) for _, part in mine)
    kept = writer.rows - sum(len(part) for _, part in missing) if ranks.size == 1 else 0
    given_up = Event()

    def write(number: int, values: Values, copies: Ints) -> None:
        if len(copies):
            assert embedder.first is not None
            owners = embedder.first[shards[number][copies]]
            inside = owners >= shards[number][0]
            values[copies[inside]] = values[owners[inside] - shards[number][0]]
            earlier = owners[~inside]
            # The ranks go through the shards in order, so whoever has the earliest open one waits for nobody.
            while not writer.holds(earlier):
                if given_up.wait(_POLL_SECONDS):
                    return
            if len(earlier):
                values[copies[~inside]] = writer.take(earlier)
        writer.write(number, values)

    with (
        console.progress(label, total, done=kept) as advance,
        ThreadPoolExecutor(1, "write") as background,
    ):
        pending: Future[None] | None = None
        try:
            for number, values, copies in embedder.shards(mine, advance):
                if pending:
                    pending.result()
                pending = background.submit(write, number, values, copies)
            if pending:
                pending.result()
        except BaseException:
            given_up.set()
            raise


def _together(speeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The throughput of all ranks as one record."""
    return {
        "computed": sum(speed["computed"] for speed in speeds),
        "per_second": round(sum(speed["per_second"] for speed in speeds), 1),
        "encoder_busy": round(sum(speed["encoder_busy"] for speed in speeds) / len(speeds), 3),
    }
