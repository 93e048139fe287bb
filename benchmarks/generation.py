"""What closing the gap buys in pictures: one decoder fed with texts of every kind, over seeds.

python benchmarks/generation.py FOLDER [--seeds 3] [--prompts 500] [--decoder closed_form|trained]

Trains recipes/scenes_generate.yaml once per objective and seed, draws the same prompts from every store, and prints a
Markdown table: means over seeds with 95% intervals (t), and the p-value of a paired t-test over seeds against InfoNCE
alone. Stores that need no training differ between seeds only by decoder and noise. Wants runs/scenes_alone_clip in the
current folder (csalign run recipes/scenes_alone_clip.yaml). Data and frozen stores are made once, and a run that is
already there is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import t, ttest_rel

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.generate.result import GenerateResult
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store

RECIPE = "scenes_generate"
_L2 = "train.objective.pairwise={kind: l2_contrastive, logit_scale: {init: 20, learn: false}}"
_ALONE = ("train.pairwise_only=false", "generate.stores=[aligned]", "generate.bounds=[]")
# Name of what is trained: its settings beside the recipe's, which is InfoNCE + CS with InfoNCE as its control.
RUNS: dict[str, tuple[str, ...]] = {
    "InfoNCE + CS": ("generate.bounds=[image, other_image]",),
    "InfoNCE + 3 CS": (*_ALONE, "train.objective.divergence.weight=3.0"),
    "L2 + 0.2 InfoNCE": (*_ALONE, _L2, "train.objective.divergence.weight=0"),
    "L2 + 0.2 InfoNCE + CS": (*_ALONE, _L2),
}
NAMES = {"pairwise_only": "InfoNCE", "other_image": "another image", "image": "the image itself"}
COLUMNS = {
    "accuracy_background": "background",
    "accuracy_colour": "colour",
    "accuracy_cell": "cell",
    "accuracy_shape": "shape",
    "prompt_R@1": "prompt R@1",
    "condition_cosine": "cosine to what was fed",
    "gap": "centroid gap",
}
SHARES = ("accuracy_background", "accuracy_colour", "accuracy_cell", "accuracy_shape", "prompt_R@1")


def drawn(name: str, seed: int, folder: Path, settings: list[str]) -> dict[str, dict[str, float]]:
    """One run up to its pictures: the metrics of each of its stores, under the name of the objective."""
    shared = [f"data.dir={folder / 'data'}", f"embed.dir={folder / 'frozen'}", f"seed={seed}"]
    own = folder / f"{name.replace(' ', '').replace('+', '-')}-{seed}"
    recipe = load_recipe(RECIPE, [*RUNS[name], *shared, *settings, f"run_dir={own}"])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    result = run_stage("generate", recipe, Console(quiet=True))
    assert isinstance(result, GenerateResult)
    found: dict[str, dict[str, float]] = {}
    for store, metrics in result.generate.items():
        label = NAMES.get(store, name if store == "aligned" else store)
        found[label] = {**metrics, "gap": gap(recipe, store)}
    return found


def gap(recipe: Recipe, name: str) -> float:
    """The distance between the means of unit rows, images and texts; NaN for what is no store."""
    stores = Layout(recipe).stores(recipe.drawn_split)
    if name not in stores:
        return float("nan")
    store = Store(stores[name].path)
    means = []
    for modality in ("image", "text"):
        rows = store.array(modality).all()
        means.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0))
    return float(np.linalg.norm(means[0] - means[1]))


def cell(metric: str, values: list[float], control: list[float]) -> str:
    """Mean and half width of the 95% interval; the p-value of the difference to the control where seeds vary."""
    if np.isnan(values).any():
        return ""
    factor = 100 if metric in SHARES else 1
    digits = 1 if metric in SHARES else 3
    text = f"{factor * np.mean(values):.{digits}f}"
    if len(values) > 1:
        width = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        text += f" +- {factor * width:.{digits}f}"
        if metric == "accuracy_background" and np.std(np.subtract(values, control)) > 0:
            text += f" (p {ttest_rel(values, control).pvalue:.2g})"
    return text


def main() -> None:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--decoder", choices=("closed_form", "trained"), default="closed_form")
    arguments = parser.parse_args()
    settings = [f"generate.limit={arguments.prompts}"]
    if arguments.decoder == "closed_form":
        settings += ["generate.train_decoder=null", "generate.decoder={kind: closed_form}", "generate.guidance=null"]
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for name in RUNS:
            for label, metrics in drawn(name, seed, arguments.folder.resolve(), settings).items():
                rows.setdefault(label, []).append(metrics)
                print(f"seed {seed}, {label}: {metrics}", flush=True)
    print("| texts | " + " | ".join(COLUMNS.values()) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for label, found in rows.items():
        values = {metric: [one.get(metric, float("nan")) for one in found] for metric in COLUMNS}
        control = {metric: [one.get(metric, float("nan")) for one in rows["InfoNCE"]] for metric in COLUMNS}
        cells = [cell(metric, values[metric], control[metric]) for metric in COLUMNS]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
