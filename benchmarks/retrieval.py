"""Retrieval against its peers, in one run: time, peak memory, and that the numbers agree (make bench-retrieval).

    python benchmarks/retrieval.py [metrics | flickr30k | million] ...     # all three without arguments

metrics     5,000 images x 25,000 captions, 512 dimensions: all our metrics both ways, against the metric code that
            CLIP_benchmark publishes (recall_at_k in zeroshot_retrieval.py, called as it calls it), FAISS flat search
            of the lists alone, and the score matrix with argsort.
flickr30k   31,000 images x 155,000 captions: time against a bare matrix product of the same tiles in the same
            process, and memory above the inputs.
million     1,000,000 vectors: IVF-PQ and SQ8 with lists: build time, size, recall@10 against exact, queries per second.

Each side runs in a process of its own on the same vectors, so that the peaks of memory do not mix.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)
DIM = 512
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Found = dict[str, float]


def vectors(images: int, per_image: int = 5) -> tuple[Floats, Floats, Ints]:
    """Unit rows, each caption its image plus noise; and the image of each caption."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, DIM), dtype=np.float32)
    text = np.repeat(image, per_image, axis=0)
    for start in range(0, len(text), 10000):
        text[start : start + 10000] += 4 * rng.standard_normal(text[start : start + 10000].shape, dtype=np.float32)
    for rows in (image, text):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return image, text, np.repeat(np.arange(images), per_image)


def ours(image: Floats, text: Floats, owner: Ints) -> Found:
    """R@k, mAP, MRR, ranks, hubness both ways."""
    from cs_aligner_cli.retrieval import evaluate_retrieval

    result = evaluate_retrieval(image, text, owner, ks=KS)
    return {f"{direction} R@{k}": result[direction][f"R@{k}"] for direction in ("t2i", "i2t") for k in KS}


def clip_benchmark(image: Floats, text: Floats, owner: Ints) -> Found:
    """The arithmetic of CLIP_benchmark's evaluate: the whole score matrix, and a one-hot of the top k, by batches."""
    import torch

    def recall_at_k(scores: torch.Tensor, positive: torch.Tensor, k: int) -> torch.Tensor:
        top = torch.topk(scores, k, dim=1)[1]
        one_hot = torch.nn.functional.one_hot(top, num_classes=scores.shape[1])
        return (one_hot * positive.view(len(scores), 1, -1)).sum(dim=(1, 2)) / positive.sum(dim=1)

    def in_batches(scores: torch.Tensor, positive: torch.Tensor, k: int) -> float:
        batch = 64  # the default of its command line
        parts = [recall_at_k(scores[i : i + batch], positive[i : i + batch], k) for i in range(0, len(scores), batch)]
        return float((torch.cat(parts) > 0).float().mean())

    scores = torch.from_numpy(text) @ torch.from_numpy(image).t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owner)] = True
    return {
        **{f"t2i R@{k}": in_batches(scores, positive, k) for k in KS},
        **{f"i2t R@{k}": in_batches(scores.T, positive.T, k) for k in KS},
    }


def faiss_flat(image: Floats, text: Floats, owner: Ints) -> Found:
    """The lists alone, by two flat searches: no rank beyond k, no mAP, no mean rank."""
    import faiss

    found = {}
    for name, queries, gallery, wanted, labels in (
        ("t2i", text, image, owner, np.arange(len(image))),
        ("i2t", image, text, np.arange(len(image)), owner),
    ):
        index = faiss.IndexFlatIP(DIM)
        index.add(gallery)
        hits = labels[index.search(queries, max(KS))[1]] == wanted[:, None]
        found |= {f"{name} R@{k}": float(hits[:, :k].any(axis=1).mean()) for k in KS}
    return found


def argsorted(image: Floats, text: Floats, owner: Ints) -> Found:
    """The whole score matrix and a full argsort of it, as evaluation scripts do."""
    scores = text @ image.T
    order = np.argsort(-scores, axis=1, kind="stable")
    found = {f"t2i R@{k}": float((order[:, :k] == owner[:, None]).any(axis=1).mean()) for k in KS}
    order = np.argsort(-scores.T, axis=1, kind="stable")
    rows = np.arange(len(image))[:, None]
    return found | {f"i2t R@{k}": float((owner[order[:, :k]] == rows).any(axis=1).mean()) for k in KS}


SIDES: dict[str, Callable[[Floats, Floats, Ints], Found]] = {
    "ours": ours,
    "CLIP_benchmark": clip_benchmark,
    "FAISS flat": faiss_flat,
    "argsort": argsorted,
}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_side(side: str, images: int) -> dict[str, Any]:
    """Time and memory above the inputs of one side."""
    image, text, owner = vectors(images)
    SIDES[side](*vectors(64))  # imports and first calls are not what is timed
    before, start = _peak(), time.perf_counter()
    found = SIDES[side](image, text, owner)
    return {"seconds": time.perf_counter() - start, "megabytes": _peak() - before, "found": found}


def bare_products(images: int) -> dict[str, Any]:
    """Our whole pass, and in turn with it the matrix products of its tiles alone, in tenths of the images."""
    import torch

    from cs_aligner_cli.retrieval import evaluate_retrieval
    from cs_aligner_cli.retrieval.score_tiles import TILE_COLUMNS, TILE_ROWS

    image, text, owner = vectors(images)
    ours(*vectors(64))
    before = _peak()
    products, whole = 0.0, 0.0
    tile = torch.empty(TILE_ROWS * TILE_COLUMNS)

    def multiply() -> float:
        start = time.perf_counter()
        for i in range(0, images, TILE_ROWS):
            left = torch.from_numpy(image[i : i + TILE_ROWS])
            for j in range(0, len(text), TILE_COLUMNS):
                right = torch.from_numpy(text[j : j + TILE_COLUMNS])
                torch.mm(left, right.T, out=tile[: len(left) * len(right)].view(len(left), len(right)))
        return time.perf_counter() - start

    # Before and after, since other processes may take their part of the machine.
    first = multiply()
    start = time.perf_counter()
    result = evaluate_retrieval(image, text, owner, ks=KS)
    whole = time.perf_counter() - start
    products = (first + multiply()) / 2
    found = {f"{d} R@1": result[d]["R@1"] for d in ("t2i", "i2t")}
    return {"seconds": whole, "products": products, "megabytes": _peak() - before, "found": found}


def million(kind: str, effort: int) -> dict[str, Any]:
    """Build an index of a million rows; recall@10 and speed on 2,000 queries.

    The rows have 96 directions of variance, as embeddings of trained towers do, around 20,000 centres, plus noise.
    """
    from cs_aligner_cli.retrieval import Rows, build_index, plan_index, search, write_index
    from cs_aligner_cli.retrieval.index import recall_against
    from cs_aligner_cli.retrieval.scan import TruePairs, scan

    rng = np.random.default_rng(0)
    latent = 96
    centres = rng.standard_normal((20000, latent), dtype=np.float32)
    directions = rng.standard_normal((latent, DIM), dtype=np.float32) / latent**0.5

    def drawn(count: int) -> Floats:
        rows = np.empty((count, DIM), np.float32)
        for start in range(0, count, 50000):
            block = rows[start : start + 50000]
            place = centres[rng.integers(len(centres), size=len(block))]
            place += 0.7 * rng.standard_normal(place.shape, dtype=np.float32)
            block[:] = place @ directions + 0.1 * rng.standard_normal(block.shape, dtype=np.float32)
        return rows

    gallery, queries = Rows(drawn(1_000_000), "gallery"), Rows(drawn(2000), "queries")
    plan = plan_index(kind, len(gallery), DIM, 65536)
    before, start = _peak(), time.perf_counter()
    index = build_index(gallery, kind, 65536, effort)
    built, memory = time.perf_counter() - start, _peak() - before
    with tempfile.TemporaryDirectory() as folder:
        write_index(index, Path(folder) / "x.index")
        size = (Path(folder) / "x.index").stat().st_size / 1e6
    none = TruePairs(np.empty(0, np.int64), np.empty(0, np.int64))
    start = time.perf_counter()
    exact = scan(queries, gallery, none, None, k=10)[0]
    exactly = time.perf_counter() - start
    assert exact is not None
    start = time.perf_counter()
    found = search(index, queries, 10)[1]
    elapsed = time.perf_counter() - start
    return {
        "factory": plan.factory,
        "planned_mb": plan.memory / 1e6,
        "file_mb": size,
        "build_seconds": built,
        "build_mb": memory,
        "recall": recall_against(exact.top_ids, found),
        "queries_per_second": len(queries) / elapsed,
        "exact_queries_per_second": len(queries) / exactly,
    }


def _apart(name: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, *map(str, arguments)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def show_metrics(images: int = 5000) -> None:
    """All sides, three rounds of ours and the best of them; and the ratios."""
    results = {side: min((_apart("side", side, images) for _ in range(rounds)), key=lambda r: r["seconds"])
               for side, rounds in (("ours", 3), ("CLIP_benchmark", 1), ("FAISS flat", 2), ("argsort", 1))}  # fmt: skip
    print(f"{images} images x {5 * images} captions, d = {DIM}; memory above the inputs")
    for side, result in results.items():
        worst = max(abs(result["found"][key] - value) for key, value in results["ours"]["found"].items())
        print(
            f"  {side:>14}: {result['seconds']:6.2f} s ({result['seconds'] / results['ours']['seconds']:5.1f} x ours),"
            f" {result['megabytes']:6.0f} MB; largest difference in R@k {worst:.1e}"
        )


def show_flickr30k(images: int = 31000) -> None:
    """The ratio to the bare products, and the memory."""
    result = _apart("products", images)
    rate = 2 * images * 5 * images * DIM / result["products"] / 1e9
    print(
        f"{images} images x {5 * images} captions, d = {DIM}: {result['seconds']:.1f} s,"
        f" {result['products'] / result['seconds']:.0%} of the rate of its matrix products alone ({rate:.0f} GFLOP/s);"
        f" {result['megabytes']:.0f} MB above the inputs"
    )


def show_million() -> None:
    """Two kinds of index."""
    print(f"1,000,000 vectors, d = {DIM}, trained on 65,536")
    for kind, effort in (("IVF1024,SQ8", 64), ("IVF1024,PQ64", 64)):
        r = _apart("million", kind, effort)
        print(
            f"  {r['factory']} (nprobe {effort}): built in {r['build_seconds']:.0f} s, {r['file_mb']:.0f} MB"
            f" (planned {r['planned_mb']:.0f}), {r['build_mb']:.0f} MB above the vectors while building;"
            f" recall@10 {r['recall']:.3f}; {r['queries_per_second']:.0f} queries/s"
            f" (exact {r['exact_queries_per_second']:.0f})",
            flush=True,
        )


def main() -> None:
    """Run what is asked."""
    shows = {"metrics": show_metrics, "flickr30k": show_flickr30k, "million": show_million}
    if sys.argv[1:2] == ["--one"]:
        name, *rest = sys.argv[2:]
        one = {
            "side": lambda: one_side(rest[0], int(rest[1])),
            "products": lambda: bare_products(int(rest[0])),
            "million": lambda: million(rest[0], int(rest[1])),
        }
        print(json.dumps(one[name]()))
        return
    for name in sys.argv[1:] or list(shows):
        shows[name]()


if __name__ == "__main__":
    main()
