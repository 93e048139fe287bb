"""What the noise filter is worth where a known share of the training captions is shuffled, on drawn features.

python benchmarks/noisy_pairs.py [--shuffled 0.2] [--seeds 5]

Draws 2,000 training pairs and 1,000 to test on, two nonlinear views of one latent variable, trains an adapter on either
side with InfoNCE at a temperature of 0.05, with and without the filter, on shuffled and on clean captions, and prints
R@1 on the test pairs (mean of both ways, over seeds, which draw other data, too), what the filter adds to it, seed by
seed (mean and standard deviation), and of the final embeddings of the training pairs
how many of the pairs that the filter would leave out are shuffled, and how many of the shuffled it would leave out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

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
        "data": {"manifest": str(folder / "manifest.yaml")},
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


def measured(share: float, seed: int, deviations: float | None) -> tuple[float, float, float]:
    """R@1, and the filter's precision and recall in finding the shuffled pairs, in percent."""
    with TemporaryDirectory() as folder:
        shuffled = draw(Path(folder) / "data", share, seed)
        recipe = trained(Path(folder) / "data", seed, deviations)
        found = evaluate_retrieval(*embedded(recipe, "test"), ks=(1,))
        left = ~likely_pairs(*embedded(recipe, "train"), deviations or 1.0).numpy()
    r_at_1 = 50.0 * (found["i2t"]["R@1"] + found["t2i"]["R@1"])
    found_wrong = (left & shuffled).sum()
    return r_at_1, 100 * found_wrong / max(1, left.sum()), 100 * found_wrong / max(1, shuffled.sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shuffled", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [
        "captions",
        "filter",
        "R@1",
        "more than without",
        "shuffled, of those left out",
        "found, of the shuffled",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for share in (0.0, options.shuffled):
        without: list[float] = []
        for deviations in (None, 0.5, 1.0):
            recalls, precision, recall = zip(
                *(measured(share, seed, deviations) for seed in range(options.seeds)), strict=True
            )
            without = without or [*recalls]
            gain = np.subtract(recalls, without)
            cells = [f"{share:.0%} shuffled", str(deviations or "none"), f"{np.mean(recalls):.1f}"]
            cells += [f"{gain.mean():+.1f} +- {gain.std(ddof=1):.1f}" if deviations else ""]
            cells += [f"{np.mean(part):.0f}%" if share and deviations else "" for part in (precision, recall)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
