"""prepare on a table of a million captions: time and peak memory, and how both grow.

    python benchmarks/prepare.py [--rows 100000 1000000] [--captions-per-image 5]
    python benchmarks/prepare.py --layouts flickr30k hugging_face      # 30,000 images, 155,000 captions

Each size is a CSV of unlike captions and images on disk: 64 small JPEGs under many names, hard links. `csalign prepare`
runs in a process of its own; its peak memory is what the kernel says of it. Beside it, in one run: the plain loop,
pandas.read_csv and every image opened by PIL once, which checks as much of the images but neither duplicates nor
captions. What each row costs in memory is the difference between the sizes. The layouts are Kaggle's results.csv with
its pipes, and Parquet shards with the images inside; the plain loop reads the same files with pandas.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

WORDS = re.findall(
    r"\w+",
    "a the dog cat man woman child red blue small large runs sits jumps on under near grass table street water",
)
PLAIN = """
import sys
import pandas as pd
from PIL import Image
table = pd.read_csv("{root}/captions.csv")
sizes = []
for name in table["image"].unique():
    with Image.open("{root}/images/" + name) as image:
        sizes.append(image.convert("RGB").size)
"""
PLAIN_OF = {
    "flickr30k": """
import pandas as pd
from PIL import Image
table = pd.read_csv("{root}/results.csv", sep="|", skipinitialspace=True)
sizes = []
for name in table["image_name"].unique():
    with Image.open("{root}/flickr30k_images/" + name) as image:
        sizes.append(image.convert("RGB").size)
""",
    "hugging_face": """
from glob import glob
from io import BytesIO
import pandas as pd
from PIL import Image
sizes, captions = [], []
for path in sorted(glob("{root}/data/*.parquet")):
    table = pd.read_parquet(path)
    captions += table["caption"].tolist()
    for cell in table["image"]:
        with Image.open(BytesIO(cell["bytes"])) as image:
            sizes.append(image.convert("RGB").size)
""",
}
OURS = "from cs_aligner_cli.cli.main import main; main()"


def write_pool(root: Path) -> Path:
    """A folder of 64 small JPEGs."""
    pool, rng = root / "pool", np.random.default_rng(0)
    pool.mkdir(parents=True)
    for i in range(64):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(pool / f"{i}.jpg", quality=80)
    return pool


def write_flickr30k(root: Path, images: int, captions: int) -> dict[str, Any]:
    """Kaggle's layout: results.csv and the folder of images; returns the manifest."""
    pool, draw = write_pool(root), random.Random(0)
    (root / "flickr30k_images").mkdir()
    with (root / "results.csv").open("w", encoding="utf-8") as file:
        file.write("image_name| comment_number| comment\n")
        for image in range(images):
            os.link(pool / f"{image % 64}.jpg", root / "flickr30k_images" / f"{image}.jpg")
        for i in range(captions):
            file.write(f"{i % images}.jpg| {i // images}| {' '.join(draw.choices(WORDS, k=11))} {i} .\n")
    columns = {"image_column": "image_name", "caption_column": "comment"}
    fractions = {"train": 0.95, "test": 0.05}
    return {"table": "results.csv", "image_dir": "flickr30k_images", **columns, "split_fractions": fractions}


def write_hugging_face(root: Path, images: int, captions: int) -> dict[str, Any]:
    """Ten Parquet shards with the images inside and a list of captions; returns the manifest."""
    pool, draw = write_pool(root), random.Random(0)
    contents = [(pool / f"{i}.jpg").read_bytes() for i in range(64)]
    (root / "data").mkdir()
    for shard in range(10):
        rows = []
        for i in range(shard, images, 10):
            texts = [f"{' '.join(draw.choices(WORDS, k=11))} {k} {i}" for k in range(i, captions, images)]
            rows.append({"image": {"bytes": contents[i % 64], "path": f"{i}.jpg"}, "caption": texts})
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, root / "data" / f"train-{shard:05d}-of-00010.parquet", row_group_size=100)
    return {"tables": {"train": "data/train-*.parquet"}}


LAYOUTS = {"flickr30k": write_flickr30k, "hugging_face": write_hugging_face}


def write_data(root: Path, rows: int, per_image: int) -> None:
    """``root``/captions.csv and the images that it names."""
    pool, draw = write_pool(root), random.Random(0)
    with (root / "captions.csv").open("w", encoding="utf-8") as file:
        file.write("image,caption,split\n")
        for image in range(rows // per_image):
            folder = root / "images" / f"{image // 1000:04d}"
            if image % 1000 == 0:
                folder.mkdir(parents=True)
            name = f"{image:08d}.jpg"
            os.link(pool / f"{image % 64}.jpg", folder / name)
            split = "test" if image % 100 == 0 else "train"
            for _ in range(per_image):
                file.write(f"{folder.name}/{name},{' '.join(draw.choices(WORDS, k=11))} {image},{split}\n")
    write_recipe(root, {"table": "captions.csv", "image_dir": "images"})


def write_recipe(root: Path, keys: dict[str, Any]) -> None:
    """``root``/r.yaml over a manifest of a table with these keys."""
    manifest = {"name": "bench", "kind": "table", "root": str(root), **keys}
    recipe: dict[str, Any] = {"name": "bench", "run_dir": str(root / "run"), "data": {"manifest": "m.yaml"}}
    # A text tower of the hub: counting tokens is a measure of its own (see docs/data.md).
    recipe["encoders"] = {"text": {"kind": "transformers", "model": "none"}}
    (root / "m.yaml").write_text(yaml.safe_dump(manifest))
    (root / "r.yaml").write_text(yaml.safe_dump(recipe))


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """(seconds on the clock, seconds of CPU, peak MB) of a process."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def measure_layouts(names: list[str], images: int = 30_000, captions: int = 155_000) -> None:
    """Measure prepare on published layouts, and a plain loop beside it."""
    print(f"{captions:,} captions of {images:,} images\n{'':<30} {'seconds':>8} {'CPU s':>7} {'peak MB':>8}")
    for name in names:
        with TemporaryDirectory(prefix="bench-prepare-") as scratch:
            root = Path(scratch)
            write_recipe(root, LAYOUTS[name](root, images, captions))
            sides = {
                "csalign": ["-c", OURS, "prepare", "-q", str(root / "r.yaml")],
                "plain loop": ["-c", PLAIN_OF[name].format(root=root)],
            }
            for side, arguments in sides.items():
                seconds, cpu, peak = measured(arguments)
                print(f"{name:<14} {side:<15} {seconds:>8.1f} {cpu:>7.1f} {peak:>8.0f}", flush=True)


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS)
    options = parser.parse_args()
    if options.layouts:
        measure_layouts(options.layouts)
        return
    print(f"{'captions':>10} {'images':>9} {'':<14} {'seconds':>8} {'CPU s':>7} {'peak MB':>8}")
    peaks: dict[str, list[float]] = {}
    for rows in options.rows:
        with TemporaryDirectory(prefix="bench-prepare-") as scratch:
            root = Path(scratch)
            write_data(root, rows, options.captions_per_image)
            sides = {
                "csalign": ["-c", OURS, "prepare", str(root / "r.yaml")],
                "csalign again": ["-c", OURS, "prepare", str(root / "r.yaml")],
                "plain loop": ["-c", PLAIN.format(root=root)],
            }
            for name, arguments in sides.items():
                seconds, cpu, peak = measured(arguments)
                peaks.setdefault(name, []).append(peak)
                images = rows // options.captions_per_image
                print(f"{rows:>10,} {images:>9,} {name:<14} {seconds:>8.1f} {cpu:>7.1f} {peak:>8.0f}", flush=True)
    for name, found in peaks.items():
        if len(found) > 1:
            grown = (found[-1] - found[0]) / (options.rows[-1] - options.rows[0]) * 2**20
            print(f"{name}: {grown:.0f} bytes of peak memory more for each caption more")


if __name__ == "__main__":
    main()
