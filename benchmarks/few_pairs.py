"""What terms for few pairs, and unpaired items under each, are worth on Flickr8k.

python benchmarks/few_pairs.py --root FOLDER [--pairs 1000] [--seeds 3] [--passes 30] [--only InfoNCE teacher]

Trains recipes/flickr8k_unpaired.yaml once per row and seed, step by step as ``csalign train`` does, but without its
validation and checkpoints, which cost more than the steps of few pairs and change nothing of the last weights. Writes
docs/results/few_pairs.json after every seed; ``python benchmarks/results.py tables`` writes it into docs/regimes.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import results

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.towers import Inputs, Towers, embed_split
from cs_aligner_cli.training.scheduled_objective import ObjectiveState
from cs_aligner_cli.training.setup import set_up
from cs_aligner_cli.training.step import Stepper

RECIPE, IMAGES = "flickr8k_unpaired", 6000
_NO_CS, _PAIRS = "train.objective.divergence.weight=0", "train.unpaired_per_pair={image: 0, text: 0}"
_STRUCTURE = "train.objective.structure={kind: kl}"
ROWS: dict[str, list[str]] = {
    "InfoNCE": [_NO_CS, _PAIRS],
    "+ structure and CS, pairs": [_STRUCTURE, _PAIRS],
    "+ structure and CS, unpaired": [_STRUCTURE],
    "+ teacher, pairs": [_NO_CS, _PAIRS, "train.objective.teacher={unpaired_moments: false}"],
    "+ teacher, unpaired": [_NO_CS, "train.objective.teacher={}"],
    "+ unpaired negatives": [_NO_CS, "train.objective.pairwise.unpaired_negatives=true"],
}
# What is tested: of each first row against the second.
AGAINST = [
    *((label, "InfoNCE") for label in ROWS if label != "InfoNCE"),
    ("+ structure and CS, unpaired", "+ structure and CS, pairs"),
    ("+ teacher, unpaired", "+ teacher, pairs"),
]


def trained(settings: Sequence[str], seed: int, root: Path, out: Path) -> dict[str, float]:
    """What ``results`` measures of a store, on dev, of the last weights of one run."""
    shared = [f"data.root={root}", f"data.dir={out / 'data'}", f"embed.dir={out / 'frozen'}"]
    recipe = load_recipe(RECIPE, [*settings, *shared, f"run_dir={out / 'run'}", f"seed={seed}"])
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    assert recipe.train is not None
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    stepper = Stepper(recipe.train, setup.towers, setup.steps, seed, setup.device, recipe.edges, teacher=setup.teacher)
    state = ObjectiveState()
    for step in range(setup.steps):
        _, state = stepper.step(step, setup.batches.load(step, setup.inputs), state)
    return _measured(recipe, setup.towers)


def _measured(recipe: Recipe, towers: Towers) -> dict[str, float]:
    layout, name = Layout(recipe), recipe.eval_retrieval.split
    split = PreparedData(layout.prepared.path).split(name, "eval_retrieval.split")
    inputs, device = Inputs(towers.plans, {}, {name: Store(layout.frozen(name).path)}), towers.log_logit_scale.device
    rows = {m: embed_split(towers, inputs, m, split, np.arange(len(split.table(m))), device) for m in MODALITIES}
    return results._values(lambda modality, wanted: rows[modality][wanted], split)


def main() -> None:
    """Train every row with one seed after another, and write what is there after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of Flickr8k's features")
    parser.add_argument("--pairs", type=int, default=1000, help="how many pairs are kept")
    parser.add_argument("--passes", type=int, default=30, help="passes over them")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs/few_pairs"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="only rows that hold one of these words")
    options = parser.parse_args()
    chosen = {k: v for k, v in ROWS.items() if not options.only or any(word in k for word in options.only)}
    given = [f"data.unpaired.paired_fraction={options.pairs / IMAGES}", f"train.epochs={options.passes}"]
    values: dict[str, list[dict[str, float]]] = {label: [] for label in chosen}
    for seed in range(options.seeds):
        for label, settings in chosen.items():
            values[label].append(trained([*given, *settings], seed, options.root.resolve(), options.out.resolve()))
            print(results.line(f"{label}, seed {seed}", {k: [v] for k, v in values[label][-1].items()}), flush=True)
        rows = [
            {
                "label": label,
                "recipe": RECIPE,
                "store": "aligned",
                "settings": [*given, *ROWS[label]],
                "values": {key: [round(one[key], 6) for one in runs] for key in runs[0]},
            }
            for label, runs in values.items()
        ]
        command = f"python benchmarks/few_pairs.py --root FOLDER --seeds {seed + 1}"
        command += f" --only {' '.join(options.only)}" if options.only else ""
        content = {"name": "few_pairs", "command": command, **results._where(), "seeds": [*range(seed + 1)]}
        path = results.RESULTS / "few_pairs.json"
        against = [pair for pair in AGAINST if {*pair} <= {*values}]
        path.write_text(json.dumps({**content, "rows": rows, "against": against}, indent=1) + "\n")


if __name__ == "__main__":
    main()
