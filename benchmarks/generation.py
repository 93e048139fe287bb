"""What closing the gap buys in pictures: one decoder fed with texts of every kind, over seeds.

python benchmarks/generation.py FOLDER [--seeds 3] [--prompts 250] [--decoder trained|closed_form] [--search]

Trains the text adapters of recipes/scenes_generate.yaml once per objective and seed, draws the same prompts of the test
split from every store, and writes docs/results/generation.json (generation_closed_form.json with that decoder), which
``python benchmarks/results.py tables`` writes into docs/generation.md. With ``--search`` InfoNCE and L2 + InfoNCE are
searched before, each without and with CS: weight and bandwidth of CS, then the temperature, then the length that texts
are brought to, by what the closed form draws of the validation split's prompts with one seed; the best of each is a
further row.

Wants runs/scenes_alone_clip, runs/scenes_l2 and runs/scenes_generate in the current folder (csalign run of the three
recipes, in this order): one decoder, that of the last, draws for all seeds. Data and frozen stores are made once, and a
run that is already there is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.generation_layout import DECODER
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.generate.result import GenerateResult
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store

RECIPE = "scenes_generate"
CLOSED_FORM = ("generate.train_decoder=null", "generate.decoder={kind: closed_form}", "generate.guidance=null")
_L2 = "train.objective.pairwise={kind: l2_contrastive, logit_scale: {init: 20, learn: false}}"
# What is searched, and the kind of its pairwise term.
_KINDS = {
    "InfoNCE": "infonce",
    "InfoNCE + CS": "infonce",
    "L2 + 0.2 InfoNCE": "l2_contrastive",
    "L2 + 0.2 InfoNCE + CS": "l2_contrastive",
}
_ALONE = ("train.pairwise_only=false", "generate.stores=[aligned]", "generate.bounds=[]")
FIRST = "InfoNCE + CS"
# What is trained, by its name: the settings beside the recipe's, which is InfoNCE + CS with InfoNCE as its control.
RUNS: dict[str, tuple[str, ...]] = {
    FIRST: ("generate.bounds=[image]",),
    "L2 + 0.2 InfoNCE": (*_ALONE, _L2, "train.objective.divergence.weight=0"),
    "L2 + 0.2 InfoNCE + CS": (*_ALONE, _L2),
}
WEIGHTS, BANDWIDTHS = (0.3, 1.0, 3.0), (0.15, 0.2, 0.3, 0.5)
SCALES, LENGTHS = (10.0, 40.0), (0.8, 1.25)
BEST = tuple(f"{name}, searched" for name in _KINDS)
NAMES = {
    "frozen": "frozen text",
    "frozen+mean_shift": "frozen + mean shift",
    "frozen+ridge": "frozen + ridge",
    "pairwise_only": "InfoNCE",
    "image": "the image itself",
}
# What is tested: of each first row against the second.
AGAINST = [
    *((label, "InfoNCE") for label in (*RUNS, "frozen + ridge")),
    *((label, "L2 + 0.2 InfoNCE") for label in (FIRST, "L2 + 0.2 InfoNCE + CS")),
    (FIRST, "frozen + ridge"),
    ("InfoNCE + CS, searched", "InfoNCE, searched"),
    *((f"{name}, searched", "L2 + 0.2 InfoNCE, searched") for name in (FIRST, "L2 + 0.2 InfoNCE + CS")),
]


class Tried(NamedTuple):
    """One setting of CS: the row that it changes, weight and bandwidth, InfoNCE's logit scale, and the length of texts
    as a multiple of the images'."""

    objective: str
    weight: float
    bandwidth: float
    logit_scale: float = 20.0
    length: float = 1.0

    def settings(self, norm: float) -> tuple[str, ...]:
        """As the recipe's settings; ``norm`` is the median length of the images."""
        scale = f"{{init: {self.logit_scale:g}, learn: false}}"
        return (
            *_ALONE,
            f"train.objective.pairwise={{kind: {_KINDS[self.objective]}, logit_scale: {scale}}}",
            f"train.objective.divergence={{kind: cs, weight: {self.weight:g}, bandwidth: {self.bandwidth:g}}}",
            *([f"generate.scale={self.length * norm:.4f}"] if self.length != 1 else []),
        )


def drawn(name: str, seed: int, folder: Path, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """One run up to its pictures: the metrics of each of its stores, its gap, and the length of what was fed."""
    of_all = folder.parent
    shared = [f"data.dir={of_all / 'data'}", f"embed.dir={of_all / 'frozen'}", f"seed={seed}", "generate.beside=[]"]
    recipe = load_recipe(RECIPE, [*settings, *shared, f"run_dir={folder / name}"])
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    # The closed form is fitted once for all runs of one seed.
    own, fitted = folder / name / DECODER, of_all / f"closed_form-{seed}"
    fits = recipe.generate is not None and recipe.generate.decoder.kind == "closed_form"
    if fits and fitted.is_dir() and not own.is_dir():
        shutil.copytree(fitted, own)
    result = run_stage("generate", recipe, Console(quiet=True))
    if fits and not fitted.is_dir():
        shutil.copytree(own, fitted)
    assert isinstance(result, GenerateResult)
    return {
        store: {**found, "gap": gap(recipe, store), "norm": float(result.drawn[store]["norm"])}  # type: ignore[arg-type]
        for store, found in result.generate.items()
    }


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


def searched(folder: Path) -> tuple[list[dict[str, object]], dict[str, tuple[str, ...]]]:
    """What was tried, with the attributes that the validation split's pictures show, and the settings of the best of
    each kind by the name of their row."""
    seen: dict[Tried, dict[str, float]] = {}

    def best_of(tried: Sequence[Tried], norm: float = 1.0) -> Tried:
        for one in tried:
            if one not in seen:
                name = "-".join(["search", _KINDS[one.objective], *(f"{number:g}" for number in one[1:4])])
                more = ("generate.split=val", "generate.metrics.which=[attributes]")
                seen[one] = drawn(name, 0, folder, [*CLOSED_FORM, *one.settings(norm), *more])["aligned"]
                print(one, seen[one]["accuracy_mean"], flush=True)
        return max(tried, key=lambda one: seen[one]["accuracy_mean"])

    found = {}
    for objective, row in zip(_KINDS, BEST, strict=True):
        with_cs = [Tried(objective, weight, bandwidth) for weight in WEIGHTS for bandwidth in BANDWIDTHS]
        best = best_of(with_cs if objective.endswith("CS") else [Tried(objective, 0.0, 0.5)])
        best = best_of([best, *(best._replace(logit_scale=scale) for scale in SCALES)])
        norm = seen[best]["norm"]
        best = best_of([best, *(best._replace(length=length) for length in LENGTHS)], norm)
        found[row] = best.settings(norm)
    return [{**one._asdict(), "attributes": round(values["accuracy_mean"], 4)} for one, values in seen.items()], found


def runs_of(
    seed: int, folder: Path, settings: Sequence[str], runs: dict[str, tuple[str, ...]]
) -> Iterator[dict[str, object]]:
    """The rows of one seed: label, store and values."""
    for name, own in runs.items():
        given = [*own, *settings]
        words = name.replace(" ", "").replace(",", "-").replace("+", "-")
        found = drawn(f"{words}-{seed}", seed, folder, given)
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
    parser.add_argument("--search", action="store_true", help="search weight, bandwidth, temperature, length")
    options = parser.parse_args()
    folder, closed = options.folder.resolve() / options.decoder, options.decoder == "closed_form"
    model = Path("runs/scenes_generate/decoder").resolve()
    trained = ("generate.train_decoder=null", f"generate.decoder={{kind: kandinsky22, model: 'local-dir:{model}'}}")
    settings = [f"generate.limit={options.prompts}", *(CLOSED_FORM if closed else trained)]
    search, best = searched(folder) if options.search else ([], {})
    runs = {**RUNS, **best}
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
