"""What the noise filter is worth where a known share of the training captions is shuffled, on drawn features.

python benchmarks/noisy_pairs.py [--shuffled 0.2] [--seeds 10]   # prints a table, writes docs/results/noisy_pairs.json
python benchmarks/results.py tables                              # puts it into docs/objectives.md

Draws 2,000 training pairs and 1,000 to test on, two nonlinear views of one latent variable, trains an adapter on either
side with InfoNCE at a temperature of 0.05, with and without the filter, on clean and on shuffled captions, and takes
R@1 on the test pairs (mean of both ways) and, of the final embeddings of the training pairs, how many of the pairs that
the filter would leave out are shuffled, and how many of the shuffled it would leave out. Seeds draw other data, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import results
import torch
from table_cells import noise

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.latent import draw_views
from cs_aligner_cli.objectives.noise_filter import likely_pairs
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store

TRAIN, TEST = 2000, 1000
# None: without the filter.
DEVIATIONS = (None, 0.5, 1.0)
TOWER = {"adapter": {"kind": "residual_mlp", "hidden_dim": 256}}


def draw(folder: Path, share: float, seed: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Write features, tables and the manifest; return which training pairs are shuffled."""
    rng = np.random.default_rng(seed)
    image, text = draw_views(TRAIN + TEST, 2, dim=64, latent_dim=16, noise=0.2, gap=2.0, curvature=0.5, rng=rng)
    wrong = rng.permutation(TRAIN)[: round(share * TRAIN)]
    text[wrong] = text[np.roll(wrong, 1)]
    folder.mkdir()
    names, split = [f"{i}" for i in range(len(image))], ["train"] * TRAIN + ["test"] * TEST
    pd.DataFrame({"image": names, "split": split}).to_csv(folder / "images.csv", index=False)
    captions = {"image": names, "caption": [f"text {i}" for i in names], "split": split}
    pd.DataFrame(captions).to_csv(folder / "captions.csv", index=False)
    for name, rows in (("image", image), ("text", text)):
        np.save(folder / f"{name}.npy", rows)
    manifest = f"""name: noisy
kind: embeddings
root: {folder}
images: {{table: images.csv, features: image.npy}}
captions: {{table: captions.csv, features: text.npy}}
"""
    (folder / "manifest.yaml").write_text(manifest)
    return np.isin(np.arange(TRAIN), wrong)


def trained(folder: Path, seed: int, deviations: float | None) -> Recipe:
    """A finished run over the drawn files."""
    objective = {"pairwise": {"logit_scale": {"init": 20, "learn": False}}, "divergence": {"weight": 0}}
    content = {
        "name": "noisy",
        "seed": seed,
        "run_dir": str(folder / f"run-{deviations}"),
        "data": {"manifest": str(folder / "manifest.yaml"), "dir": str(folder / "prepared")},
        "embed": {"dir": str(folder / "frozen")},
        "encoders": {"image": {"kind": "features"}, "text": {"kind": "features"}},
        "train": {"epochs": 20, "batch_size": 200, "image": TOWER, "text": TOWER, "objective": objective},
        "gap_report": {"split": "train", "baselines": {"aligned": []}},
    }
    recipe = load_recipe(content, [f"train.objective.noise_filter={{deviations: {deviations}}}"] if deviations else [])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    return recipe


def embedded(recipe: Recipe, split: str) -> list[torch.Tensor]:
    """Unit rows of images and texts of a split."""
    store = Store(Layout(recipe).aligned("aligned", split).path)
    return [l2_normalize(torch.from_numpy(store.array(modality).all())) for modality in ("image", "text")]


def measured(share: float, seed: int) -> list[dict[str, float]]:
    """R@1 of a run without the filter and with each of ``DEVIATIONS``, on the same data, in percent.

    With a filter and shuffled pairs its precision and recall in finding them, too.
    """
    lines = []
    with TemporaryDirectory() as folder:
        shuffled = draw(Path(folder) / "data", share, seed)
        for deviations in DEVIATIONS:
            recipe = trained(Path(folder) / "data", seed, deviations)
            found = evaluate_retrieval(*embedded(recipe, "test"), ks=(1,))
            line = {"R@1": 50.0 * (found["i2t"]["R@1"] + found["t2i"]["R@1"])}
            if deviations and share:
                left = ~likely_pairs(*embedded(recipe, "train"), deviations).numpy()
                right = 100.0 * int((left & shuffled).sum())
                line |= {"precision": right / max(1, int(left.sum())), "recall": right / int(shuffled.sum())}
            lines.append({name: round(value, 6) for name, value in line.items()})
    return lines


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shuffled", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for share in (0.0, options.shuffled):
        of_seeds = [measured(share, seed) for seed in range(options.seeds)]
        for deviations, lines in zip(DEVIATIONS, zip(*of_seeds, strict=True), strict=True):
            values = {name: [line[name] for line in lines] for name in lines[0]}
            rows.append({"shuffled": share, "deviations": deviations, "values": values})
    command = f"python benchmarks/noisy_pairs.py --shuffled {options.shuffled:g} --seeds {options.seeds}"
    content = {"name": "noisy_pairs", "command": command, **results._where()}
    content |= {"seeds": [*range(options.seeds)], "noise": rows}
    (results.RESULTS / "noisy_pairs.json").write_text(json.dumps(content, indent=1) + "\n")
    print(noise(content))


if __name__ == "__main__":
    main()
