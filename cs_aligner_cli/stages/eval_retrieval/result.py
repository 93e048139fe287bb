"""What eval-retrieval returns: every metric of every store with its interval, the protocol and the saved indexes."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.results import Frozen, Interval, Measured, StageResult, flattened
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.stages.formats import WAYS, cell, percent, with_interval


def reranked_name(store: str) -> str:
    """What a store is called in results where its first hits are reranked by the matching head."""
    return f"{store}+matching"


# By direction (i2t, t2i, both, mixed) and metric; parts of the mixed corpus stand one level deeper.
Metrics: TypeAlias = dict[str, dict[str, Measured | dict[str, Measured]]]
Intervals: TypeAlias = dict[str, dict[str, Interval | dict[str, Interval]]]


class RetrievalProtocol(Frozen):
    """All that a table's caption must say."""

    relevance: str
    hit: str
    galleries: int
    gallery_images: list[int]
    gallery_captions: list[int]
    mixed: str
    captions_per_image: int | str
    ties: str
    search: str
    precision: str
    intervals: str
    reranked: str = Field("", description="what was put in another order, by what; absent without reranking")


class SavedIndex(Frozen):
    """A FAISS index of one modality of a store."""

    factory: str = Field(description="what FAISS calls its kind")
    rows: int
    dim: int
    megabytes: float
    trained: str | None = None
    estimated_recall: float | None = Field(None, description="on a sample, before it was built")
    estimated_search_recall: float | None = None
    estimated_short: float | None = None
    recall: float = Field(alias="recall@10", description="share of the exact ten nearest that the saved file finds")
    search_recall: float = Field(alias="search_recall@10", description="share that csalign search finds")
    short: float = Field(description="queries for which the probed lists hold fewer rows than are wanted, a fraction")
    nprobe: int | None = Field(None, description="lists probed")
    efSearch: int | None = Field(None, description="effort of a search in a graph")  # noqa: N815 (FAISS's own name)


class Gain(Frozen):
    """What reranking adds to a share of hits, query by query, over images with their captions."""

    before: float
    after: float
    difference: float
    interval: Interval = Field(description="95%, of the difference")
    p: Measured = Field(description="of the hypothesis that it adds nothing; null where nothing can be said")
    p_holm: Measured = Field(description="corrected for all numbers of the store (Holm)")


class EvaluatedSplit(StageResult):
    """Retrieval in every store of one split."""

    split: str
    folder: str
    images: int
    captions: int
    protocol: RetrievalProtocol
    eval_retrieval: dict[str, Metrics] = Field(description="by store")
    intervals: dict[str, Intervals] = Field(description="95%, by store; empty without bootstrap")
    indexes: dict[str, dict[str, SavedIndex]] = Field(description="by store and modality")
    rerank: dict[str, dict[str, dict[str, Gain]]] = Field(
        {}, description="reranked less not, by store, direction and metric; absent without eval_retrieval.rerank"
    )
    edges: dict[str, dict[str, dict[str, dict[str, Measured]]]] = Field(
        description="between other pairs of modalities, by store, direction and metric"
    )
    notes: list[str]

    def numbers(self, what: str) -> Table:
        """Every metric with its 95% interval, store by store; fractions in percent."""
        stores = {s: {(way, m): v for way, m, v in flattened(found)} for s, found in self.eval_retrieval.items()}
        spans = {s: {(way, m): v for way, m, v in flattened(found)} for s, found in self.intervals.items()}
        rows = [
            (
                WAYS.get(way, way),
                metric.replace("_", " "),
                *(with_interval(metric, v.get((way, metric)), spans[s].get((way, metric))) for s, v in stores.items()),
            )
            for way, metric in next(iter(stores.values()))
        ]
        title = f"retrieval on {what}: {counted(self.images, 'images')}, {counted(self.captions, 'captions')}"
        title += "; fractions in %, [95% intervals]"
        return table(title, ["direction", "metric", *stores], rows, names=2)

    def gains(self, of: str = "") -> list[Table]:
        """What reranking adds, with its 95% interval and test; none without reranking."""
        rows = [
            (
                store,
                WAYS[way],
                metric,
                percent(gain.before),
                percent(gain.after),
                with_interval(metric, gain.difference, gain.interval),
                "" if gain.p_holm is None else f"{gain.p_holm:.2g}",
            )
            for store, ways in self.rerank.items()
            for way, metrics in ways.items()
            for metric, gain in metrics.items()
        ]
        title = f"{of}reranked by the matching head; in %, [95% intervals]"
        columns = ["store", "direction", "metric", "before", "after", "difference", "p (Holm)"]
        return [table(title, columns, rows, 3)] if rows else []


class RetrievalResult(EvaluatedSplit):
    """Retrieval in every store of the recipe's own split, and of further data sets."""

    sets: dict[str, EvaluatedSplit] = Field(
        {}, description="the same of every further data set of eval_retrieval.sets, without indexes; absent without"
    )

    def remarks(self) -> list[str]:
        """What was left out, and why."""
        return [*self.notes, *(f"{name}: {note}" for name, found in self.sets.items() for note in found.notes)]

    def tables(self) -> list[Table]:
        """Every metric with its 95% interval, store by store; fractions in percent."""
        numbers = self.numbers(f"split {self.split}")
        told = [(key.replace("_", " "), _listed(value)) for key, value in self.protocol.data().items()]
        return [
            numbers,
            *(found.numbers(f"{name}, split {found.split}") for name, found in self.sets.items()),
            *self.all_gains(),
            *self._edge_tables(),
            self._index_table(),
            table("protocol", ["what", "how"], told),
        ]

    def all_gains(self) -> list[Table]:
        """What reranking adds on the recipe's own split, then on every further data set."""
        return [*self.gains(), *(part for name, found in self.sets.items() for part in found.gains(f"{name}: "))]

    def _edge_tables(self) -> list[Table]:
        tables = []
        for edge, found in self.edges.items():
            ways = next(iter(found.values()), {})
            lines = [
                (
                    way.replace("_", " "),
                    metric.replace("_", " "),
                    *(cell(metric, v[way][metric]) for v in found.values()),
                )
                for way, metrics in ways.items()
                for metric in metrics
            ]
            tables.append(table(f"retrieval along the edge {edge}", ["direction", "metric", *found], lines, names=2))
        return tables

    def _index_table(self) -> Table:
        built = [
            (
                *(store, modality, index.factory, index.rows, f"{index.megabytes:.1f}"),
                *(percent(index.recall), percent(index.search_recall)),
            )
            for store, modalities in self.indexes.items()
            for modality, index in modalities.items()
        ]
        columns = ["store", "of", "index", "rows", "MB", "recall@10 by FAISS", "by csalign search"]
        return table("saved indexes", columns, built, names=2)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
