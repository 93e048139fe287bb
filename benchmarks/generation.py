"""What closing the gap buys in pictures: one decoder fed with texts of every kind, over seeds.

python benchmarks/generation.py FOLDER [--seeds 3] [--prompts 250] [--decoder trained|closed_form] [--search]

Trains the text adapters of recipes/scenes_generate.yaml once per objective and seed, draws the same prompts of the test
split from every store, and writes docs/results/generation.json (generation_closed_form.json with that decoder), which
``python benchmarks/results.py tables`` writes into docs/generation.md. With ``--search`` weight and bandwidth of CS are
searched before on the validation split, with the closed form and one seed, and the best is a row of its own.

Wants runs/scenes_alone_clip and runs/scenes_generate in the current folder (csalign run of both recipes): one decoder,
that of the latter, draws for all seeds. Data and frozen stores are made once, and a run that is already there is not
made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import results

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.generate.result import GenerateResult
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store

RECIPE = "scenes_generate"
CLOSED_FORM = ("generate.train_decoder=null", "generate.decoder={kind: closed_form}", "generate.guidance=null")
_L2 = "train.objective.pairwise={kind: l2_contrastive, logit_scale: {init: 20, learn: false}}"
_ALONE = ("train.pairwise_only=false", "generate.stores=[aligned]", "generate.bounds=[]")
FIRST = "InfoNCE + CS"
# What is trained, by its name: the settings beside the recipe's, which is InfoNCE + CS with InfoNCE as its control.
RUNS: dict[str, tuple[str, ...]] = {
    FIRST: ("generate.bounds=[image]",),
    "L2 + 0.2 InfoNCE": (*_ALONE, _L2, "train.objective.divergence.weight=0"),
    "L2 + 0.2 InfoNCE + CS": (*_ALONE, _L2),
}
BEST = "InfoNCE + CS, searched"
WEIGHTS, BANDWIDTHS = (0.3, 1.0, 3.0, 10.0), (0.3, 0.5, 0.8)
NAMES = {
    "frozen": "frozen text",
    "frozen+mean_shift": "frozen + mean shift",
    "frozen+ridge": "frozen + ridge",
    "pairwise_only": "InfoNCE",
    "image": "the image itself",
}
# What is tested: of each first row against the second.
AGAINST = [
    *((label, "InfoNCE") for label in (FIRST, BEST, *list(RUNS)[1:], "frozen + ridge")),
    *((label, "L2 + 0.2 InfoNCE") for label in (FIRST, BEST, "L2 + 0.2 InfoNCE + CS")),
    *((label, "frozen + ridge") for label in (FIRST, BEST)),
]


def drawn(name: str, seed: int, folder: Path, settings: Sequence[str]) -> tuple[Recipe, dict[str, dict[str, float]]]:
    """One run up to its pictures: the metrics of each of its stores."""
    of_all = folder.parent
    shared = [f"data.dir={of_all / 'data'}", f"embed.dir={of_all / 'frozen'}", f"seed={seed}"]
    recipe = load_recipe(RECIPE, [*settings, *shared, f"run_dir={folder / name}"])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    result = run_stage("generate", recipe, Console(quiet=True))
    assert isinstance(result, GenerateResult)
    return recipe, {store: {**found, "gap": gap(recipe, store)} for store, found in result.generate.items()}


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


def searched(folder: Path) -> list[dict[str, float]]:
    """Weight and bandwidth of CS with the attributes that the validation split's pictures show, best first."""
    tried = []
    for weight in WEIGHTS:
        for bandwidth in BANDWIDTHS:
            own = (f"train.objective.divergence={{kind: cs, weight: {weight}, bandwidth: {bandwidth}}}",)
            more = ("generate.split=val", "generate.metrics.which=[attributes]")
            name = f"search-{weight:g}-{bandwidth:g}"
            _, found = drawn(name, 0, folder, [*CLOSED_FORM, *_ALONE, *own, *more])
            share = round(found["aligned"]["accuracy_mean"], 4)
            tried.append({"weight": weight, "bandwidth": bandwidth, "attributes": share})
            print(tried[-1], flush=True)
    return sorted(tried, key=lambda one: -one["attributes"])


def runs_of(
    seed: int, folder: Path, settings: Sequence[str], runs: dict[str, tuple[str, ...]]
) -> Iterator[dict[str, object]]:
    """The rows of one seed: label, store and values."""
    for name, own in runs.items():
        given = [*own, *settings]
        words = name.replace(" ", "").replace(",", "-").replace("+", "-")
        _, found = drawn(f"{words}-{seed}", seed, folder, given)
        for store, values in found.items():
            label = NAMES.get(store, name)
            print(f"seed {seed}, {label}: {values}", flush=True)
            yield {"label": label, "recipe": RECIPE, "store": store, "settings": own, "values": values}


def main() -> None:
    """Make the runs and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--decoder", choices=("closed_form", "trained"), default="trained")
    parser.add_argument("--search", action="store_true", help="search weight and bandwidth of CS first")
    options = parser.parse_args()
    folder, closed = options.folder.resolve() / options.decoder, options.decoder == "closed_form"
    model = Path("runs/scenes_generate/decoder").resolve()
    trained = ("generate.train_decoder=null", f"generate.decoder={{kind: kandinsky22, model: 'local-dir:{model}'}}")
    settings = [f"generate.limit={options.prompts}", *(CLOSED_FORM if closed else trained)]
    search, runs = searched(folder) if options.search else [], dict(RUNS)
    if search:
        divergence = f"{{kind: cs, weight: {search[0]['weight']}, bandwidth: {search[0]['bandwidth']}}}"
        runs[BEST] = (*_ALONE, f"train.objective.divergence={divergence}")
    rows: dict[str, list[dict[str, object]]] = {}
    for seed in range(options.seeds):
        for row in runs_of(seed, folder, settings, runs):
            rows.setdefault(str(row["label"]), []).append(row)
    name = "generation_closed_form" if closed else "generation"
    asked = f"--seeds {options.seeds} --prompts {options.prompts} --decoder {options.decoder}"
    command = f"python benchmarks/generation.py FOLDER {asked}{' --search' if search else ''}"
    content = {"name": name, "command": command, **results._where(), "seeds": [*range(options.seeds)]}
    written = [{**found[0], "values": _by_metric([row["values"] for row in found])} for found in rows.values()]
    content |= {"search": search, "rows": written, "against": [pair for pair in AGAINST if {*pair} <= {*rows}]}
    (results.RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


def _by_metric(runs: Sequence[object]) -> dict[str, list[float]]:
    """The values of every metric that is a number, by seed."""
    found = [run for run in runs if isinstance(run, dict)]
    return {key: [round(run[key], 6) for run in found] for key in found[0] if not np.isnan(found[0][key])}


if __name__ == "__main__":
    main()
