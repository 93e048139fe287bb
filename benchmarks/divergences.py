"""Every divergence under one recipe: what each closes of the gap, what it costs in R@1, and in time.

python benchmarks/divergences.py --root FOLDER [--recipe flickr8k_divergences] [--seeds 3] [--kinds cs mmd]

Trains the recipe once per divergence and seed, and prints one Markdown table: mean and standard deviation over seeds.
Prepared data and frozen embeddings are made once; a run that is already there is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.objectives.table import DIVERGENCES
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.stages.pipeline import run_all

NONE = "none (InfoNCE alone)"
COLUMNS = ("i2t R@1", "t2i R@1", "centroid gap", "paired cosine", "train s")


def measured(recipe: str, kind: str, seed: int, root: Path, folder: Path) -> list[float]:
    """Run one recipe with one divergence and seed; return the values of COLUMNS."""
    part = "train.objective.divergence"
    settings = [f"{part}.weight=0"] if kind == NONE else [f"{part}.kind={kind}"]
    name = f"{kind.split()[0]}-{seed}"
    settings += [f"seed={seed}", f"data.root={root}", f"run_dir={folder / name}"]
    settings += [f"data.dir={folder / 'data'}", f"embed.dir={folder / 'frozen'}"]
    done = run_all(load_recipe(recipe, settings), Console(quiet=True))
    results = {stage: result.data() for stage, result in done.items()}
    found = results["eval_retrieval"]["eval_retrieval"]["aligned"]
    gap = results["gap_report"]["gap_report"]["aligned"]
    return [
        100 * found["i2t"]["R@1"],
        100 * found["t2i"]["R@1"],
        gap["centroid_gap"],
        gap["paired_cosine"],
        results["train"]["runs"]["aligned"]["seconds"],
    ]


def row(kind: str, values: Sequence[Sequence[float]]) -> str:
    """One line of the table."""
    cells = []
    for column, numbers in zip(COLUMNS, zip(*values, strict=True), strict=True):
        digits = 0 if column == "train s" else 1 if "R@1" in column else 3
        spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        cells.append(f"{statistics.fmean(numbers):.{digits}f}{spread}")
    return f"| {kind} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, a line as soon as its runs are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the recipe's data")
    parser.add_argument("--recipe", default="flickr8k_divergences", help="recipe to train")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per divergence, from 0")
    parser.add_argument("--kinds", nargs="+", default=[NONE, *DIVERGENCES], help="divergences to train")
    parser.add_argument("--out", type=Path, default=Path("runs/divergences"), help="folder of the runs")
    options = parser.parse_args()
    print(f"| divergence | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for kind in options.kinds:
        runs = [
            measured(options.recipe, kind, seed, options.root.resolve(), options.out.resolve())
            for seed in range(options.seeds)
        ]
        print(row(kind, runs), flush=True)


if __name__ == "__main__":
    main()
