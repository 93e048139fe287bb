"""What every query of an evaluation scored, on disk: the input of paired tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import verify_file
from cs_aligner_cli.retrieval.bootstrap import Key, Statistic, mean_statistics, statistics
from cs_aligner_cli.retrieval.metrics import DIRECTIONS, QueryScores
from cs_aligner_cli.retrieval.mixed import MixedScores

Ids = Mapping[str, "pd.Series[str]"]
Records = dict[str, tuple[pd.DataFrame, pd.DataFrame]]
SIDES = {"i2t": ("image", "text"), "t2i": ("text", "image")}
_MIXED = "mixed_queries.parquet"
_KEYS = ["query", "image", "rank"]


def write_records(folder: Path, scores: Mapping[str, QueryScores], ids: Ids, clusters: Mapping[str, Any]) -> None:
    """Write ``DIRECTION_queries.parquet`` (query, image, rank, every metric) and ``DIRECTION_items.parquet`` (item,
    image, occurrence). ``ids`` name the images and texts, ``clusters`` say what each belongs to (Protocol.clusters);
    the column image is the image's id, or the caption's own for one without image."""
    names = np.concatenate([ids["image"].to_numpy(object), ids["text"].to_numpy(object)])
    for direction, (asking, answering) in SIDES.items():
        scored = scores[direction]
        queries = {
            "query": ids[asking].to_numpy()[scored.queries],
            "image": names[clusters[asking][scored.queries]],
            "rank": scored.ranks,
        }
        pd.DataFrame({**queries, **scored.values}).to_parquet(folder / f"{direction}_queries.parquet", index=False)
        items = {"item": ids[answering], "image": names[clusters[answering]], "occurrence": scored.occurrence}
        pd.DataFrame(items).to_parquet(folder / f"{direction}_items.parquet", index=False)


def write_mixed(folder: Path, scores: MixedScores, ids: Ids, owners: Any) -> None:
    """Write ``mixed_queries.parquet``: query (its image's id or its caption's), image, draw, and every metric as
    "GROUP METRIC"; empty where the query does not count in the group. The column image is the owner's name, ``owners``
    (n,) being those that ``scores.owner`` counts."""
    image, text = (ids[modality].to_numpy(object) for modality in ("image", "text"))
    of_text = scores.queries.text >= 0
    frame = {
        "query": np.where(of_text, text[scores.queries.text], image[scores.queries.image]),
        "image": owners[scores.owner],
        "draw": scores.draw,
    }
    values = {" ".join(key): column for key, column in scores.values.items()}
    pd.DataFrame({**frame, **values}).to_parquet(folder / _MIXED, index=False)


def mixed_statistics(a: Path, b: Path) -> tuple[dict[Key, Statistic], dict[Key, Statistic]] | None:
    """The mixed evaluations in two folders as statistics over the same images; None where one folder has none."""
    if not ((a / _MIXED).exists() and (b / _MIXED).exists()):
        return None
    ours, theirs = (_read(folder / _MIXED) for folder in (a, b))
    if not ours[["query", "draw"]].equals(theirs[["query", "draw"]]):
        raise InputError(
            "mixed: the two runs have other queries",
            "A paired test needs the same split of the same data, evaluated by the same protocol.",
        )
    owner = np.unique(ours["image"], return_inverse=True)[1]
    columns = [name for name in ours.columns if name not in ("query", "image", "draw")]
    first, second = (
        mean_statistics({_key(name): found[name].to_numpy(float) for name in columns}, owner)
        for found in (ours, theirs)
    )
    return first, second


def _key(column: str) -> Key:
    group, _, metric = column.rpartition(" ")
    return group, metric


def read_records(folder: Path) -> Records:
    """The records of one store, sorted by id; raise InputError if a file is missing or damaged."""
    found: Records = {}
    for direction in DIRECTIONS:
        frames = []
        for kind, key in (("queries", "query"), ("items", "item")):
            frames.append(_read(folder / f"{direction}_{kind}.parquet").sort_values(key, ignore_index=True))
        found[direction] = frames[0], frames[1]
    return found


def _read(path: Path) -> pd.DataFrame:
    verify_file(path)
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(f"{path}: {reason}", "Make it again: csalign eval-retrieval --force") from None


def paired_statistics(a: Records, b: Records) -> tuple[dict[Key, Statistic], dict[Key, Statistic]]:
    """Both evaluations as statistics over the same clusters; raise InputError unless their queries are the same."""
    for direction in DIRECTIONS:
        for ours, theirs, key in zip(a[direction], b[direction], ("query", "item"), strict=True):
            _same(ours, theirs, key, direction)
    clusters = pd.Index(np.unique(np.concatenate([f["image"].astype(str) for d in DIRECTIONS for f in a[d]])))
    ranks = {d: np.unique(np.concatenate([a[d][0]["rank"], b[d][0]["rank"]])) for d in DIRECTIONS}
    query_clusters = {d: clusters.get_indexer(a[d][0]["image"].astype(str)) for d in DIRECTIONS}
    item_clusters = {d: clusters.get_indexer(a[d][1]["image"].astype(str)) for d in DIRECTIONS}
    first, second = (
        statistics({d: _scores(*found[d]) for d in DIRECTIONS}, query_clusters, item_clusters, ranks)
        for found in (a, b)
    )
    return first, second


def _scores(queries: pd.DataFrame, items: pd.DataFrame) -> QueryScores:
    values = {name: queries[name].to_numpy(float) for name in queries.columns if name not in _KEYS}
    return QueryScores(np.arange(len(queries)), queries["rank"].to_numpy(), values, items["occurrence"].to_numpy())


def _same(ours: pd.DataFrame, theirs: pd.DataFrame, key: str, direction: str) -> None:
    if list(ours[key]) == list(theirs[key]) and list(ours["image"]) == list(theirs["image"]):
        return
    odd = sorted({*ours[key]} ^ {*theirs[key]})
    example = f", for example {odd[0]!r}" if odd else "; they belong to other images"
    plural = "queries" if key == "query" else "items"
    raise InputError(
        f"{direction}: the two runs have other {plural} ({len(ours)} and {len(theirs)}{example})",
        "A paired test needs the same split of the same data, evaluated by the same protocol.",
    )
