"""The stores that a gap report puts side by side: this run's, baselines on top of them, and those of other runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of
from cs_aligner_cli.gap.baselines import ONE_SPACE, fit_baselines
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.other_runs import refuse_other_items
from cs_aligner_cli.runs.unpaired import read_pairing
from cs_aligner_cli.stores.embeddings import NO_SPACE, Store, StoredArray

Features: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
# (modality, rows of the split's table) -> (len(rows), d)
Take: TypeAlias = Callable[[str, Ints], Features]


@dataclass(eq=False)
class Taken:
    """Rows of one modality of a store or baseline that are read when they are asked for (``retrieval.rows.Shards``)."""

    read: Take
    modality: str
    rows: Ints

    def __post_init__(self) -> None:
        self.shape: tuple[int, int] = (len(self.rows), self.take(np.zeros(1, np.int64)).shape[1])

    def take(self, rows: Ints) -> Features:
        """The rows asked for, counted among these, (len(rows), d)."""
        return self.read(self.modality, self.rows[rows])


class Compared(NamedTuple):
    """One column of the report: "store" of this run, "baseline" on top of one, or store of another "run"."""

    name: str
    kind: str
    base: str  # the store that a baseline is on top of; of others, their own name
    take: Take | None  # None: image and text rows share no space


def compared(layout: Layout, split: Split, notes: list[str]) -> Iterator[Compared]:
    """Yield what is put side by side on a split; ``notes`` says what is not.

    Stores come first: they can be measured while baselines are fitted. ``in_columns`` has the report's order. Raises
    InputError where another run's store holds other items than this run's.
    """
    own = {name: Store(artifact.path) for name, artifact in layout.stores(split.name).items()}
    for name, store in own.items():
        comparable = _share_space(layout, store)
        if not comparable:
            notes.append(f"{name}: {NO_SPACE}")
        yield Compared(name, "store", name, _take(layout, store, split) if comparable else None)
    for name, artifact in layout.beside.items():
        store = Store(artifact.path)
        refuse_other_items(f"gap_report.beside: {name}", store, split)
        if store.shares_space:
            yield Compared(name, "run", name, _take(layout, store, split))
        else:
            notes.append(f"{name}: {NO_SPACE}")
    for name, store in own.items():
        yield from _baselines(layout, name, store, split, notes)


def in_columns(stores: Sequence[Compared]) -> list[Compared]:
    """What ``compared`` yielded in the report's order: a store, then its baselines."""
    bases = [store.base for store in stores]
    return sorted(stores, key=lambda store: bases.index(store.base))


def of_seeds(layout: Layout, split: Split) -> Iterator[tuple[str, dict[str, Take]]]:
    """Yield the name of every run in gap_report.seeds, and what reads its stores of this split.

    Raises InputError where a store holds other items than this run's, or its modalities share no space.
    """
    for run, stores in layout.seeds.items():
        takes = {}
        for name, artifact in stores.items():
            store = Store(artifact.path)
            refuse_other_items(f"gap_report.seeds: {run}:{name}", store, split)
            if _share_space(layout, store):
                takes[name] = _take(layout, store, split)
        yield run, takes


def _arrays(layout: Layout, store: Store) -> dict[str, StoredArray]:
    """The arrays of the two modalities that are measured as image and text."""
    return {
        m: store.array(measured) for m, measured in zip(MODALITIES, layout.recipe.gap_report.modalities, strict=True)
    }


def _share_space(layout: Layout, store: Store) -> bool:
    return len({array.shape[1] for array in _arrays(layout, store).values()}) == 1


def _take(layout: Layout, store: Store, split: Split) -> Take:
    """What reads rows of a split's tables, in its view of the two modalities, from a store."""
    arrays = _arrays(layout, store)

    def take(modality: str, rows: Ints) -> Features:
        places = split.places.get(modality)
        return arrays[modality].take(rows if places is None else places[rows])

    return take


def _baselines(layout: Layout, name: str, store: Store, measured: Split, notes: list[str]) -> Iterator[Compared]:
    kinds, fit_split = layout.baselines.get(name, []), layout.fit_split
    if not kinds:
        return
    if fit_split is None:
        notes.append(
            f"{name}: no baselines, since no split with cached features is trained on; gap_report.baselines.split "
            "names one to fit them on."
        )
        return
    one_space = _share_space(layout, store)
    possible = [kind for kind in kinds if one_space or kind not in ONE_SPACE]
    if len(possible) < len(kinds):
        left_out = ", ".join(kind for kind in kinds if kind not in possible)
        notes.append(f"{name}: no {left_out}, which need towers of one dimension.")
    split = PreparedData(layout.prepared.path).split(fit_split, "gap_report.baselines.split")
    if layout.pairing and layout.recipe.train and fit_split == layout.recipe.train.split:
        split = read_pairing(layout.pairing.path).limited(split)  # a baseline may know no more pairs than training
    split = split.seen_as(layout.recipe.gap_report.modalities)
    captions = captions_of(split, np.arange(len(split.images)))
    captions = captions[evenly_spaced(len(captions), layout.recipe.gap_report.baselines.pairs)]
    fitted = Store(layout.stores(fit_split)[name].path)
    rows = {"image": split.image_of_caption[captions], "text": captions}
    pairs = [_take(layout, fitted, split)(m, rows[m]) for m in MODALITIES]
    take = _take(layout, store, measured)
    for kind, fitted_maps in fit_baselines(possible, *pairs).items():
        maps = dict(zip(MODALITIES, fitted_maps, strict=True))
        yield Compared(f"{name}+{kind}", "baseline", name, lambda m, r, f=maps: f[m](take(m, r)))  # type: ignore[misc]
