"""embed: from prepared data and encoders to the frozen stores, through trained towers to the aligned ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.artifacts import Artifact, file_stamps
from cs_aligner_cli.checkpoint import load_towers, read_plans
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.batches import Rows, prefetched
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.encoders import Encoder, embed_rows, load_encoders, pick_device, weight_files
from cs_aligner_cli.layout import FROZEN, MODALITIES, Layout
from cs_aligner_cli.recipe import Recipe
from cs_aligner_cli.store import ShardWriter, Store, write_keys
from cs_aligner_cli.towers import Inputs, embed_split

# (modality, rows of the split's table) -> float32 embeddings (len(rows), d)
EmbedRows: TypeAlias = Callable[[str, Rows], npt.NDArray[np.float32]]


def embed(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Make every store that can be made now: the frozen ones, and the aligned ones once training is done.

    Returns {"status": done or fresh, "stores": {name: {split: summary}}, "waiting_for_training": [name]}.
    Raises InputError if the data are not prepared, an encoder does not load, or trained weights do not fit.
    """
    layout = Layout(recipe)
    layout.prepared.require()
    job = _Job(recipe, layout, console, force)
    stores = {FROZEN: {split: job.frozen(split) for split in layout.frozen_splits}}
    for name in layout.aligned_names:
        if recipe.embed.weights or layout.trained(name).fresh() is not None:
            stores[name] = {split: job.aligned(name, split) for split in layout.aligned_splits(name)}
    waiting = [name for name in layout.aligned_names if name not in stores]
    done = any(summary["status"] == "done" for splits in stores.values() for summary in splits.values())
    return {"status": "done" if done else "fresh", "stores": stores, "waiting_for_training": waiting}


class _Job:
    """What the stores of one command share: the tables, the frozen encoders (loaded late), the device."""

    def __init__(self, recipe: Recipe, layout: Layout, console: Console, force: bool) -> None:
        self.recipe, self.layout, self.console, self.force = recipe, layout, console, force
        self.data = PreparedData(layout.prepared.path)
        self.device = pick_device(recipe.embed.device)

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        return load_encoders(self.recipe, self.data, self.device)

    def frozen(self, split_name: str) -> dict[str, Any]:
        """The store of one split as the encoders give it."""
        split = self.data.split(split_name, self._key_of(split_name))

        def start() -> tuple[EmbedRows, dict[str, Any]]:
            identity = {m: encoder.identity for m, encoder in self.encoders.items()}
            return lambda modality, rows: self._encode(self.encoders[modality], split, rows), identity

        sources = file_stamps(weight_files(self.recipe))
        return self._store(self.layout.frozen(split_name), split, sources, start)

    def aligned(self, name: str, split_name: str) -> dict[str, Any]:
        """The store of one split as trained towers give it."""
        split = self.data.split(split_name, self._key_of(split_name))
        weights = self.layout.weights(name)

        def start() -> tuple[EmbedRows, dict[str, Any]]:
            frozen = Store(self.layout.frozen(split_name).path)
            dims = {m: frozen.array(m).shape[1] for m in MODALITIES}
            live = any(plan.tune == "full" for plan in read_plans(weights).values())
            # A copy of its own: live towers get trained weights, and the frozen encoders must stay frozen.
            encoders = load_encoders(self.recipe, self.data, self.device) if live else {}
            towers = load_towers(weights, encoders, dims).to(self.device)
            inputs = Inputs(towers.plans, encoders, {split.name: frozen})
            size = self.recipe.embed.batch_size
            identity = {"weights": str(weights), "encoders": frozen.identity}
            return lambda m, rows: embed_split(towers, inputs, m, split, rows, self.device, size), identity

        own = file_stamps([weights]) if self.recipe.embed.weights and weights.is_file() else ""
        return self._store(self.layout.aligned(name, split_name), split, own, start)

    def _key_of(self, split_name: str) -> str:
        """The recipe's key that names a split."""
        recipe, train = self.recipe, self.recipe.train
        named = {"eval_retrieval.split": recipe.eval_retrieval.split, "gap_report.split": recipe.gap_split}
        if train is not None and recipe.trains:
            named = {"train.split": train.split, "train.val_split": train.val_split or "", **named}
        named["gap_report.baselines.split"] = recipe.gap_report.baselines.split or ""
        return next(key for key, name in named.items() if name == split_name)

    def _store(
        self,
        artifact: Artifact,
        split: Split,
        sources: str,
        start: Callable[[], tuple[EmbedRows, dict[str, Any]]],
    ) -> dict[str, Any]:
        record = None if self.force else artifact.fresh(sources)
        if record is not None:
            return {"status": "fresh", **record["summary"]}
        spec = self.recipe.embed
        embed_rows_of, identity = start()
        with artifact.building(sources) as build:
            for modality in MODALITIES:
                rows = len(split.table(modality))
                writer = ShardWriter(build.folder / modality, rows, spec.shard_rows, spec.dtype)
                missing = list(writer.missing())
                kept = rows - sum(len(part) for _, part in missing)
                with self.console.progress(f"{artifact.name}: {modality}", rows, done=kept) as advance:
                    for number, part in missing:
                        writer.write(number, self._in_batches(embed_rows_of, modality, part, advance))
                build.summary[modality] = {"rows": rows, "dim": Store(build.folder).array(modality).shape[1]}
            write_keys(build.folder, {m: split.table(m) for m in MODALITIES}, identity)
        return {"status": "done", **build.summary}

    def _in_batches(
        self, embed_rows_of: EmbedRows, modality: str, rows: Rows, advance: Callable[..., None]
    ) -> npt.NDArray[np.float32]:
        # A few batches a time, so that the progress moves and loading overlaps with the encoder.
        chunk = 8 * self.recipe.embed.batch_size
        blocks = []
        for begin in range(0, len(rows), chunk):
            blocks.append(embed_rows_of(modality, rows[begin : begin + chunk]))
            advance(len(blocks[-1]))
        return np.concatenate(blocks)

    def _encode(self, encoder: Encoder, split: Split, rows: Rows) -> npt.NDArray[np.float32]:
        size, table = self.recipe.embed.batch_size, split.table(encoder.modality)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        loaded = prefetched(lambda i: encoder.load(table.iloc[parts[i]]), range(len(parts)))
        precision = self.recipe.embed.precision
        return np.concatenate([embed_rows(encoder.module, batch, self.device, precision) for batch in loaded])
