"""A store in 1 to 5,000 shards against one array in one file: opening, all rows, all shuffled, batches of 1,024.

    python benchmarks/stores.py [--rows 10000 100000 1000000] [--shards 1 100 2000 5000] [--dim 128]

The files are in the page cache, so that what is measured is ours. Each time is CPU time, the best of three. ``ratio``
is to one concatenated array, mapped, and the same rows of it taken by numpy. Ends with code 1 where the memory that
reading all rows takes is not that of the result, or where all rows of shards of 300 rows or more take twice the time.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.stores.embeddings import StoredArray
from cs_aligner_cli.stores.tokens import TokenArray

_BATCH, _FEW_HUNDRED, _TOKENS = 1024, 300, 8


def best(function: Callable[[], Any]) -> float:
    """CPU seconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def peak(function: Callable[[], npt.NDArray[Any]]) -> float:
    """The peak of what Python and numpy allocate, over the size of the result."""
    tracemalloc.start()
    result = function()
    found = tracemalloc.get_traced_memory()[1] / result.nbytes
    tracemalloc.stop()
    return found


def compare(rows: int, shards: int, dim: int, folder: Path) -> bool:
    """Print the line of one size; whether it keeps what is promised."""
    array = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    np.save(folder / "one.npy", array)
    per_shard = -(-rows // shards)
    for number, start in enumerate(range(0, rows, per_shard)):
        np.save(folder / f"shard-{number:05d}.npy", array[start : start + per_shard])
    one = np.load(folder / "one.npy", mmap_mode="r")
    shuffled = np.random.default_rng(1).permutation(rows)
    stored = StoredArray(folder)
    assert np.array_equal(stored.take(shuffled[:_BATCH]), array[shuffled[:_BATCH]])
    del array
    pairs = {
        "all": (stored.all, lambda: np.array(one)),
        "shuffled": (lambda: stored.take(shuffled), lambda: one[shuffled]),
        "batch": (lambda: stored.take(shuffled[:_BATCH]), lambda: one[shuffled[:_BATCH]]),
    }
    line = f"{rows:>9,} {shards:>7,} {per_shard:>9,} {1e3 * best(lambda: StoredArray(folder)):>9.1f}"
    ratios = {}
    for name, (ours, plain) in pairs.items():
        seconds = best(ours)
        ratios[name] = seconds / best(plain)
        line += f" {1e3 * seconds:>10.2f} {ratios[name]:>6.2f}"
    memory = peak(stored.all)
    print(f"{line} {memory:>8.2f}", flush=True)
    return memory < 1.2 and (per_shard < _FEW_HUNDRED or ratios["all"] <= 2)


def compare_tokens(rows: int, shards: int, dim: int, folder: Path) -> None:
    """The same of a token store, against one padded array."""
    tokens = np.random.default_rng(0).standard_normal((rows, _TOKENS, dim), dtype=np.float32)
    np.save(folder / "one.npy", tokens)
    per_shard = -(-rows // shards)
    for number, start in enumerate(range(0, rows, per_shard)):
        part = tokens[start : start + per_shard]
        np.save(folder / f"values-{number:05d}.npy", part.reshape(-1, dim))
        np.save(folder / f"lengths-{number:05d}.npy", np.full(len(part), _TOKENS))
    one, stored = np.load(folder / "one.npy", mmap_mode="r"), TokenArray(folder)
    every, shuffled = np.arange(rows), np.random.default_rng(1).permutation(rows)
    line = f"{rows:>9,} {shards:>7,} {per_shard:>9,} {1e3 * best(lambda: TokenArray(folder)):>9.1f}"
    for order in (every, shuffled, shuffled[:_BATCH]):
        seconds = best(lambda order=order: stored.take(order))  # type: ignore[misc]
        line += f" {1e3 * seconds:>10.2f} {seconds / best(lambda order=order: one[order]):>6.2f}"  # type: ignore[misc]
    print(line, flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 100, 2000, 5000])
    parser.add_argument("--dim", type=int, default=128)
    wanted = parser.parse_args()
    columns = "     rows  shards rows/shard  open ms     all ms  ratio shuffled ms ratio   batch ms  ratio"
    kept = True
    print(f"embeddings, {wanted.dim} dimensions\n{columns}   memory")
    for rows in wanted.rows:
        for shards in (shards for shards in wanted.shards if shards <= rows):
            with TemporaryDirectory() as folder:
                kept &= compare(rows, shards, wanted.dim, Path(folder))
    print(f"tokens, {_TOKENS} of {wanted.dim} dimensions in a row, against one padded array\n{columns}")
    for shards in wanted.shards:
        with TemporaryDirectory() as folder:
            compare_tokens(min(max(wanted.rows), 100_000), shards, wanted.dim, Path(folder))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
