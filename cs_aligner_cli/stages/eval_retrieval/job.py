"""The work of eval-retrieval: every store of a split measured and indexed."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.results import finite, flattened
from cs_aligner_cli.common.safe_csv import csv_bytes
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.judgements import read_judgements
from cs_aligner_cli.data.manifest_splits import cut_ks
from cs_aligner_cli.data.mixbench import read_mixed_corpus
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.data.text_groups import text_groups
from cs_aligner_cli.encoders import pick_device
from cs_aligner_cli.files.artifact import write_bytes, write_json
from cs_aligner_cli.recipe.eval_retrieval import EvalRetrieval
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.retrieval.bootstrap import intervals, mean_statistics, statistics
from cs_aligner_cli.retrieval.corrections import ONE_SPACE, bank_of, corrected
from cs_aligner_cli.retrieval.index import plan_index
from cs_aligner_cli.retrieval.metrics import DIRECTIONS, summarise
from cs_aligner_cli.retrieval.mixed import (
    MIXED,
    Items,
    MixedTask,
    caption_tasks,
    label_tasks,
    mixed_means,
    mixed_scores,
    nested,
    task_of_pairs,
)
from cs_aligner_cli.retrieval.per_query import SIDES, Ids, write_mixed, write_records
from cs_aligner_cli.retrieval.protocol import (
    Evaluated,
    Protocol,
    Searched,
    caption_protocol,
    evaluate,
    judged,
    with_equal_texts,
)
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.scan import TruePairs
from cs_aligner_cli.retrieval.scores import pair_scores
from cs_aligner_cli.runs.evaluated_sets import EvaluatedSet
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.index_folder import index_keys, save_index
from cs_aligner_cli.stages.eval_retrieval.remarks import described, remarks
from cs_aligner_cli.stages.eval_retrieval.reranking import gains, reranker_of
from cs_aligner_cli.stages.eval_retrieval.result import reranked_name
from cs_aligner_cli.stores.embeddings import NO_SPACE, Store, nothing_to_compare


def write_results(layout: Layout, console: Console, folder: Path, indexed: bool) -> dict[str, Any]:
    """Evaluate and, if wanted, index every store into a folder; return the summary, which is written there too."""
    summary = _Job(layout.recipe, layout, console).run(folder, indexed)
    write_json(folder / "results.json", finite(summary))
    write_bytes(folder / "results.csv", csv_bytes(_long_table(summary)))
    return summary


def _fitting_ks(spec: EvalRetrieval, protocol: Protocol) -> tuple[EvalRetrieval, str]:
    """The settings with ks that fit the smallest gallery, and a note where they were cut to it."""
    smallest = min(min(len(images), len(texts)) for images, texts in protocol.galleries)
    ks = spec.ks_within(smallest, cut=True)
    if ks == spec.ks:
        return spec, ""
    held = counted(smallest, "items")
    note = f"eval_retrieval.ks: {spec.ks} was cut to {ks}: the smallest gallery holds {held}"
    return spec.model_copy(update={"ks": ks}), note


class _Job:
    """What the stores of one evaluation share: the split, the protocol, the device."""

    def __init__(self, recipe: Recipe, layout: Layout, console: Console) -> None:
        self.recipe, self.spec, self.layout, self.console = recipe, recipe.eval_retrieval, layout, console
        data = PreparedData(layout.prepared.path)
        self.root = data.root
        self.split = data.split(self.spec.split, "eval_retrieval.split")
        self.ids = {"image": self.split.images["image_id"], "text": self.split.captions["caption_id"]}
        protocol = caption_protocol(
            self.split.image_of_caption,
            len(self.split.images),
            len(self.split.captions),
            self.spec.folds,
            self.spec.captions_per_image,
        )
        self.groups = text_groups(self.split.captions["text"]) if recipe.data.groups == "text" else None
        if self.groups is not None:
            protocol = with_equal_texts(protocol, self.groups)
        if self.spec.relevance:
            for direction, found in read_judgements(self.spec.relevance, self.ids).items():
                protocol = judged(protocol, direction, *found)
        self.protocol: Protocol = protocol
        cut_ks(self.spec, len(self.split.images), len(self.split.captions), of_set=isinstance(layout, EvaluatedSet))
        self.spec, self.cut = _fitting_ks(self.spec, protocol)
        self.device = str(pick_device(self.spec.device))
        # What a mixed query is resampled with: its image, or itself.
        self.owners = self.ids["image"].to_numpy(object)
        self.mixed, self.mixed_protocol = self._mixed_tasks()

    def run(self, folder: Path, indexed: bool) -> dict[str, Any]:
        """Evaluate and, if wanted, index every store into ``folder``; return the summary."""
        stores = {name: Store(artifact.path) for name, artifact in self.layout.stores(self.split.name).items()}
        comparable = {name: store for name, store in stores.items() if store.shares_space}
        if not comparable:
            raise nothing_to_compare(self.split.name)
        for store in comparable.values() if indexed else ():
            for modality in MODALITIES:  # what cannot be built is refused before anything is searched
                plan_index(self.spec.index.kind, *store.array(modality).shape, self.spec.index.training_rows)
        results: dict[str, Any] = {}
        spans: dict[str, Any] = {}
        indexes: dict[str, Any] = {}
        reranked: dict[str, Any] = {}
        passes = len(comparable) * (1 + len(self.spec.corrections))
        passes += sum(name in self.layout.variants for name in comparable) if self.spec.rerank else 0
        rows = sum(len(images) for images, _ in self.protocol.galleries)
        with self.console.progress("searching", passes * rows) as advance:
            for name, store in comparable.items():
                arrays = {m: Rows(store.array(m), f"{name}, {m}") for m in MODALITIES}
                reranker, plain = reranker_of(self.layout, name, self.split, self.device), {}
                for label, searched in self._variants(name, arrays, reranker is not None):
                    head = reranker if label == reranked_name(name) else None
                    found = evaluate(
                        searched, self.protocol, tuple(self.spec.ks), self.spec.neighbors, self.device, advance, head
                    )
                    results[label], spans[label] = self._measure(found, folder / label)
                    if label == name:
                        plain = found
                    elif head:
                        reranked[name] = gains(plain, found, self._query_clusters(found))
                    if self.mixed and label.removeprefix(name) in ("", *(f"+{kind}" for kind in ONE_SPACE)):
                        self._add_mixed(searched["t2i"], folder / label, results[label], spans[label])
                    measure = "cosine" if head else "score"  # a reranked order is not that of its cosines
                    _write_neighbors(self.protocol, self.ids, searched, found, folder / label, measure)
                    if indexed and label == name:
                        indexes[name] = self._index(name, arrays, folder / name)
        notes = [f"{name}: {NO_SPACE}" for name in stores if name not in comparable]
        return {
            "split": self.split.name,
            "images": len(self.split.images),
            "captions": len(self.split.captions),
            "protocol": described(self.spec, self.protocol, self.mixed_protocol, self.device, self.recipe.data.groups),
            "eval_retrieval": results,
            "intervals": spans,
            "indexes": indexes,
            **({"rerank": reranked} if reranked else {}),
            "edges": self._edges(stores),
            "notes": notes + remarks(self.protocol, len(self.split.captions), self.layout, self.cut),
        }

    def _mixed_tasks(self) -> tuple[list[MixedTask], str]:
        """The corpora of both modalities, none where there can be none, and in words what they are."""
        spec, owner = self.spec.mixed, self.split.image_of_caption
        if spec is None:
            return [], "none"
        if spec.corpus:
            found = read_mixed_corpus(spec.corpus, self.split)
            corpus, queries = Items(*found.corpus), Items(*found.queries)
            task = task_of_pairs(corpus, queries, np.arange(len(found.query_ids)), TruePairs.of(*found.answers))
            self.owners = np.array(found.query_ids, object)
            return [task], f"queries, corpus and judgements of {spec.corpus}"
        texts = np.sort(np.concatenate([texts for _, texts in self.protocol.galleries]))
        how = f"{spec.draws} corpora, {spec.share:g} of the images as image, the others as a caption"
        if tasks := caption_tasks(owner, len(self.split.images), texts, spec.share, spec.draws, self.groups):
            equal = ", and so are images with an equal caption" if self.groups is not None else ""
            return tasks, f"{how}; right is the query's own image, whichever it stands as{equal}"
        if tasks := label_tasks(self.split.labels, owner, spec.share, spec.draws):
            return tasks, f"{how}; right is any other item of the query's class"
        return [], "none: no image has two captions, and no class two captioned images"

    def _add_mixed(self, pair: tuple[Rows, Rows], folder: Path, results: Any, spans: Any) -> None:
        """Retrieval from corpora of both modalities, beside a store's other numbers."""
        scores = mixed_scores(*pair, self.mixed, tuple(self.spec.ks), self.device)
        write_mixed(folder, scores, self.ids, self.owners)
        results[MIXED] = mixed_means(scores)
        if self.spec.bootstrap:
            found = intervals(mean_statistics(scores.values, scores.owner), self.spec.bootstrap, self.recipe.data_seed)
            spans[MIXED] = nested({(group, k): span for group, metrics in found.items() for k, span in metrics.items()})

    def _edges(self, stores: dict[str, Store]) -> dict[str, Any]:
        """Retrieval between any two modalities but images and texts, ranked in training or not, store by store."""
        edges: dict[str, Any] = {}
        for pair in combinations(self.layout.modalities, 2):
            edge = pair[::-1] if pair[0] == "text" else pair  # the first is the one of which an image has one item
            if pair == MODALITIES:
                continue
            seen = self.split.seen_as(edge)
            found = edges["-".join(edge)] = {}
            ks = self.spec.ks_within(min(len(seen.images), len(seen.captions)), cut=True)
            if ks != self.spec.ks:
                self.console.warn(f"{edge[0]} and {edge[1]}: eval_retrieval.ks: {self.spec.ks} is cut to {ks}")
            for name, store in stores.items():
                first, second = (store.array(modality) for modality in edge)
                if first.shape[1] == second.shape[1] and (seen.image_of_caption >= 0).any():
                    rows = first.take(seen.places["image"]), second.all()
                    metrics = evaluate_retrieval(*rows, seen.image_of_caption, ks, self.device)
                    found[name] = {
                        f"{edge[0]}_to_{edge[1]}": metrics["i2t"],
                        f"{edge[1]}_to_{edge[0]}": metrics["t2i"],
                    }
        return edges

    def _variants(self, name: str, arrays: dict[str, Rows], reranked: bool) -> list[tuple[str, Searched]]:
        """The plain cosine, the same to be reranked, then every correction asked for."""
        pair = arrays["image"], arrays["text"]
        labels = [name, reranked_name(name)] if reranked else [name]
        variants: list[tuple[str, Searched]] = [(label, dict.fromkeys(DIRECTIONS, pair)) for label in labels]
        if self.spec.corrections:
            spec = self.spec.query_bank
            store = Store(self.layout.stores(spec.split)[name].path)
            rows = [Rows(store.array(m), f"{name}, {m} of the query bank") for m in MODALITIES]
            bank = bank_of(rows[0], rows[1], spec.size, spec.neighbors, spec.beta, self.recipe.data_seed)
            variants += [(f"{name}+{kind}", corrected(kind, *pair, bank)) for kind in self.spec.corrections]
        return variants

    def _measure(self, found: dict[str, Evaluated], folder: Path) -> tuple[Any, Any]:
        """The numbers and intervals of one store; every query's own are written into ``folder``."""
        folder.mkdir(exist_ok=True)
        scores = {direction: way.scores for direction, way in found.items()}
        clusters = self.protocol.clusters
        write_records(folder, scores, self.ids, clusters)
        if not self.spec.bootstrap:
            return summarise(scores), {}
        query_clusters = self._query_clusters(found)
        item_clusters = {d: clusters[SIDES[d][1]] for d in scores}
        found_statistics = statistics(scores, query_clusters, item_clusters)
        return summarise(scores), intervals(found_statistics, self.spec.bootstrap, self.recipe.data_seed)

    def _query_clusters(self, found: dict[str, Evaluated]) -> dict[str, Ints]:
        return {d: self.protocol.clusters[SIDES[d][0]][way.scores.queries] for d, way in found.items()}

    def _index(self, name: str, arrays: dict[str, Rows], folder: Path) -> dict[str, Any]:
        return {
            modality: save_index(
                folder / modality,
                modality,
                arrays[modality],
                arrays[other],
                index_keys(self.split, modality, self.root),
                self.spec.index,
                self.recipe.data_seed,
                self.layout.source_of(name, self.split.name),
                self.console.say,
            )
            for modality, other in SIDES.values()
        }


def _write_neighbors(
    protocol: Protocol, ids: Ids, searched: Searched, found: dict[str, Evaluated], folder: Path, measure: str
) -> None:
    """The best items of every row in the order found, and the search's value of each, in a column named ``measure``."""
    for direction, (asking, answering) in SIDES.items():
        top = found[direction].top_ids
        query, place = np.nonzero(top >= 0)
        item = top[query, place]
        queries, items = searched[direction] if direction == "i2t" else searched[direction][::-1]
        pairs = protocol.pairs[direction]
        width = len(ids[answering])
        graded = protocol.grades.get(direction)
        true = graded > protocol.relevant_above if graded is not None else np.ones(len(pairs), bool)
        known = pairs.query[true] * width + pairs.item[true]
        table = pd.DataFrame(
            {
                "query": ids[asking].to_numpy()[query],
                "rank": place + 1,
                "neighbor": ids[answering].to_numpy()[item],
                measure: pair_scores(queries, items, query, item),
                "true": np.isin(query * width + item, known),
            }
        )
        table.to_parquet(folder / f"{asking}_neighbors.parquet", index=False)


def _long_table(summary: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for store, directions in summary["eval_retrieval"].items():
        spans = {(way, metric): span for way, metric, span in flattened(summary["intervals"][store])}
        rows += [
            (store, way, metric, value, *spans.get((way, metric), (None, None)))
            for way, metric, value in flattened(directions)
        ]
    return pd.DataFrame(rows, columns=["store", "direction", "metric", "value", "low", "high"])
