"""The saved index of one modality of a store: a folder that plain FAISS, clip-retrieval and csalign search open.

image.index               the FAISS index (or a folder, with the lists on disk)
metadata/metadata_0.parquet   row i names row i: image_id, image_path, caption (and caption_id)
index.json                what it is, what it takes, what it loses, and the store it was built from
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.files.artifact import read_json, write_json
from cs_aligner_cli.recipe.eval_retrieval import Index
from cs_aligner_cli.retrieval.index import (
    build_index,
    effort_of,
    plan_index,
    read_index,
    recall_against,
    search,
    search_as_saved,
    write_index,
)
from cs_aligner_cli.retrieval.rows import Part, Rows
from cs_aligner_cli.retrieval.scan import TruePairs, scan

METADATA = "metadata/metadata_0.parquet"
_DESCRIPTION = "index.json"
_K = 10
# Rows of the trial that estimates the recall, and queries that measure it.
_TRIAL_ROWS, _QUERIES = 20000, 1000


def save_index(
    folder: Path,
    modality: str,
    rows: Rows,
    queries: Rows,
    keys: pd.DataFrame,
    spec: Index,
    seed: int,
    source: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Build the index of ``rows`` in ``folder``; return its description, which also says what recall it loses.

    "recall@10" is that of the saved file in any FAISS program: its effort is saved with it. "search_recall@10" is that
    of csalign, which looks again through all lists where those probed hold fewer rows than are wanted ("short": the
    share of such queries).
    ``queries`` are rows of the other modality, ``keys`` the table of ``index_keys``, ``source`` names the store. What
    an approximate index will take and lose is told, by ``say``, before it is built. Raises InputError if it cannot be.
    """
    plan = plan_index(spec.kind, len(rows), rows.dim, spec.training_rows)
    described: dict[str, Any] = {
        "factory": plan.factory,
        "rows": plan.rows,
        "dim": plan.dim,
        "megabytes": plan.memory / 1e6,
    }
    if plan.training_rows:
        gpus = faiss.get_num_gpus()
        described["trained"] = (
            f"on {plan.training_rows:,} rows, {gpus} GPU"
            if gpus
            else f"on {plan.training_rows:,} rows, CPU (FAISS sees no GPU)"
        )
    if plan.factory != "Flat":
        described |= _trial(spec, rows, queries, seed)
        say(f"{modality} index {plan.factory}: {_estimate(described)}")
    folder.mkdir(parents=True, exist_ok=True)
    on_disk = folder / f"{modality}.index" if spec.on_disk else None
    index = build_index(rows, spec.kind, spec.training_rows, spec.effort, seed, folder=on_disk)
    if on_disk is None:
        write_index(index, folder / f"{modality}.index")
    (folder / METADATA).parent.mkdir(exist_ok=True)
    keys.to_parquet(folder / METADATA, index=False)
    exact = {f"recall@{_K}": 1.0, f"search_recall@{_K}": 1.0, "short": 0.0}
    described |= exact if plan.factory == "Flat" else _recall(index, rows, queries, seed)
    described |= effort_of(index)
    write_json(folder / _DESCRIPTION, {**described, "source": source})
    return described


def _estimate(described: dict[str, Any]) -> str:
    recall = described["estimated_recall"]
    about = "recall cannot be estimated on a sample" if recall is None else f"about {recall:.0%} of the 10 nearest"
    if recall is not None and described["estimated_short"]:
        about += (
            f"; {described['estimated_short']:.0%} of the queries find fewer than 10 rows in the lists probed: csalign "
            f"search looks again for them ({described['estimated_search_recall']:.0%}), other programs get -1; "
            "a larger eval_retrieval.index.effort helps both"
        )
    return f"{described['megabytes']:.1f} MB for {described['rows']:,} rows, {about}"


def _trial(spec: Index, rows: Rows, queries: Rows, seed: int) -> dict[str, float | None]:
    """What ``_recall`` measures, of an index of the same kind on a sample; None where the sample cannot train it.

    It errs to the high side, since a larger index has nearer neighbours to tell apart.
    """
    sample = Part(rows, _drawn(len(rows), _TRIAL_ROWS, seed))
    try:
        trial = build_index(sample, spec.kind, spec.training_rows, spec.effort, seed)
    except InputError:
        return {"estimated_recall": None}
    found = _recall(trial, sample, queries, seed)
    return {f"estimated_{name.removesuffix(f'@{_K}')}": value for name, value in found.items()}


def _recall(index: Any, rows: Rows, queries: Rows, seed: int) -> dict[str, float]:
    """The share of the exact nearest that the index finds for a sample of queries, by FAISS alone and by ``search``."""
    sampled = Part(queries, _drawn(len(queries), _QUERIES, seed))
    k = min(_K, len(rows))
    exact = scan(sampled, rows, TruePairs.none(), None, k=k)[0]
    assert exact is not None
    own = search_as_saved(index, sampled, k)
    short = float((own < 0).any(axis=1).mean())
    alone = recall_against(exact.top_ids, own)
    return {
        f"recall@{_K}": alone,
        f"search_recall@{_K}": recall_against(exact.top_ids, search(index, sampled, k)[1]),
        "short": short,
    }


def _drawn(total: int, count: int, seed: int) -> Ints:
    return np.sort(np.random.default_rng(seed).choice(total, min(total, count), replace=False))


def index_keys(split: Split, modality: str, root: Path) -> pd.DataFrame:
    """What stands behind each row of an index: clip-retrieval's image_path and caption, and our ids.

    An image has its first caption there, a caption its image; what there is none of is empty text.
    """
    images, captions, owner = split.images, split.captions, split.image_of_caption
    paths = np.array([str(root / locator) if locator else "" for locator in images["locator"]], object)
    if modality == "image":
        texts = np.full(len(images), "", object)
        texts[owner[owner >= 0][::-1]] = captions["text"].to_numpy()[owner >= 0][::-1]
        return pd.DataFrame({"image_id": images["image_id"], "image_path": paths, "caption": texts})
    return pd.DataFrame(
        {
            "caption_id": captions["caption_id"],
            "image_id": captions["image_id"].fillna(""),
            "image_path": np.where(owner >= 0, paths[owner], ""),
            "caption": captions["text"],
        }
    )


def open_index(folder: Path, modality: str, source: dict[str, Any]) -> tuple[Any, pd.DataFrame, dict[str, Any]]:
    """A saved index, its keys and its description.

    Raises InputError if it was built from another store than ``source``, is damaged, or does not fit its keys.
    """
    hint = "Build it again: csalign eval-retrieval --force"
    described: dict[str, Any] = read_json(folder / _DESCRIPTION, hint)
    built = described.get("source", {})
    if built != source:
        key = next(key for key in {**source, **built} if built.get(key) != source.get(key))
        raise InputError(
            f"{folder}: this index was built from another store "
            f"({key} {built.get(key)!r}, expected {source.get(key)!r})",
            hint,
        )
    index, keys = read_index(folder / f"{modality}.index"), pd.read_parquet(folder / METADATA)
    if index.ntotal != len(keys):
        raise InputError(
            f"{folder}: the index holds {counted(index.ntotal, 'rows')}, its metadata names {len(keys)}", hint
        )
    return index, keys, described
