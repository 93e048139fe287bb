"""pair-score: which encoders fit best, judged by the pairs at hand before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import FROZEN, MODALITIES
from cs_aligner_cli.common.results import Frozen
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.encoders.hub import describe_encoder, same_encoder
from cs_aligner_cli.gap.pair_scores import FOLDS, score_pair
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.other_runs import finished_stores, refuse_other_items
from cs_aligner_cli.runs.unpaired import read_pairing
from cs_aligner_cli.stages.formats import percent
from cs_aligner_cli.stores.embeddings import Store

# More pairs than these change no choice and cost neighbours and decompositions.
MAX_PAIRS = 5000
_Interval = tuple[float, float]


class ScoredPair(Frozen):
    """Two encoders, and how well they fit; fractions, with intervals of 95%."""

    image: str = Field(description="the run whose frozen store has the image encoder")
    text: str = Field(description="the run whose frozen store has the text encoder")
    image_layers: list[int] = Field(description="which of its layers; none: the encoder's one embedding")
    text_layers: list[int] = Field(description="likewise")
    image_encoder: str
    text_encoder: str
    cca_recall: float = Field(description="R@1, the mean of both ways, of CCA on pairs that it was not fitted on")
    cca_recall_interval: _Interval
    mutual_knn: float = Field(description="share of the 10 nearest neighbours that both modalities agree on")
    mutual_knn_interval: _Interval
    cka: float = Field(description="linear CKA")
    cka_shuffled: float = Field(description="the same after the pairs are shuffled: what dimensions alone give")


class PairScoreResult(Frozen):
    """Candidate encoders by what is expected of them, the best first."""

    split: str
    pairs: int
    gallery: int = Field(description="candidates that a query of the cross-validation is asked among")
    folds: int
    scores: list[ScoredPair]
    notes: list[str]

    def tables(self) -> list[Table]:
        """A line for each pair of encoders."""
        rows = [
            (
                f"{_called(one.image, one.image_layers)} x {_called(one.text, one.text_layers)}",
                percent(one.cca_recall),
                _range(one.cca_recall_interval),
                percent(one.mutual_knn),
                _range(one.mutual_knn_interval),
                percent(one.cka),
                percent(one.cka_shuffled),
            )
            for one in self.scores
        ]
        title = f"split {self.split}: {self.pairs} pairs, R@1 among {self.gallery}, {self.folds} folds (in %)"
        columns = ["image x text", "CCA R@1", "95%", "kNN", "95%", "CKA", "shuffled"]
        return [table(title, columns, rows)]


class _Candidate(NamedTuple):
    """An encoder, or some of its layers: ``columns`` of a store's rows."""

    run: str
    modality: str
    identity: dict[str, Any]
    columns: slice
    store: Store

    @property
    def layers(self) -> list[int]:
        return self.identity.get("layers", [])  # type: ignore[no-any-return]


def pair_score(recipe: Recipe, console: Console, beside: Sequence[Path] = ()) -> PairScoreResult:
    """Score every image encoder with every text encoder among this recipe's frozen store and those of other runs.

    A store of several layers brings each of them, and all side by side. The pairs are those of the training split that
    training may know, one caption of each image. Raises InputError if a store is missing or stale, or holds other
    items.
    """
    layout = Layout(recipe)
    name = recipe.train.split if recipe.train else recipe.eval_retrieval.split
    key = "train.split" if recipe.train else "eval_retrieval.split"
    layout.frozen(name).require()
    split = PreparedData(layout.prepared.path).split(name, key)
    known = split
    if layout.pairing and recipe.train:
        layout.pairing.require()
        known = read_pairing(layout.pairing.path).limited(split)
    notes: list[str] = []
    found = [*_candidates(layout, split, beside, notes)]
    images, texts = ([one for one in found if one.modality == m] for m in MODALITIES)
    rows = [side[evenly_spaced(len(side), MAX_PAIRS)] for side in known.pairs]
    pictures, captions = ([*_taken(side, r)] for side, r in zip((images, texts), rows, strict=True))
    scores, gallery = [], 0
    with console.progress("scoring encoders", len(images) * len(texts)) as advance:
        for (image, x), (text, y) in product(zip(images, pictures, strict=True), zip(texts, captions, strict=True)):
            one = score_pair(x, y, recipe.data_seed)
            gallery = one.gallery
            scores.append(
                ScoredPair(
                    image=image.run,
                    text=text.run,
                    image_layers=image.layers,
                    text_layers=text.layers,
                    image_encoder=describe_encoder(image.identity),
                    text_encoder=describe_encoder(text.identity),
                    cca_recall=one.recall,
                    cca_recall_interval=one.recall_interval,
                    mutual_knn=one.mutual_knn,
                    mutual_knn_interval=one.mutual_knn_interval,
                    cka=one.cka,
                    cka_shuffled=one.cka_shuffled,
                )
            )
            advance()
    scores.sort(key=lambda one: -one.cca_recall)
    return PairScoreResult(split=name, pairs=len(rows[0]), gallery=gallery, folds=FOLDS, scores=scores, notes=notes)


def _candidates(layout: Layout, split: Split, beside: Sequence[Path], notes: list[str]) -> Iterator[_Candidate]:
    """Every encoder once: this recipe's own, and those of other runs that differ from all before."""
    stores = {layout.recipe.folder.name: Store(layout.frozen(split.name).path)}
    for folder in beside:
        frozen = finished_stores(folder, split.name).get(FROZEN)
        if frozen is None:
            raise InputError(
                f"--beside {folder} holds no finished frozen store of split {split.name!r} in embeddings/",
                "Name the folder of a run whose embed stage has ended, as in runs/NAME.",
            )
        if folder.name in stores:
            raise InputError(f"--beside: two folders are named {folder.name}", "Rename one of them.")
        store = Store(frozen.path)
        refuse_other_items(f"--beside {folder.name}", store, split)
        stores[folder.name] = store
    seen: dict[str, list[_Candidate]] = {m: [] for m in MODALITIES}
    for run, m in product(stores, MODALITIES):
        for one in _parts(run, m, stores[run]):
            twin = next((other for other in seen[m] if same_encoder(other.identity, one.identity)), None)
            if twin is not None:
                which = f"layer {one.layers[0]} of its" if len(one.layers) == 1 else "its"
                notes.append(f"{run}: {which} {m} encoder is that of {twin.run}")
                continue
            seen[m].append(one)
            yield one


def _parts(run: str, modality: str, store: Store) -> Iterator[_Candidate]:
    """What a store has of a modality: the encoder's embedding and, of several layers, each alone."""
    identity = store.identity[modality]
    yield _Candidate(run, modality, identity, slice(None), store)
    layers, widths = identity.get("layers", []), identity.get("widths", [])
    for i, (number, width) in enumerate(zip(layers, widths, strict=True)) if len(layers) > 1 else ():
        start = sum(widths[:i])
        of_layer = {**identity, "layers": [number], "widths": [width]}
        yield _Candidate(run, modality, of_layer, slice(start, start + width), store)


def _taken(candidates: Sequence[_Candidate], rows: Ints) -> Iterator[npt.NDArray[np.floating]]:
    """These rows of each candidate of one modality: parts of one array for all that a store has of it."""
    stores: dict[str, npt.NDArray[np.floating]] = {}
    for one in candidates:
        if one.run not in stores:
            stores[one.run] = one.store.array(one.modality).take(rows)
        yield stores[one.run][:, one.columns]


def _called(run: str, layers: list[int]) -> str:
    return f"{run}[{'+'.join(map(str, layers))}]" if layers else run


def _range(interval: _Interval) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"
