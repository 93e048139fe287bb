"""Arrays in thousands of shards: what is read is what was written, with few files open and memory that is linear."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cs_aligner_cli.common import npy
from cs_aligner_cli.common.npy import Concatenation, open_npy
from cs_aligner_cli.stores.embeddings import ShardWriter, StoredArray

pytest.importorskip("resource", reason="limits of open files are set with it")

# Far more shards than the process may open files.
LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import numpy as np
from cs_aligner_cli.data.features import FeatureParts
from cs_aligner_cli.stores.embeddings import ShardWriter, StoredArray
from cs_aligner_cli.stores.tokens import TokenArray
folder, shards = Path(sys.argv[1]), 3000
stored, tokens = StoredArray(folder), TokenArray(folder)
parts = FeatureParts(sorted(folder.glob("shard-*.npy")))
truth = np.arange(2 * shards, dtype=np.float32)
for rows in (np.arange(2 * shards), np.random.default_rng(0).permutation(2 * shards)):
    for found in (stored.take(rows), parts.read(rows), tokens.take(rows)[:, 0]):
        np.testing.assert_array_equal(found, truth[rows, None])
small = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
from cs_aligner_cli.common import npy
npy._SMALL_BYTES = 0  # as if each shard were large
rows = np.random.default_rng(1).permutation(2 * shards)
np.testing.assert_array_equal(StoredArray(folder).take(rows), truth[rows, None])
print(small)
"""


def write_shards(folder: Path, array: np.ndarray, shard_rows: int, kind: str = "shard") -> None:
    for number, start in enumerate(range(0, len(array), shard_rows)):
        np.save(folder / f"{kind}-{number:05d}.npy", array[start : start + shard_rows])


def test_3000_shards_are_read_where_128_files_may_be_open(tmp_path: Path) -> None:
    array = np.arange(6000, dtype=np.float32)[:, None]
    write_shards(tmp_path, array, 2)
    write_shards(tmp_path, array, 2, "values")
    write_shards(tmp_path, np.ones(6000, np.int64), 2, "lengths")
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 40


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
    data=st.data(),
)
def test_the_pieces_of_any_rows_are_those_of_one_array(lengths: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(lengths))
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    order = Concatenation(lengths)
    start = data.draw(st.integers(0, len(whole)))
    scattered = st.lists(st.integers(0, len(whole) - 1), max_size=20)
    for rows in (whole[start:], np.array(data.draw(scattered), np.int64)):
        found = np.full(len(rows), -1)
        for piece in order.pieces(rows):
            assert found[piece.places].max(initial=-1) == -1  # no place twice
            found[piece.places] = parts[piece.part][piece.rows]
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("small_bytes", [0, npy._SMALL_BYTES])
def test_threads_read_at_once_while_maps_are_closed_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr(npy, "_SMALL_BYTES", small_bytes)
    for name in ("_SMALL", "_LARGE"):
        monkeypatch.setattr(npy, name, npy._Recent(16))
    array = np.random.default_rng(0).standard_normal((128, 3)).astype(np.float32)
    write_shards(tmp_path, array, 1)
    stored = StoredArray(tmp_path)

    def same(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, len(array), 500)
        return np.array_equal(stored.take(rows), array[rows])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(40)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_type_and_order_are_read_by_rows(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal((7, 3)), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    file = open_npy(tmp_path / "a.npy")
    assert (file.shape, file.dtype, len(file)) == ((7, 3), array.dtype, 7)
    np.testing.assert_array_equal(file.mapped(), array)
    np.testing.assert_array_equal(file.take(slice(2, 5)), array[2:5])
    np.testing.assert_array_equal(file.take(np.array([6, 0, 6])), array[[6, 0, 6]])
    result = np.zeros((9, 3), np.float32)
    file.read_into(result[1:8])
    np.testing.assert_array_equal(result, np.pad(array.astype(np.float32), ((1, 1), (0, 0))))


def test_all_rows_need_the_memory_of_the_result_alone(tmp_path: Path) -> None:
    array = np.ones((4000, 256), np.float32)
    write_shards(tmp_path, array, 20)
    stored = StoredArray(tmp_path)
    tracemalloc.start()
    try:
        stored.all()
        contiguous = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        stored.take(np.random.default_rng(0).permutation(len(array)))
        shuffled = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contiguous < 1.1 * array.nbytes
    assert shuffled < 1.2 * array.nbytes


def test_a_writer_reads_rows_back_from_the_shards_that_are_there(tmp_path: Path) -> None:
    array = np.arange(22, dtype=np.float32).reshape(11, 2)
    writer = ShardWriter(tmp_path, 11, 3, "float32")
    for number in (1, 3):
        writer.write(number, array[writer.rows_of(number)])
    rows = np.array([10, 3, 5, 9, 3])
    assert writer.holds(rows)
    np.testing.assert_array_equal(writer.take(rows), array[rows])
    assert not writer.holds(np.array([3, 8]))
    (tmp_path / "shard-00001.npy").write_bytes(b"damaged")
    assert writer.reopen() == [0, 1, 2]
    assert not writer.holds(np.array([3]))
