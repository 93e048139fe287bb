"""The recall that is reported is that of the saved file, opened by plain FAISS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.eval_retrieval import Index
from cs_aligner_cli.retrieval.index import build_index, effort_of, search
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.search.index_folder import open_index, save_index


def _unit(seed: int, rows: int) -> Any:
    x = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "effort", "saved", "on_disk"),
    [
        ("IVF60,Flat", 1, {"nprobe": 1}, False),
        ("IVF60,Flat", 1, {"nprobe": 1}, True),
        ("IVF60,Flat", 8, {"nprobe": 8}, False),
        ("PCA8,IVF20,PQ4x4", 3, {"nprobe": 3}, False),
        ("PCA8,IVF20,PQ4x4", 3, {"nprobe": 3}, True),
        ("IVF20,PQ4x4,RFlat", 2, {"nprobe": 2}, False),
        ("HNSW4,Flat", 5, {"efSearch": 5}, False),
        ("hnsw", None, {"efSearch": 64}, False),
        ("sq", None, {}, False),
        ("flat", None, {}, False),
    ],
)
def test_plain_faiss_gives_the_recall_that_is_reported(
    kind: str, effort: int | None, saved: dict[str, int], on_disk: bool, tmp_path: Path
) -> None:
    rows, queries = _unit(0, 400), _unit(1, 300)
    spoken: list[str] = []
    spec = Index(kind=kind, effort=effort, on_disk=on_disk, training_rows=400)
    keys = pd.DataFrame({"image_id": range(400)})
    found = save_index(
        tmp_path, "image", Rows(rows, "rows"), Rows(queries, "queries"), keys, spec, 0, {}, spoken.append
    )
    file = tmp_path / "image.index" / "populated.index" if on_disk else tmp_path / "image.index"
    index = faiss.read_index(str(file), faiss.IO_FLAG_ONDISK_SAME_DIR if on_disk else 0)
    ids = index.search(queries, 10)[1]
    exact = np.argsort(-queries @ rows.T, axis=1)[:, :10]
    share = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, ids, strict=True)])
    assert found["recall@10"] == pytest.approx(share)
    assert found["short"] == pytest.approx((ids < 0).any(axis=1).mean())
    assert found["search_recall@10"] >= found["recall@10"] - 1e-9
    assert {name: found[name] for name in ("nprobe", "efSearch") if name in found} == saved == effort_of(index)
    assert json.loads((tmp_path / "index.json").read_text())["recall@10"] == found["recall@10"]
    mine = search(index, queries, 10)[1]
    assert (mine >= 0).all() and (found["short"] > 0) == any("other programs get -1" in text for text in spoken)
    if kind == "IVF60,Flat" and effort == 1:
        assert found["short"] > 0.3 and found["search_recall@10"] > found["recall@10"] + 0.1


def test_an_index_that_cannot_give_k_rows_says_so() -> None:
    """A graph whose rows were taken out of reach: never -1 without a word."""
    index = build_index(_unit(0, 50), "HNSW4,Flat")
    links = faiss.vector_to_array(index.hnsw.neighbors)
    faiss.copy_array_to_vector(np.full_like(links, -1), index.hnsw.neighbors)
    with pytest.raises(InputError, match="FAISS finds fewer than 10 rows for 3 of 3 queries"):
        search(index, _unit(1, 3), 10)


def test_an_index_of_which_more_was_written_down_is_another(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"source": {"store": "a", "model": "b"}}))
    with pytest.raises(InputError, match=r"another store \(model 'b', expected None\)"):
        open_index(tmp_path, "image", {"store": "a"})
