"""Judgement tables: which items answer a query, and how well, in a table of query, item and score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.data.tables import read_frame, text_column

COLUMNS = ("query", "item", "score")
# Looking for the nearest of a million ids takes minutes.
_MOST_COMPARED = 5000


class Judgements(NamedTuple):
    """The judged pairs of one direction, (P,) each: the row of the query, that of the item, and its score."""

    query: Ints
    item: Ints
    score: Floats


def read_judgements(path: Path, ids: Mapping[str, pd.Series[str]]) -> dict[str, Judgements]:
    """The judgements of a table (.csv, .tsv, .jsonl, .parquet; columns query, item, score) by direction.

    ``ids``: "image" and "text" to their ids. A row whose query is an image and whose item is a text belongs to "i2t",
    the reverse to "t2i"; a direction that the table does not judge is left out. Raises InputError for
    an unknown id, a pair of one modality, a score that is no finite number of at least 0, or a pair judged twice.
    """
    frame = read_frame(path, COLUMNS)
    query, item = (pd.Index(text_column(frame, name, path, required=True)) for name in ("query", "item"))
    score = scores_of(frame, path)
    repeated = pd.DataFrame({"query": query, "item": item}).duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        raise InputError(f"{path}: row {row} judges {query[row]!r} and {item[row]!r} a second time")
    indexes = {modality: pd.Index(known) for modality, known in ids.items()}
    places = {m: (index.get_indexer(query), index.get_indexer(item)) for m, index in indexes.items()}
    for which, column in enumerate((query, item)):
        unknown = (places["image"][which] < 0) & (places["text"][which] < 0)
        if unknown.any():
            raise _unknown(path, int(unknown.argmax()), COLUMNS[which], column, ids)
    found: dict[str, Judgements] = {}
    judges_none = np.ones(len(frame), bool)
    for direction, (asking, answering) in {"i2t": ("image", "text"), "t2i": ("text", "image")}.items():
        rows = (places[asking][0] >= 0) & (places[answering][1] >= 0)
        judges_none &= ~rows
        if rows.any():
            found[direction] = Judgements(places[asking][0][rows], places[answering][1][rows], score[rows])
    if judges_none.any():
        row = int(judges_none.argmax())
        raise InputError(f"{path}: row {row} judges {query[row]!r} and {item[row]!r}, which are of one modality")
    return found


def scores_of(frame: pd.DataFrame, path: Path) -> Floats:
    """(P,) the column ``score`` of judgements; InputError unless each is a finite number of at least 0."""
    score: Floats = pd.to_numeric(frame["score"], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(score) & (score >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"{path}: row {row} has the score {frame['score'][row]!r}; expected a number of at least 0")
    return score


def _unknown(path: Path, row: int, column: str, given: pd.Index[str], ids: Mapping[str, pd.Series[str]]) -> InputError:
    known = [str(name) for part in ids.values() for name in part.head(_MOST_COMPARED)]
    return InputError(
        f"{path}: row {row} (counted from 0): {column} {given[row]!r} is no image and no caption of the split"
        + did_you_mean(str(given[row]), known)
    )
