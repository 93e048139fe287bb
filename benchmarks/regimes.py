"""What each data regime is worth on Flickr8k: unpaired items beside few pairs, and the caption modes.

python benchmarks/regimes.py unpaired|captions --root FOLDER [--pairs 500 1000 2000] [--seeds 5] [--set key=value ...]

Trains recipes/flickr8k_unpaired.yaml once per row and seed, and prints a Markdown table: mean and standard deviation
over seeds, and paired t-tests over seeds against the rows above that it is to be compared with. Prepared data and
frozen embeddings are made once; a run that is already there is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.stats import ttest_rel

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store

Table: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]  # (seeds, columns)
RECIPE = "flickr8k_unpaired"
IMAGES = 6000
COLUMNS = ("R@1", "R@10", "centroid gap", "paired cosine")
NO_DIVERGENCE = "train.objective.divergence.weight=0"
# What a search with seeds 100 and 101 found best for 1,000 pairs.
BEST = ["train.objective.divergence.weight=3.0", "train.objective.divergence.bandwidth=0.5"]
PAIRS_ALONE = "train.unpaired_per_pair={image: 0, text: 0}"


def measured(name: str, settings: Sequence[str], root: Path, folder: Path) -> list[float]:
    """Run one recipe up to its aligned store; the values of COLUMNS on dev, recalls in % over both directions."""
    shared = [f"data.root={root}", f"data.dir={folder / 'data'}", f"embed.dir={folder / 'frozen'}"]
    recipe = load_recipe(RECIPE, [*settings, *shared, f"run_dir={folder / name}"])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    return _measured(recipe)


def _measured(recipe: Recipe) -> list[float]:
    layout, name = Layout(recipe), recipe.eval_retrieval.split
    split = PreparedData(layout.prepared.path).split(name, "eval_retrieval.split")
    store = Store(layout.aligned(ALIGNED, name).path)
    image, text = store.array("image").all(), store.array("text").all()
    found = evaluate_retrieval(image, text, split.image_of_caption, ks=(1, 10))
    images, captions = split.pairs
    image, text = image[images], text[captions]
    return [
        *(50 * (found["i2t"][f"R@{k}"] + found["t2i"][f"R@{k}"]) for k in (1, 10)),
        float(np.linalg.norm(image.mean(0) - text.mean(0))),
        float((image * text).sum(1).mean()),
    ]


def steps(pairs: int, passes: int) -> list[str]:
    """The settings that give a number of pairs and of passes over them; all images are at hand in any case."""
    paired = "data.unpaired=null" if pairs >= IMAGES else f"data.unpaired.paired_fraction={pairs / IMAGES}"
    return [paired, f"train.epochs={passes}"]


class Row(NamedTuple):
    """One row of a table: its name, its settings, and the names of the rows that it is tested against."""

    name: str
    settings: list[str]
    rivals: tuple[str, ...] = ()


def unpaired_rows(pairs: Sequence[int], passes: Mapping[int, int], best: Sequence[str]) -> list[Row]:
    """The table on unpaired items: the recipe's own settings, then the best ones found, with and without unpaired."""
    rows: list[Row] = []
    for count in [*pairs, IMAGES]:
        base, own = f"{count:,} pairs", steps(count, passes[count])
        names = {kind: f"{base}: {kind}" for kind in ("InfoNCE", "+ CS on the pairs", "+ CS with unpaired")}
        infonce, alone, more = names.values()
        rows.append(Row(infonce, [*own, NO_DIVERGENCE, PAIRS_ALONE]))
        rows.append(Row(alone, [*own, PAIRS_ALONE], (infonce,)))
        if count < IMAGES:
            rows.append(Row(more, own, (infonce, alone)))
            if best:
                rows.append(Row(f"{alone}, best", [*own, *best, PAIRS_ALONE], (infonce,)))
                rows.append(Row(f"{more}, best", [*own, *best], (infonce, f"{alone}, best")))
    return rows


def caption_rows(passes: Mapping[int, int]) -> list[Row]:
    """The table of the caption modes, on all pairs."""
    modes = {
        "one_random": "one_random",
        "first": "first",
        "all": "all",
        "weighted": "{kind: weighted, weights: [3, 1]}",
    }
    own = steps(IMAGES, passes[IMAGES])
    return [
        Row(f"captions: {name}", [*own, f"train.captions={value}"], ("captions: one_random",) * (name != "one_random"))
        for name, value in modes.items()
    ]


def line(row: Row, found: Mapping[str, Table]) -> str:
    """One row of the table: mean and standard deviation, and paired tests of R@1 over seeds."""
    values, cells = found[row.name], []
    for column, numbers in zip(COLUMNS, values.T, strict=True):
        digits = 1 if column.startswith("R@") else 3
        spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        cells.append(f"{statistics.fmean(numbers):.{digits}f}{spread}")
    tests = []
    for rival in row.rivals if len(values) > 1 else ():
        if rival in found:
            difference = (values[:, 0] - found[rival][:, 0]).mean()
            p = ttest_rel(values[:, 0], found[rival][:, 0]).pvalue
            tests.append(f"{difference:+.2f} (p {p:.3f}) to {rival.split(': ')[1]}")
    return f"| {row.name} | {' | '.join(cells)} | {'; '.join(tests)} |"


def main() -> None:
    """Print the table, a line as soon as its runs are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["unpaired", "captions"], help="what is compared")
    parser.add_argument("--root", type=Path, required=True, help="folder of Flickr8k")
    parser.add_argument("--pairs", type=int, nargs="+", default=[500, 1000, 2000], help="how many pairs are kept")
    parser.add_argument(
        "--passes", type=int, nargs="+", default=[60, 60, 40, 20], help="passes over the pairs, and all"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds per row")
    parser.add_argument("--first-seed", type=int, default=0, help="the first seed")
    parser.add_argument("--best", nargs="*", default=BEST, metavar="KEY=VALUE", help="settings of the rows called best")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all rows")
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("runs/regimes"), help="folder of the runs")
    options = parser.parse_args()
    passes = dict(zip([*options.pairs, IMAGES], options.passes, strict=True))
    rows = unpaired_rows(options.pairs, passes, options.best) if options.table == "unpaired" else caption_rows(passes)
    print(f"| training on | {' | '.join(COLUMNS)} | R@1 against |\n|{'---|' * (len(COLUMNS) + 2)}")
    found: dict[str, Table] = {}
    for row in rows:
        if options.only not in row.name:
            continue
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            folder = "".join(c if c.isalnum() else "-" for c in row.name) + f"-{seed}"
            chosen = [*options.set, *row.settings, f"seed={seed}"]
            runs.append(measured(folder, chosen, options.root.resolve(), options.out.resolve()))
        found[row.name] = np.array(runs)
        print(line(row, found), flush=True)


if __name__ == "__main__":
    main()
