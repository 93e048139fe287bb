"""search: the nearest images or captions of a split, for sentences, photos and known ids, from the saved index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from cs_aligner_cli.common.arguments import as_whole
from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.results import Frozen
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.images import BadImageError, read_image
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.data.thumbnails import photo_in
from cs_aligner_cli.encoders import pick_device
from cs_aligner_cli.files.artifact import write_bytes
from cs_aligner_cli.recipe.matching import Rerank
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.retrieval import search as nearest
from cs_aligner_cli.retrieval.rerank import by_score
from cs_aligner_cli.retrieval.scores import Scores
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.index_folder import index_keys, open_index
from cs_aligner_cli.search.page import render_search_page
from cs_aligner_cli.search.query_encoder import QueryEncoder, require_encoder
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.matching_head import Items, Matcher, load_matcher

_K = 10
_OTHER = {"image": "text", "text": "image"}


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for; several of each may be given at once.

    ``k`` is None for 10, or the whole gallery where it is smaller; ``gallery`` is "image", "text" or None (the modality
    that the query is not of); ``photos`` is where the photos lie by their ids, for data sets of stored features. With
    ``rerank`` the first hits of a store with a matching head are put in its order, where eval_retrieval.rerank does so.
    """

    texts: Sequence[str] = ()
    images: Sequence[Path] = ()
    ids: Sequence[str] = ()
    k: int | None = None
    store: str | None = None
    gallery: str | None = None
    photos: Path | None = None
    html: Path | None = None
    rerank: bool = True


class Neighbor(Frozen):
    """One item that was found."""

    rank: int
    score: float = Field(description="the cosine")
    matching_logit: float | None = Field(
        None, description="of a reranked query, the matching head's logit, which orders the first hits; null beyond"
    )
    id: str
    image_id: str
    image_path: str
    caption: str


class Answered(Frozen):
    """One query and its nearest items."""

    query: str
    modality: str
    image_path: str
    gallery: str = Field(description="the modality that was searched")
    index: str = Field(description="what FAISS calls its kind")
    reranked: int = Field(0, description="how many first hits by cosine the matching head put in order; 0: none")
    results: list[Neighbor]


class SearchResult(Frozen):
    """What was found in the index of one store."""

    store: str
    split: str
    k: int = Field(description="how many were asked for, else 10 or the largest gallery searched where that is smaller")
    queries: list[Answered]
    html: str = Field("", description="the page, where one was wanted")

    def tables(self) -> list[Table]:
        """The nearest items of each query."""
        return [self._table(query) for query in self.queries]

    def _table(self, query: Answered) -> Table:
        about, score, logits = f"nearest {query.gallery}s of {self.store}", "score", []
        if query.reranked:
            about += f", the first {query.reranked} in the order of the matching head"
            score, logits = "cosine", ["matching logit"]
        # Stored features have no files, and a column without any word would narrow the captions.
        path = ["path"] if any(r.image_path for r in query.results) else []
        return table(
            f"{query.modality}: {query.query} ({about})",
            ["id", "rank", *logits, score, "caption", *path],
            [
                (
                    r.id,
                    r.rank,
                    *[_logit(r.matching_logit) for _ in logits],
                    f"{r.score:.3f}",
                    _short(r.caption),
                    *[r.image_path for _ in path],
                )
                for r in query.results
            ],
        )


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:45]}..."


def _logit(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class _Query:
    """One query: its unit row (1, d) and, where a matching head judges, what its towers make of the item."""

    modality: str
    text: str
    path: str
    row: torch.Tensor
    item: Items | None = None


def search(recipe: Recipe, console: Console, request: SearchRequest) -> SearchResult:
    """Search the index that eval-retrieval saved; return per query its k best with ids, paths and captions.

    Raises InputError if nothing is asked, a query is empty, unknown or unreadable, there is no fresh index, its store
    has changed, what is read is damaged, k is larger than the gallery, or the encoder is stored features and cannot
    embed a new item.
    """
    _refuse(request)
    layout = Layout(recipe)
    summary = layout.retrieval.require()["summary"]
    store = _store(request.store, list(summary["indexes"]))
    data = PreparedData(layout.prepared.path)
    split = data.split(recipe.eval_retrieval.split, "eval_retrieval.split")
    matcher = _matcher(layout, store, split) if request.rerank else None
    queries = [*_known(request, layout, data, split, store, matcher), *_new(request, recipe, store, matcher)]
    opened: dict[str, tuple[Any, pd.DataFrame, dict[str, Any]]] = {}
    results = []
    with console.progress("searching", len(queries)) as advance:
        for query in queries:
            gallery = request.gallery or _OTHER[query.modality]
            if gallery not in opened:
                folder = layout.retrieval.path / store / gallery
                opened[gallery] = open_index(folder, gallery, layout.source_of(store, split.name))
            index, keys, described = opened[gallery]
            k = min(_K, index.ntotal) if request.k is None else request.k
            hits = _hits(index, query, gallery, k, matcher, recipe.eval_retrieval.rerank)
            results.append(
                Answered(
                    query=query.text or query.path,
                    modality=query.modality,
                    image_path=query.path,
                    gallery=gallery,
                    index=described["factory"],
                    reranked=hits.judged,
                    results=_found(keys, hits, request.photos),
                )
            )
            advance()
    page = {"html": str(request.html)} if request.html is not None else {}
    k = max(len(answered.results) for answered in results)
    found = SearchResult(store=store, split=split.name, k=k, queries=results, **page)
    if request.html is not None:
        background = Store(layout.stores(split.name)[store].path).background
        write_bytes(request.html, render_search_page(recipe.name, found.data(), background).encode())
    return found


def _refuse(request: SearchRequest) -> None:
    if not (request.texts or request.images or request.ids):
        raise InputError("nothing is asked", 'Give --text "a sentence", --image FILE or --id ID.')
    if request.k is not None:
        as_whole(request.k, "k")
    for option, values in (("--text", request.texts), ("--id", request.ids)):
        if any(not value.strip() for value in values):
            raise InputError(f"{option}: the query is empty")
        if broken := next((value for value in values if not _is_unicode(value)), None):
            raise InputError(f"{option} {broken}: is no text in UTF-8")
    for path in request.images:
        try:
            read_image(path)
        except BadImageError as error:
            raise InputError(f"--image {path}: {error}") from None
    if request.gallery not in (None, *MODALITIES):
        raise InputError(
            f"--gallery {request.gallery}: expected image or text{did_you_mean(request.gallery or '', MODALITIES)}"
        )
    if request.html is not None and request.html.suffix.lower() != ".html":
        raise InputError(f"--html {request.html}: expected the name of an .html file")


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8: bytes of the command line that are none come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _store(given: str | None, there: list[str]) -> str:
    if given is None:
        return "aligned" if "aligned" in there else there[-1]
    if given not in there:
        raise InputError(f"--store {given}: no such index{did_you_mean(given, there)}")
    return given


def _matcher(layout: Layout, store: str, split: Split) -> Matcher | None:
    """What judges the pairs of a store, where the recipe reranks it."""
    spec = layout.recipe.eval_retrieval
    if spec.rerank is None or store not in layout.variants:
        return None
    layout.tokens(split.name).require()
    return load_matcher(layout, store, split, str(pick_device(spec.device)))


def _known(
    request: SearchRequest, layout: Layout, data: PreparedData, split: Split, store: str, matcher: Matcher | None
) -> list[_Query]:
    """The queries that are rows of the split, with their stored embeddings."""
    if not request.ids:
        return []
    artifact = layout.stores(split.name)[store]
    artifact.require()
    arrays = Store(artifact.path)
    tables = {modality: index_keys(split, modality, data.root) for modality in MODALITIES}
    places = {"image": pd.Index(split.images["image_id"]), "text": pd.Index(split.captions["caption_id"])}
    found = []
    for name in request.ids:
        modality = next((m for m in MODALITIES if name in places[m]), None)
        if modality is None:
            raise _unknown(name, data, split)
        rows = np.flatnonzero(places[modality] == name)[:1]
        embedded = l2_normalize(torch.from_numpy(arrays.array(modality).take(rows)))
        item = matcher.items(modality, rows) if matcher else None
        key = tables[modality].iloc[int(rows[0])]
        text = str(key["caption"]) if modality == "text" else name
        path = _path(key, request.photos) if modality == "image" else ""
        found.append(_Query(modality, text, path, embedded, item))
    return found


def _unknown(name: str, data: PreparedData, split: Split) -> InputError:
    for items, column in ((data.images, "image_id"), (data.captions, "caption_id")):
        ids = items[column].astype(str)
        found = ids == name if (ids == name).any() else ids.str.rpartition(".")[0] == name  # or without its suffix
        elsewhere = items.loc[found & (items["split"] != split.name), "split"]
        if len(elsewhere):
            return InputError(
                f"--id {ids[elsewhere.index[0]]}: is of split {elsewhere.iloc[0]!r}, and what is searched is split"
                f" {split.name!r}",
                f"Name an item of {split.name}, or add --set eval_retrieval.split={elsewhere.iloc[0]} here and to"
                " csalign eval-retrieval.",
            )
    known = [*split.images["image_id"][:5000], *split.captions["caption_id"][:5000]]
    return InputError(f"--id {name}: no image and no caption of split {split.name!r}{did_you_mean(name, known)}")


def _new(request: SearchRequest, recipe: Recipe, store: str, matcher: Matcher | None) -> list[_Query]:
    """The queries that must be embedded first."""
    if not (request.texts or request.images):
        return []
    for modality, items in (("text", request.texts), ("image", request.images)):
        if items:
            require_encoder(recipe, modality, "Search for an item of the split: --id ID.")
    encoder = QueryEncoder(recipe, store)
    wanted = {"text": list(request.texts), "image": [str(path.resolve()) for path in request.images]}
    found = []
    for modality, items in wanted.items():
        if not items:
            continue
        judged: list[Items | None] = [None] * len(items)
        if matcher:
            together = matcher.new_items(modality, encoder.tokens(modality, items))
            rows = together.rows.cpu()
            judged = [together.take(torch.tensor([i])) for i in range(len(items))]
        else:
            rows = encoder.embed(modality, items)
        for item, row, own in zip(items, rows, judged, strict=True):
            text, path = (item, "") if modality == "text" else ("", item)
            found.append(_Query(modality, text, path, row[None], own))
    return found


class _Hits(NamedTuple):
    """Rows of an index in the order of the answer, with cosines, and the logits of those that the head judged."""

    rows: Ints
    cosines: Scores
    logits: list[float | None]
    judged: int


def _hits(index: Any, query: _Query, gallery: str, k: int, matcher: Matcher | None, spec: Rerank | None) -> _Hits:
    """The k best of one query; items of the other modality in the order of a matching head, where there is one."""
    judged = min(spec.top_k, index.ntotal) if spec and matcher and gallery != query.modality else 0
    cosines, rows = (found[0] for found in nearest(index, query.row, max(k, judged) if k > 0 else k))
    if not judged:
        return _Hits(rows, cosines, [None] * k, 0)
    assert matcher and query.item
    logits = matcher.of_item(query.item, query.modality, rows[:judged])
    order = np.concatenate([by_score(logits[None])[0], np.arange(judged, len(rows))])[:k]
    return _Hits(rows[order], cosines[order], [float(logits[i]) if i < judged else None for i in order], judged)


def _found(keys: pd.DataFrame, hits: _Hits, photos: Path | None) -> list[Neighbor]:
    found = zip(hits.cosines, hits.logits, keys.iloc[hits.rows].iterrows(), strict=True)
    return [
        Neighbor(
            rank=rank,
            score=float(score),
            **({"matching_logit": logit} if hits.judged else {}),
            id=str(key.get("caption_id", key["image_id"])),
            image_id=str(key["image_id"]),
            image_path=_path(key, photos),
            caption=str(key["caption"]),
        )
        for rank, (score, logit, (_, key)) in enumerate(found, 1)
    ]


def _path(key: Any, photos: Path | None) -> str:
    if photos is not None and key["image_id"]:
        return str(photo_in(photos, str(key["image_id"])) or "")
    return str(key["image_path"])
