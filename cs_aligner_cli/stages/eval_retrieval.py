"""eval-retrieval: exact search over every store of a split, both ways, and the index saved for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cs_aligner_cli.arrays import l2_normalize
from cs_aligner_cli.artifacts import write_bytes, write_json
from cs_aligner_cli.console import Console
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.layout import MODALITIES, Layout
from cs_aligner_cli.recipe import EvalRetrieval, Recipe
from cs_aligner_cli.retrieval import build_index, evaluate_retrieval, search, write_index
from cs_aligner_cli.store import NO_SPACE, Store, nothing_to_compare

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def eval_retrieval(recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Evaluate every store of ``eval_retrieval.split``; return the numbers per store and where they lie.

    A store whose image and text dimensions differ shares no space and is left out with a note. Raises InputError if a
    store is missing or stale, if no store shares a space, or if a k is larger than a gallery.
    """
    layout = Layout(recipe)
    artifact = layout.retrieval
    for need in artifact.needs:
        need.require()
    record = None if force else artifact.fresh()
    if record is None:
        with artifact.building() as build:
            split = PreparedData(layout.prepared.path).split(recipe.eval_retrieval.split, "eval_retrieval.split")
            stores = layout.stores(split.name)
            results: dict[str, Any] = {}
            notes: list[str] = []
            with console.progress("searching", len(stores)) as advance:
                for name, stored in stores.items():
                    store = Store(stored.path)
                    if store.shares_space:
                        arrays = {m: l2_normalize(torch.from_numpy(store.array(m).all())).numpy() for m in MODALITIES}
                        results[name] = _evaluate(recipe.eval_retrieval, split, arrays, build.folder / name)
                    else:
                        notes.append(f"{name}: {NO_SPACE}")
                    advance()
            if not results:
                raise nothing_to_compare(split.name)
            build.summary = {
                "split": split.name,
                "images": len(split.images),
                "captions": len(split.captions),
                "protocol": "exact cosine search; a query is a hit at k if any of its true answers is among the k "
                "best; equal scores rank by row",
                "eval_retrieval": results,
                "notes": notes,
            }
            write_json(build.folder / "results.json", build.summary)
            write_bytes(build.folder / "results.csv", _long_table(results).to_csv(index=False).encode())
    summary: dict[str, Any] = (artifact.record() or {})["summary"]
    return {"status": "done" if record is None else "fresh", "folder": str(artifact.path), **summary}


def _evaluate(spec: EvalRetrieval, split: Split, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """The numbers of one store; its indexes, key tables and nearest neighbours are written into ``folder``."""
    result = evaluate_retrieval(arrays["image"], arrays["text"], split.image_of_caption, ks=spec.ks)
    folder.mkdir(exist_ok=True)
    ids = {"image": split.images["image_id"], "text": split.captions["caption_id"]}
    owner = {"image": np.arange(len(split.images)), "text": split.image_of_caption}
    for queries, gallery in (("image", "text"), ("text", "image")):
        index = build_index(arrays[gallery])
        write_index(index, folder / f"{gallery}.faiss")
        split.table(gallery).to_parquet(folder / f"{gallery}.parquet", index=False)
        k = min(spec.neighbors, len(arrays[gallery]))
        scores, rows = search(index, arrays[queries], k)
        neighbors = pd.DataFrame(
            {
                "query": np.repeat(ids[queries].to_numpy(), k),
                "rank": np.tile(np.arange(1, k + 1), len(rows)),
                "neighbor": ids[gallery].to_numpy()[rows.ravel()],
                "score": scores.ravel(),
                "true": (owner[queries][:, None] == owner[gallery][rows]).ravel(),
            }
        )
        neighbors.to_parquet(folder / f"{queries}_neighbors.parquet", index=False)
    return result


def _long_table(results: dict[str, Any]) -> pd.DataFrame:
    rows = [
        (store, direction, metric, value)
        for store, directions in results.items()
        for direction, metrics in directions.items()
        for metric, value in metrics.items()
    ]
    return pd.DataFrame(rows, columns=["store", "direction", "metric", "value"])
