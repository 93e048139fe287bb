"""evaluate_retrieval against the dense form that evaluation scripts use: time, peak memory, and that both agree.

    python benchmarks/retrieval.py [IMAGES CAPTIONS_PER_IMAGE DIM]

The dense form holds the captions x images score matrix and ranks all of it by argsort, as published metric code does.
Each side runs in a process of its own on the same vectors, so that the peaks of memory do not mix.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)


def vectors(images: int, per_image: int, dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Unit rows: each caption is its image plus noise."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, dim), dtype=np.float32)
    text = np.repeat(image, per_image, axis=0) + 4 * rng.standard_normal((images * per_image, dim), dtype=np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))  # type: ignore[return-value]


def dense(
    image: npt.NDArray[np.float32], text: npt.NDArray[np.float32], owner: npt.NDArray[np.int64]
) -> dict[str, float]:
    """R@k from the whole score matrix and a full argsort of it."""
    scores = text @ image.T
    found = {}
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in KS:
        found[f"t2i R@{k}"] = float((order[:, :k] == owner[:, None]).any(axis=1).mean())
    order = np.argsort(-scores.T, axis=1, kind="stable")
    for k in KS:
        found[f"i2t R@{k}"] = float((owner[order[:, :k]] == np.arange(len(image))[:, None]).any(axis=1).mean())
    return found


def ours(
    image: npt.NDArray[np.float32], text: npt.NDArray[np.float32], owner: npt.NDArray[np.int64]
) -> dict[str, float]:
    """R@k (and the exact ranks) by cs_aligner_cli."""
    from cs_aligner_cli.retrieval import evaluate_retrieval

    result = evaluate_retrieval(image, text, owner, ks=KS)
    return {f"{direction} R@{k}": result[direction][f"R@{k}"] for direction in ("t2i", "i2t") for k in KS}


SIDES = {"dense": dense, "ours": ours}


def _one(side: str, images: int, per_image: int, dim: int) -> None:
    image, text = vectors(images, per_image, dim)
    owner = np.repeat(np.arange(images), per_image)
    if side == "ours":
        import cs_aligner_cli.retrieval  # noqa: F401 (importing torch and faiss is not what is timed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = SIDES[side](image, text, owner)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "found": found}))


def main() -> None:
    """Run both sides and print their ratio."""
    if len(sys.argv) > 1 and sys.argv[1] in SIDES:
        _one(sys.argv[1], *map(int, sys.argv[2:]))
        return
    size = sys.argv[1:4] if len(sys.argv) == 4 else ["5000", "5", "512"]
    results = {}
    for side in SIDES:
        output = subprocess.run(
            [sys.executable, __file__, side, *size], check=True, capture_output=True, text=True
        ).stdout
        results[side] = json.loads(output)
        print(f"{side:>6}: {results[side]['seconds']:6.2f} s, {results[side]['peak_mb']:7.0f} MB above the inputs")
    worst = max(abs(results["ours"]["found"][key] - value) for key, value in results["dense"]["found"].items())
    print(
        f"{size[0]} images x {int(size[0]) * int(size[1])} captions, d = {size[2]}: "
        f"ours takes {results['ours']['seconds'] / results['dense']['seconds']:.2f} of the time and "
        f"{results['ours']['peak_mb'] / results['dense']['peak_mb']:.2f} of the memory; "
        f"largest difference in R@k {worst:.1e}"
    )


if __name__ == "__main__":
    main()
