"""The work of embed: shards computed by encoders and towers, each rank its share."""

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
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.decode_pool import DecodePool, can_share
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.encoders import Encoder, TokenReader, load_encoders, pick_device
from cs_aligner_cli.encoders.availability import brings_weights, weight_files
from cs_aligner_cli.encoders.hub import describe_encoder
from cs_aligner_cli.encoders.inputs import ImageLoader, decoding_processes
from cs_aligner_cli.encoders.preflight import check_tower
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stores.embeddings import ShardWriter, Store, StoredArray, write_keys
from cs_aligner_cli.stores.tokens import TokenArray, TokenStore, TokenWriter
from cs_aligner_cli.towers.embedder import Embedder, Values, pick_precision, under, warm_up
from cs_aligner_cli.towers.towers import Inputs, TowerPlan, tower_embedder
from cs_aligner_cli.towers.weights import load_towers, read_plans

# How often a rank looks whether another one has written a shard.
_POLL_SECONDS = 0.05
# What computes the rows of a modality.
MakeEmbedder: TypeAlias = Callable[[str], Embedder]


class EmbedJob:
    """What the stores of one command share: the tables, the frozen encoders (loaded late), the device."""

    def __init__(self, layout: Layout, console: Console, ranks: Ranks) -> None:
        self.recipe, self.layout, self.console, self.ranks = layout.recipe, layout, console, ranks
        self.modalities = layout.modalities
        self.data = PreparedData(layout.prepared.path)
        self.device = pick_device(self.recipe.embed.device)
        if self.device.type == "cuda":
            ThreadPoolExecutor(1, "warm up").submit(warm_up, self.device)

    @cached_property
    def _processes(self) -> DecodePool | None:
        """The processes that decode photos, if any."""
        wanted = self.recipe.embed.decoders
        if wanted is None:
            wanted = decoding_processes() if self.device.type == "cuda" else 0
        known = self.recipe.encoders.image.kind in ("open_clip", "timm") and self.recipe.embed.jpeg != "device"
        return DecodePool(wanted) if wanted and known and can_share() else None

    def _loaded(self, modalities: Sequence[str]) -> dict[str, Encoder]:
        """Encoders of some modalities; photos become crops where a GPU is, or processes, which start meanwhile."""
        if "image" in modalities and self.recipe.embed.jpeg == "device":
            from cs_aligner_cli.encoders.device_jpeg import require_device_jpeg

            require_device_jpeg(self.device)
        processes = self._processes if "image" in modalities else None
        encoders = load_encoders(self.recipe, self.data, self.device, modalities)
        for encoder in encoders.values():
            if isinstance(encoder.load, ImageLoader):
                encoder.load.decode_jpegs(self.recipe.embed.jpeg, self.device)
                if processes or self.device.type == "cuda":
                    encoder.load.crop(processes)
        return encoders

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The frozen encoders; those with weights from elsewhere must tell items apart, which prepare may have seen."""
        encoders = self._loaded(self.modalities)
        brought = [m for m in encoders if brings_weights(self.recipe.encoders.of(m))]
        check = self.layout.tower_check(brought).fresh(file_stamps(weight_files(self.recipe)))
        seen = check["summary"]["towers"] if check else {}
        for modality in brought:
            encoder = encoders[modality]
            if seen.get(modality) != describe_encoder(encoder.identity):
                check_tower(encoder, f"encoders.{modality}", self.data.captions["text"])
        return encoders

    def _identity(self, modality: str, about: dict[str, Any]) -> dict[str, Any]:
        """What a store says of its rows: who computed them, and how."""
        jpeg = self.recipe.embed.jpeg
        read = {"jpeg": jpeg} if modality == "image" and jpeg != "exact" else {}
        return {**self.encoders[modality].identity, **about, **read}

    def require_splits(self) -> None:
        """Raise InputError if a split of the frozen stores is absent, before the first of them takes its time."""
        for name in self.layout.frozen_splits:
            self.data.split(name, _key_of(self.recipe, name), self.modalities)

    def write_frozen(self, split_name: str, build: Build, like: tuple[Artifact, str] | None = None) -> dict[str, Any]:
        """The store of one split as the encoders give it.

        With ``like`` (a store, and the key that wants it), raise InputError if the dimensions are not those of it.
        """
        split = self.data.split(split_name, _key_of(self.recipe, split_name), self.modalities)
        precision = pick_precision(self.recipe.embed.precision, self.device)
        identity = {m: self._identity(m, {"precision": precision}) for m in self.encoders}
        for modality in self.modalities if like else ():
            assert like is not None
            own, theirs = Store(like[0].path).array(modality).shape[1], self.encoders[modality].dim
            if own != theirs:
                raise InputError(
                    f"{like[1]}: the {modality} embeddings of {self.layout.data_name} have {theirs} dimensions, but "
                    f"those of the data set have {own}",
                    "Unpaired items must come from the encoder that the pairs come from.",
                )
        label = self.layout.frozen(split_name).name
        return self._write(
            build, label, split, identity, lambda m: self._frozen_embedder(self.encoders[m], split, precision)
        )

    def write_tokens(self, split_name: str, build: Build) -> dict[str, Any]:
        """The token store of one split: of the modalities whose towers read stored tokens."""
        split, modalities = self.data.split(split_name, _key_of(self.recipe, split_name)), self.layout.token_modalities
        label = self.layout.tokens(split_name).name
        precision = pick_precision(self.recipe.embed.precision, self.device)
        readers = {m: self.encoders[m].token_reader(f"train.{m}.reads") for m in modalities}
        summary = {}
        for m, reader in readers.items():
            embedder = self._frozen_embedder(self.encoders[m], split, precision, reader)
            writer = TokenWriter(
                build.folder / m, len(split.table(m)), self.recipe.embed.shard_rows, self.recipe.embed.token_dtype
            )
            summary[m] = self._fill_tokens(writer, embedder, f"{label}: {m}")
        about = {m: {"tokens": reader.about, "precision": precision} for m, reader in readers.items()}
        identity = {m: self._identity(m, about[m]) for m in modalities}
        if self.ranks.main:
            write_keys(build.folder, {m: split.table(m) for m in modalities}, identity)
        return summary

    def _fill_tokens(self, writer: TokenWriter, embedder: Embedder, label: str) -> dict[str, Any]:
        """Compute the missing shards, each rank its share; return what is recorded of the modality."""
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

    def write_aligned(self, name: str, split_name: str, build: Build) -> dict[str, Any]:
        """The store of one split as trained towers give it."""
        split, weights = self.data.split(split_name, _key_of(self.recipe, split_name)), self.layout.weights(name)
        frozen = Store(self.layout.frozen(split_name).path)
        plans = read_plans(weights)
        if {*plans} != {*self.modalities}:
            raise InputError(
                f"{weights}: has towers of {', '.join(plans)}, but this recipe's are {', '.join(self.modalities)}",
                "encoders.further must name what the weights were trained with.",
            )
        # A copy of its own: live towers get trained weights, and the frozen encoders must stay frozen.
        encoders = self._loaded([m for m, plan in plans.items() if plan.live])
        tokens = TokenStore(self.layout.tokens(split_name).path)
        dims = {m: self._dim(m, plan, encoders, frozen, tokens) for m, plan in plans.items()}
        identities = {m: frozen.identity[m] for m in self.modalities}
        precision = pick_precision(self.recipe.train.precision if self.recipe.train else "fp32", self.device)
        towers = load_towers(weights, encoders, dims, identities, precision).eval().to(self.device)
        inputs = Inputs(towers.plans, encoders, {split.name: frozen}, {split.name: tokens})
        size = self.recipe.embed.batch_size
        return self._write(
            build,
            self.layout.aligned(name, split_name).name,
            split,
            {"weights": str(weights), "encoders": frozen.identity},
            lambda m: tower_embedder(towers, inputs, m, split, self.device, size),
        )

    @staticmethod
    def _dim(m: str, plan: TowerPlan, encoders: dict[str, Encoder], frozen: Store, tokens: TokenStore) -> int:
        """The dimension of what a tower reads."""
        if plan.reads == "pooled":
            return frozen.array(m).shape[1]
        return encoders[m].token_reader(f"train.{m}.reads").dim if plan.live else tokens.array(m).dim

    def _write(
        self, build: Build, label: str, split: Split, identity: dict[str, Any], embedder_of: MakeEmbedder
    ) -> dict[str, Any]:
        """Fill the store of a split; return what is recorded of each modality."""
        spec, summary = self.recipe.embed, {}
        for modality in self.modalities:
            rows = len(split.table(modality))
            writer = ShardWriter(build.folder / modality, rows, spec.shard_rows, spec.dtype)
            embedder = embedder_of(modality)
            started = time.perf_counter()
            fill(writer, embedder, self.ranks, self.console, f"{label}: {modality}")
            speeds = self.ranks.all_gather(embedder.throughput.record())
            seconds = round(time.perf_counter() - started, 3)
            summary[modality] = {
                "rows": rows,
                "dim": StoredArray(writer.folder).shape[1],
                "seconds": seconds,
                **_together(speeds),
            }
        if self.ranks.main:
            write_keys(build.folder, {m: split.table(m) for m in self.modalities}, identity)
        return summary

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


def fill(writer: ShardWriter, embedder: Embedder, ranks: Ranks, console: Console, label: str) -> None:
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


def _key_of(recipe: Recipe, split_name: str) -> str:
    """The recipe's key that names a split."""
    return next((key for key, name in recipe.splits.items() if name == split_name), "data.unpaired")
