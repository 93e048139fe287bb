"""The gap report at three sizes: time and peak memory of one command line each (make bench-gap).

    python benchmarks/gap.py [nine | coco | million] ...     # all three without arguments

nine     1,000 pairs, 512 dimensions, nine columns: frozen with five baselines, the control with one, aligned.
coco     5,000 images x 25,000 captions, 512 dimensions: frozen with five baselines.
million  1,000,000 pairs, 512 dimensions, all of them measured (max_pairs): the frozen store.

Data are drawn, prepared, embedded and trained on before the clock starts; ``csalign gap-report`` then runs in a process
of its own, whose own memory is sampled (mapped files, which the system may drop at any time, are not counted).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DIM = 512
_BLOCK = 20_000
_CALL = (sys.executable, "-c", "from cs_aligner_cli.cli.main import main; main()")


def draw(folder: Path, splits: dict[str, int], captions: int) -> None:
    """Tables and float16 features of images and of ``captions`` captions each, which share a signal and have a gap."""
    rng = np.random.default_rng(0)
    count = sum(splits.values())
    names = np.array([f"{i:07d}" for i in range(count)])
    split = np.repeat(list(splits), list(splits.values()))
    pd.DataFrame({"image": names, "split": split}).to_parquet(folder / "images.parquet")
    texts = pd.DataFrame({"image": names.repeat(captions), "split": split.repeat(captions)})
    texts.assign(caption=[f"caption {i}" for i in range(len(texts))]).to_parquet(folder / "captions.parquet")
    shape = {"image": (count, DIM), "text": (count * captions, DIM)}
    files = {
        m: np.lib.format.open_memmap(folder / f"{m}.npy", mode="w+", dtype=np.float16, shape=shape[m]) for m in shape
    }
    scales = (1 / np.sqrt(1 + np.arange(DIM))).astype(np.float32)
    gap = np.eye(DIM, dtype=np.float32)[-1]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        signal = rng.standard_normal((stop - start, DIM), dtype=np.float32) * scales
        files["image"][start:stop] = signal + 0.05 * rng.standard_normal(signal.shape, dtype=np.float32) + gap
        per_caption = signal.repeat(captions, axis=0)
        per_caption += 0.05 * rng.standard_normal(per_caption.shape, dtype=np.float32) - gap
        files["text"][start * captions : stop * captions] = per_caption


def recipe(folder: Path, **settings: Any) -> Path:
    """A recipe over what ``draw`` wrote; JSON is YAML."""
    manifest = {
        "name": "drawn",
        "kind": "embeddings",
        "root": str(folder),
        "images": {"table": "images.parquet", "features": "image.npy"},
        "captions": {"table": "captions.parquet", "features": "text.npy"},
    }
    (folder / "manifest.yaml").write_text(json.dumps(manifest))
    content = {
        "name": "bench",
        "run_dir": str(folder / "run"),
        "data": {"manifest": str(folder / "manifest.yaml")},
        "encoders": {"image": {"kind": "features"}, "text": {"kind": "features"}},
        "embed": {"dtype": "float16"},
        **settings,
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return folder / "recipe.yaml"


def nine(folder: Path) -> Path:
    """1,000 pairs, nine columns."""
    draw(folder, {"train": 5000, "test": 1000}, 1)
    return recipe(folder, train={"epochs": 1, "pairwise_only": True})


def coco(folder: Path) -> Path:
    """5,000 images with 25,000 captions, six columns."""
    draw(folder, {"train": 5000, "test": 5000}, 5)
    return recipe(folder, train=None, gap_report={"baselines": {"split": "train"}})


def million(folder: Path) -> Path:
    """A million pairs, one column."""
    draw(folder, {"test": 1_000_000}, 1)
    report = {"max_pairs": 1_000_000, "baselines": {"frozen": []}}
    return recipe(folder, train=None, gap_report=report)


SIZES = {"nine": nine, "coco": coco, "million": million}


def call(*arguments: str) -> tuple[float, float, float]:
    """Run csalign; return its seconds, those of the processor, and the peak of its own memory in MiB."""
    started, peak = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([*_CALL, *arguments], stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        peak = max([peak, *(int(line.split()[1]) for line in lines)])
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, processor, peak / 1024


def main(sizes: Sequence[str]) -> None:
    """Print a line for every size."""
    print(
        f"{'size':10}{'seconds':>9}{'processor':>11}{'peak MiB':>10}   of its own memory, on {os.cpu_count()} cores",
        flush=True,
    )
    for size in sizes or SIZES:
        with tempfile.TemporaryDirectory() as name:
            path = SIZES[size](Path(name))
            trains = size == "nine"
            for stage in ("prepare", "embed", *(("train", "embed") if trains else ())):
                call(stage, str(path), "--quiet")
            seconds, processor, peak = call("gap-report", str(path))
            print(f"{size:10}{seconds:9.1f}{processor:11.1f}{peak:10.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
