"""FAISS indexes of rows: kinds and factory strings, what they will cost, building from shards, files, search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.arguments import as_whole
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.streams import stdout_kept_clean
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.files.artifact import written_aside
from cs_aligner_cli.retrieval.rows import Rows, RowsLike
from cs_aligner_cli.retrieval.scores import MARGIN, Scores, pair_scores, rounding_bound, settle

FLAT = "flat"
KINDS = (FLAT, "ivf", "hnsw", "pq", "opq", "sq", "ivfpq")
# The names of an index that is a folder, as clip-retrieval has them: the lists stay on disk, beside the index.
POPULATED, LISTS = "populated.index", "merged_index.ivfdata"
_BLOCK = 65536
_TRAINING_ROWS = 262144
_FLAT_ERROR = "no FAISS factory string that builds an inner-product index"


@dataclass(frozen=True)
class IndexPlan:
    """An index that is to be built of ``rows`` rows: its FAISS factory string, and what it will take.

    ``memory`` is in bytes, once built: codes, ids, centroids and links; ``training_rows`` are the rows it is trained
    on (0: it needs no training).
    """

    factory: str
    rows: int
    dim: int
    memory: int
    training_rows: int


def factory_of(kind: str, rows: int, dim: int, training_rows: int = _TRAINING_ROWS) -> str:
    """The FAISS factory string of a kind for so many rows; any other text is taken for a factory string itself.

    Lists: 4 sqrt(N) as FAISS' guidelines have it, at most one for 39 rows (fewer make its k-means warn). PQ: one byte
    for eight dimensions, so a 32nd of the float32 rows; OPQ rotates before that. SQ: one byte per dimension.
    """
    taught = min(rows, training_rows)
    lists = max(1, min(int(4 * rows**0.5), taught // 39))
    parts = next(m for m in range(max(1, dim // 8), 0, -1) if dim % m == 0)
    # 8 bits are 256 centroids, trained on 39 rows each at least.
    bits = next((b for b in (8, 6, 4) if taught >= 39 * 2**b), 4)
    code = f"PQ{parts}" if bits == 8 else f"PQ{parts}x{bits}"
    named = {
        FLAT: "Flat",
        "ivf": f"IVF{lists},Flat",
        "hnsw": "HNSW32,Flat",
        "pq": code,
        "opq": f"OPQ{parts},{code}",
        "sq": "SQ8",
        "ivfpq": f"OPQ{parts},IVF{lists},{code}",
    }
    return named.get(kind, kind)


def plan_index(kind: str, rows: int, dim: int, training_rows: int = _TRAINING_ROWS) -> IndexPlan:
    """What an index of that kind (a key of KINDS, or a FAISS factory string) will be, without building it.

    Raises InputError if FAISS cannot make such an index, if it takes no rows without ids (IDMap) or does not say what a
    row takes (NSG), or if there are fewer rows than it must be trained on.
    """
    rows, dim = as_whole(rows, "rows", 0), as_whole(dim, "dim", 1)
    factory = factory_of(kind, rows, dim, as_whole(training_rows, "training_rows", 1))
    index = _empty(factory, dim, kind)
    try:
        memory = _memory(index, rows, dim)
    except RuntimeError:  # FAISS' own text is the source line that failed
        raise InputError(
            f"index: {kind!r} makes a FAISS {type(index).__name__}, which does not say how much a row takes",
            "Take hnsw, or any kind whose codes have a size.",
        ) from None
    needed = 0 if index.is_trained else min(rows, max(training_rows, _least_training(index)))
    if needed < _least_training(index):
        raise InputError(
            f"index: {kind}: must be trained on at least {_least_training(index)} rows, but there are {rows}",
            "Take a smaller index, or flat: it is exact, and needs no training.",
        )
    return IndexPlan(factory, rows, dim, int(memory), needed)


def _memory(index: Any, rows: int, dim: int) -> int:
    ivf, inner = _ivf(index), _innermost(index)
    if isinstance(inner, faiss.IndexHNSW):
        # Each row's links, twice as many on the ground floor as on each floor above, which keeps a 1 / M part of the
        # rows; beside them the row's floor and offset, and its code.
        ends = faiss.vector_to_array(inner.hnsw.cum_nneighbor_per_level)
        links = int(ends[2] - ends[1])
        above = links / max(links - 1, 1)
        return int(rows * (faiss.downcast_index(inner.storage).sa_code_size() + 4 * (2 * links + above) + 12))
    if ivf is not None:
        return int(rows * (ivf.code_size + 8) + ivf.nlist * ivf.d * 4)
    return rows * int(index.sa_code_size())


def _least_training(index: Any) -> int:
    """FAISS' k-means needs a row for every centroid."""
    if index.is_trained:
        return 0
    ivf, inner = _ivf(index), _innermost(index)
    pq = getattr(inner, "pq", None)
    return max(1, ivf.nlist if ivf is not None else 1, int(pq.ksub) if pq is not None else 1)


def _empty(factory: str, dim: int, given: str) -> Any:
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError):  # FAISS' own text is the source line that failed
        near = did_you_mean(given, KINDS)
        raise InputError(f"index: {given!r} is {_FLAT_ERROR} of {dim} dimensions{near}") from None
    if isinstance(index, faiss.IndexIDMap):
        raise InputError(f"index: {given!r}: IDMap takes rows with ids only", "Leave it out: row i gets id i.")
    return index


def _ivf(index: Any) -> Any:
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def _innermost(index: Any) -> Any:
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefine):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def build_index(
    vectors: RowsLike,
    kind: str = FLAT,
    training_rows: int = _TRAINING_ROWS,
    effort: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    part_rows: int = 2**20,
) -> Any:
    """Return an inner-product index of vectors (N, d); row i gets id i.

    Plain arrays are used as given: normalise the rows first for cosine scores, or pass ``Rows``. The rows are read
    block by block and never held as a whole (the flat index and HNSW hold their own float32 copy). ``kind`` as in
    ``plan_index``; what must be trained is trained on ``training_rows`` rows drawn with ``seed``, on a GPU where FAISS
    sees one. ``effort`` is the number of lists probed (IVF; default a sixteenth of them) or the candidates followed
    (HNSW; default 64), and stays with the index. With ``folder``, an IVF index is built in parts of ``part_rows`` and
    merged there, lists on disk, so that it may be larger than memory.

    Raises InputError unless vectors are non-empty, finite and floating-point, and as ``plan_index`` does.
    """
    rows = vectors if isinstance(vectors, Rows) else Rows(vectors, "vectors", normalize=False)
    plan = plan_index(kind, len(rows), rows.dim, training_rows)
    index = _empty(plan.factory, rows.dim, kind)
    if plan.training_rows:
        _train(index, rows, plan.training_rows, seed)
    set_effort(index, effort)
    if folder is not None:
        return _build_on_disk(index, rows, folder, part_rows, kind)
    for start in range(0, len(rows), _BLOCK):
        index.add(rows.take(slice(start, min(start + _BLOCK, len(rows)))).numpy())
    return index


def _train(index: Any, rows: Rows, count: int, seed: int) -> None:
    drawn = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    ivf = _ivf(index)
    # FAISS writes to stderr where there are fewer than 39 rows per centroid; plan_index has decided about that.
    for trained in (ivf, getattr(_innermost(index), "pq", None)):
        if trained is not None:
            trained.cp.min_points_per_centroid = 1
    if ivf is not None and faiss.get_num_gpus():
        ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(ivf.d))
    index.train(rows.take(drawn).numpy())


def set_effort(index: Any, effort: int | None) -> None:
    """Set how hard an approximate index searches: nprobe of IVF, efSearch of HNSW; None: our default."""
    ivf, inner = _ivf(index), _innermost(index)
    if ivf is not None:
        ivf.nprobe = min(ivf.nlist, effort or max(1, ivf.nlist // 16))
    elif isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = effort or 64


def _build_on_disk(index: Any, rows: Rows, folder: Path, part_rows: int, kind: str) -> Any:
    """Fill parts one after the other, write each, and merge their lists into one file."""
    from faiss.contrib.ondisk import merge_ondisk

    if _ivf(index) is None:
        raise InputError(
            f"index: {kind}: only inverted lists can stay on disk", "Take ivf or ivfpq, or on_disk: false."
        )
    folder.mkdir(parents=True, exist_ok=True)
    trained, parts = folder / ".trained", []
    faiss.write_index(index, str(trained))
    for start in range(0, len(rows), part_rows):
        part = faiss.read_index(str(trained))
        stop = min(start + part_rows, len(rows))
        for begin in range(start, stop, _BLOCK):
            block = slice(begin, min(begin + _BLOCK, stop))
            part.add_with_ids(rows.take(block).numpy(), np.arange(block.start, block.stop))
        parts.append(folder / f".part-{start}")
        faiss.write_index(part, str(parts[-1]))
    with stdout_kept_clean():  # which FAISS' C++ tells what it does with lists on disk
        merge_ondisk(index, [str(part) for part in parts], str(folder / LISTS))
    for leftover in (trained, *parts):
        leftover.unlink()
    faiss.write_index(index, str(folder / POPULATED))
    return index


def search(index: Any, queries: RowsLike, k: int) -> tuple[Scores, Ints]:
    """Return scores (Q, k) float32 and ids (Q, k) int64 of the k best rows for each of queries (Q, d).

    The order is: higher score first, then smaller row id. From a flat index the answer is exact by the rule in
    ``scores``; from others both the rows and the scores are as good as the index.

    Raises InputError for queries that are not finite floating-point rows of the index's dimension, for a k
    below 1 or above the number of rows, and where inner products would overflow.
    """
    rows = queries if isinstance(queries, Rows) else Rows(queries, "queries", normalize=False)
    if rows.dim != index.d:
        raise InputError(f"queries have dimension {rows.dim}, the rows of the index {index.d}")
    k = as_whole(k, "k")
    if not 1 <= k <= index.ntotal:
        raise InputError(f"k = {k} but the index holds {index.ntotal} rows")
    return _exact(index, rows, k) if isinstance(index, faiss.IndexFlat) else _approximate(index, rows, k)


def _exact(index: Any, rows: Rows, k: int) -> tuple[Scores, Ints]:
    gallery = Rows(_stored_rows(index), "the index", normalize=False)
    bound = rounding_bound(rows.longest, gallery.longest, index.d)
    products, proposed = index.search(rows.all().numpy(), min(k + MARGIN, index.ntotal))
    ids = settle(rows, gallery, proposed, products, bound, k)
    return pair_scores(rows, gallery, np.repeat(np.arange(len(rows)), k), ids.ravel()).reshape(ids.shape), ids


def _approximate(index: Any, rows: Rows, k: int) -> tuple[Scores, Ints]:
    queries = rows.all().numpy()
    scores, ids = index.search(queries, k)
    short = (ids < 0).any(axis=1)
    if short.any():
        with _widest(index):
            scores[short], ids[short] = index.search(queries[short], k)
        if (lacking := int((ids < 0).any(axis=1).sum())) > 0:
            raise InputError(
                f"index: FAISS finds fewer than {k} rows for {lacking} of {len(ids)} queries, at any effort",
                "Its graph or lists are not whole, or of a kind that gives less: build it again, or take flat.",
            )
    order = np.lexsort((ids, -scores), axis=-1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def search_as_saved(index: Any, queries: RowsLike, k: int) -> Ints:
    """The ids (Q, k) that FAISS' own ``index.search`` gives; -1 where the lists that it probes hold fewer than k rows.

    ``search`` looks again, through all lists, for such queries; other programs that open the file do not.
    """
    rows = queries if isinstance(queries, Rows) else Rows(queries, "queries", normalize=False)
    ids: Ints = index.search(rows.all().numpy(), k)[1]
    return ids


@contextmanager
def _widest(index: Any) -> Iterator[None]:
    """The index at its greatest effort: all lists of IVF, all rows of HNSW."""
    usual = effort_of(index)
    try:
        set_effort(index, index.ntotal)  # of lists, no more than there are
        yield
    finally:
        for effort in usual.values():
            set_effort(index, effort)


def effort_of(index: Any) -> dict[str, int]:
    """An index's effort in FAISS' names: {"nprobe": lists probed}, {"efSearch": candidates followed}, or {}."""
    ivf, inner = _ivf(index), _innermost(index)
    if ivf is not None:
        return {"nprobe": int(ivf.nprobe)}
    return {"efSearch": int(inner.hnsw.efSearch)} if isinstance(inner, faiss.IndexHNSW) else {}


def _stored_rows(index: Any) -> Tensor:
    """A flat index's own (N, d) float32 rows without a copy; valid as long as the index is."""
    flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return torch.from_numpy(flat.reshape(index.ntotal, index.d))


def recall_against(exact: Ints, found: Ints) -> float:
    """The share of the exact k nearest (Q, k) that were found (Q, k): FAISS' recall of the k nearest in k."""
    hits = (exact[:, :, None] == found[:, None, :]).any(axis=2)
    return float(hits.mean())


def write_index(index: Any, path: str | Path) -> None:
    """Write the index as a FAISS file that any FAISS program can read; it appears whole or not at all."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")
    with written_aside(path) as aside:
        faiss.write_index(index, str(aside))


def read_index(path: str | Path) -> Any:
    """Read an inner-product index from a FAISS file, or from a folder with lists on disk; else raise InputError."""
    path = Path(path)
    file, flags = (path / POPULATED, faiss.IO_FLAG_ONDISK_SAME_DIR) if path.is_dir() else (path, 0)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with stdout_kept_clean() if path.is_dir() else nullcontext():
            index = faiss.read_index(str(file), flags)
    except RuntimeError:  # FAISS' own text is the source line that failed
        raise InputError(f"{file}: not a FAISS index, or damaged") from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{file}: holds a FAISS {type(index).__name__}, expected one of inner products")
    return index
