"""embed: from prepared data and encoders to the frozen stores, through trained towers to the aligned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.modalities import FROZEN, TOKENS
from cs_aligner_cli.encoders.availability import weight_files
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.evaluated_sets import evaluated_sets
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.embed.result import EmbedResult, StoreSummary
from cs_aligner_cli.stages.making import Made, Summary, joined, make, took_long

if TYPE_CHECKING:
    from cs_aligner_cli.stages.embed.job import EmbedJob


def embed(
    recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE, archive: bool = False
) -> EmbedResult:
    """Make every store that can be made now: frozen ones, those of tokens, and aligned ones once training is done.

    Raises InputError if the data are not prepared, an encoder does not load, or trained weights do not fit.
    """
    layout = Layout(recipe)
    ranks.broadcast(lambda: layout.prepared.current() is not None)
    stores = _Stores(layout, console, force, ranks, archive)
    made = {FROZEN: {split: stores.frozen(split) for split in layout.frozen_splits}}
    if layout.token_splits:
        made[TOKENS] = {split: stores.tokens(split) for split in layout.token_splits}
    if layout.pairing and recipe.train and recipe.train.reads_frozen(layout.modalities):
        made |= _unpaired(layout, stores)
    trained = ranks.broadcast(lambda: [name for name in layout.aligned_names if _can_align(layout, name)])
    for name in trained:
        made[name] = {split: stores.aligned(name, split) for split in layout.aligned_splits(name)}
    for name, other in evaluated_sets(layout).items():
        made |= _of_set(name, other, stores.of(other), trained)
    summaries = {
        name: {
            split: StoreSummary.model_validate({"status": part.status, **part.summary}) for split, part in by.items()
        }
        for name, by in made.items()
    }
    return EmbedResult(
        status=joined(*(part for by in made.values() for part in by.values())),
        stores=summaries,
        waiting_for_training=[name for name in layout.aligned_names if name not in made],
    )


def _unpaired(layout: Layout, stores: _Stores) -> dict[str, dict[str, Made]]:
    """Make the frozen stores of unpaired items from elsewhere, which must have the dimensions of the data set's own."""
    assert layout.recipe.train is not None and layout.recipe.data.unpaired is not None
    own = layout.frozen(layout.recipe.train.split)
    made: dict[str, dict[str, Made]] = {}
    for number, (name, other) in enumerate(layout.unpaired.items()):
        split = layout.recipe.data.unpaired.sources[number].split
        stores.ranks.broadcast(lambda other=other: other.prepared.current() is not None)  # type: ignore[misc]
        like = own, f"data.unpaired.sources.{number}"
        made[f"unpaired {name}"] = {split: stores.of(other).frozen(split, like)}
    return made


def _of_set(name: str, layout: Layout, stores: _Stores, trained: Sequence[str]) -> dict[str, dict[str, Made]]:
    """Make the stores of a further data set that the recipe is evaluated on, as SET:STORE."""
    stores.ranks.broadcast(lambda: layout.prepared.current() is not None)
    made = {f"{name}:{FROZEN}": {split: stores.frozen(split) for split in layout.frozen_splits}}
    if layout.token_splits:
        made[f"{name}:{TOKENS}"] = {split: stores.tokens(split) for split in layout.token_splits}
    for store in trained:
        made[f"{name}:{store}"] = {split: stores.aligned(store, split) for split in layout.aligned_splits(store)}
    return made


def _can_align(layout: Layout, name: str) -> bool:
    """Whether the weights of an aligned store are there."""
    return layout.recipe.embed.weights is not None or layout.trained(name).fresh() is not None


class _Stores:
    """The stores of one data set; what computes them (torch, the encoders) is loaded with the first that is made."""

    def __init__(self, layout: Layout, console: Console, force: bool, ranks: Ranks, archive: bool) -> None:
        self.layout, self.console, self.force, self.ranks, self.archive = layout, console, force, ranks, archive
        self.encoders_stamp = file_stamps(weight_files(layout.recipe))

    def of(self, layout: Layout) -> _Stores:
        """Those of another data set."""
        return _Stores(layout, self.console, self.force, self.ranks, self.archive)

    @cached_property
    def job(self) -> EmbedJob:
        from cs_aligner_cli.stages.embed.job import EmbedJob

        return EmbedJob(self.layout, self.console, self.ranks)

    def frozen(self, split: str, like: tuple[Artifact, str] | None = None) -> Made:
        """The store of one split as the encoders give it; ``like``: a store of equal dimensions, and who wants that."""

        def write(build: Build) -> Summary:
            if like is None:  # all splits of one data set are made, one after another
                self.job.require_splits()
            return self.job.write_frozen(split, build, like)

        return self._make(self.layout.frozen(split), write, self.encoders_stamp, self._placed_by)

    def tokens(self, split: str) -> Made:
        """The token store of one split: of the modalities whose towers read stored tokens."""

        def write(build: Build) -> Summary:
            return self.job.write_tokens(split, build)

        return self._make(self.layout.tokens(split), write, self.encoders_stamp, self._placed_by)

    def aligned(self, name: str, split: str) -> Made:
        """The store of one split as trained towers give it."""
        self.layout.weights(name)  # refuses where there are none

        def write(build: Build) -> Summary:
            return self.job.write_aligned(name, split, build)

        return self._make(self.layout.aligned(name, split), write)

    @property
    def _placed_by(self) -> str:
        """The key that names the folder of frozen and token stores, where one does."""
        return "embed.dir" if self.layout.recipe.embed.dir else ""

    def _make(
        self, artifact: Artifact, write: Callable[[Build], Summary], sources: str = "", placed_by: str = ""
    ) -> Made:
        archive = self.archive and (bool(placed_by) or self.ranks.broadcast(lambda: took_long(artifact)))
        return make(
            artifact,
            write,
            force=self.force,
            sources=sources,
            ranks=self.ranks,
            archive=archive,
            placed_by=placed_by,
        )
