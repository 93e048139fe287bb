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
from cs_aligner_cli.retrieval.metrics import DIRECTIONS, QueryScores
from cs_aligner_cli.retrieval.mixed import MixedScores

Ids = Mapping[str, "pd.Series[str]"]
Records = dict[str, tuple[pd.DataFrame, pd.DataFrame]]
SIDES = {"i2t": ("image", "text"), "t2i": ("text", "image")}
_MIXED = "mixed_queries.parquet"


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


def read_mixed(folder: Path) -> pd.DataFrame | None:
    """The records of the mixed evaluation of one store; None where it has none."""
    return _read(folder / _MIXED) if (folder / _MIXED).exists() else None


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
