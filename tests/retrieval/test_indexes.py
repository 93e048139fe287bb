"""Index kinds: what they cost, what they lose, building in parts and from shards, files that plain FAISS opens."""

# ruff: noqa: E501 (tables are easier to read on one line)

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval import Rows, build_index, plan_index, read_index, search, write_index
from cs_aligner_cli.retrieval import index as index_module
from cs_aligner_cli.retrieval import rows as rows_module
from cs_aligner_cli.retrieval.index import KINDS, LISTS, POPULATED, factory_of, recall_against

Floats = npt.NDArray[np.float32]
DIM = 32


def clustered(seed: int, count: int) -> Floats:
    """Unit rows around 50 centres, which is what an index makes use of."""
    centres = np.random.default_rng(0).standard_normal((50, DIM))
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(50, size=count)] + 0.7 * rng.standard_normal((count, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def gallery() -> Floats:
    return clustered(1, 4000)


@pytest.fixture(scope="module")
def queries() -> Floats:
    return clustered(2, 200)


@pytest.mark.parametrize(
    ("kind", "recall"),
    [("flat", 1.0), ("ivf", 0.8), ("hnsw", 0.95), ("pq", 0.2), ("opq", 0.2), ("sq", 0.9), ("ivfpq", 0.3), ("IVF64,SQ8", 0.8)],
)  # fmt: skip
def test_every_kind_is_as_large_as_planned_and_finds_most(
    kind: str, recall: float, gallery: Floats, queries: Floats, tmp_path: Path
) -> None:
    plan = plan_index(kind, len(gallery), DIM)
    index = build_index(gallery, kind)
    assert index.ntotal == plan.rows == len(gallery)
    path = tmp_path / "x.index"
    write_index(index, path)
    assert plan.memory == pytest.approx(path.stat().st_size, rel=0.1, abs=20000)
    exact = search(build_index(gallery), queries, 10)[1]
    scores, found = search(read_index(path), queries, 10)
    assert recall_against(exact, found) >= recall
    assert (found >= 0).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    plain = faiss.read_index(str(path))
    assert plain.ntotal == len(gallery) and plain.metric_type == faiss.METRIC_INNER_PRODUCT


def test_the_keys_are_those_that_the_recipe_names() -> None:
    from cs_aligner_cli.recipe.eval_retrieval import Index

    assert all(kind in str(Index.model_fields["kind"].description) for kind in KINDS)
    assert all(factory_of(kind, 10**6, 512) != kind for kind in KINDS)


def test_more_effort_finds_more(gallery: Floats, queries: Floats) -> None:
    exact = search(build_index(gallery), queries, 10)[1]
    recalls = [
        recall_against(exact, search(build_index(gallery, "ivf", effort=n), queries, 10)[1]) for n in (1, 8, 300)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1.0


def test_an_index_built_from_shards_is_that_of_the_whole_array(
    gallery: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shards:
        """A store that gives only the rows it is asked for."""

        shape = gallery.shape
        largest = 0

        def take(self, rows: npt.NDArray[np.int64]) -> Floats:
            self.largest = max(self.largest, len(rows))
            return gallery[rows]

    for module, name in ((index_module, "_BLOCK"), (rows_module, "_CHECKED")):
        monkeypatch.setattr(module, name, 700)
    shards = Shards()
    rows = Rows(shards, "shards", normalize=False)
    for kind in ("flat", "IVF32,SQ8"):
        ours, whole = build_index(rows, kind, training_rows=1500), build_index(gallery, kind, training_rows=1500)
        assert (faiss.serialize_index(ours) == faiss.serialize_index(whole)).all()
    assert shards.largest == 1500


def test_parts_are_merged_on_disk(gallery: Floats, queries: Floats, tmp_path: Path) -> None:
    folder = tmp_path / "image.index"
    whole = build_index(gallery, "ivf", training_rows=2000)
    build_index(gallery, "ivf", training_rows=2000, folder=folder, part_rows=1500)
    assert {path.name for path in folder.iterdir()} == {POPULATED, LISTS}
    moved = tmp_path / "moved"
    folder.rename(moved)
    plain = faiss.read_index(str(moved / POPULATED), faiss.IO_FLAG_ONDISK_SAME_DIR)  # as clip-retrieval reads it
    np.testing.assert_array_equal(plain.search(queries, 10)[1], whole.search(queries, 10)[1])
    for ours, theirs in zip(search(read_index(moved), queries, 10), search(whole, queries, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="hnsw: only inverted lists can stay on disk"):
        build_index(gallery, "hnsw", folder=folder)


def test_a_query_whose_lists_hold_too_few_rows_looks_into_all(gallery: Floats, queries: Floats) -> None:
    index = build_index(gallery[:300], "IVF60,Flat", effort=1)
    assert (index.search(queries, 50)[1] < 0).any()  # plain FAISS says -1
    found = search(index, queries, 50)[1]
    assert (found >= 0).all()
    assert all(len(set(row)) == 50 for row in found.tolist())
    assert index.nprobe == 1


def test_an_index_that_cannot_be_is_refused(gallery: Floats) -> None:
    with pytest.raises(InputError, match=r"index: 'hnws' is no FAISS factory string .*; did you mean hnsw"):
        plan_index("hnws", 1000, DIM)
    with pytest.raises(InputError, match=r"PQ7' is no FAISS factory string .* of 32 dimensions"):
        plan_index("PQ7", 1000, DIM)
    with pytest.raises(InputError, match=r"index: 'NSG32' makes a FAISS IndexNSGFlat, which does not say how much"):
        plan_index("NSG32", 1000, DIM)
    with pytest.raises(InputError, match=r"index: 'IDMap,Flat': IDMap takes rows with ids only"):
        plan_index("IDMap,Flat", 1000, DIM)
    with pytest.raises(InputError, match="must be trained on at least 4096 rows, but there are 1000"):
        build_index(gallery[:1000], "IVF4096,Flat")
    with pytest.raises(InputError, match="k = 2000 but the index holds 1000 rows"):
        search(build_index(gallery[:1000], "hnsw"), gallery[:1], 2000)
    broken = gallery[:50].copy()
    broken[7, 3] = np.nan
    with pytest.raises(InputError, match="vectors: row 7 holds NaN"):
        build_index(broken, "hnsw")


def test_threads_that_open_indexes_side_by_side_leave_stdout_as_it_was(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    write_index(build_index(rows), tmp_path / "flat.index")
    build_index(rows, "ivf", folder=tmp_path / "lists")
    before = os.fstat(1)
    for path in (tmp_path / "flat.index", tmp_path / "lists"):
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda _, path=path: read_index(path).ntotal, range(200)))
        assert found == [500] * 200
        assert os.path.samestat(os.fstat(1), before), f"{path.name}: what is printed from now on goes nowhere"
