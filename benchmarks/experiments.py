"""Experiments: how often the intervals over seeds and images cover, and what a sweep costs beside a shell loop.

python benchmarks/experiments.py coverage [--trials 2000]
python benchmarks/experiments.py sweep --root FOLDER [--runs 4] [--epochs 5]

The second runs InfoNCE + CS over Flickr8k's features with several seeds, as a sweep and as a loop of `csalign run`, and
the bare training steps of one of these runs: no logging, validation, checkpoint or file. Seconds are CPU seconds, so
that a busy machine changes little, and the preparation that all runs share is made before.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.estimates import holm
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.statistics import crossed_estimate
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.run_record import read_run_record
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.training.loop import TrainingRun


def drawn(rng: np.random.Generator, seeds: int, images: int, of_seed: float, of_image: float) -> Floats:
    """(seeds, images) values around 0, with effects of these standard deviations and a rest of 1."""
    values: Floats = (
        of_seed * rng.standard_normal((seeds, 1))
        + of_image * rng.standard_normal(images)
        + rng.standard_normal((seeds, images))
    )
    return values


def bootstrap_interval(values: Floats, rng: np.random.Generator, draws: int = 400) -> tuple[float, float]:
    """Percentiles of the mean when seeds are drawn, then images."""
    seeds, images = values.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    of_images = rng.multinomial(images, np.full(images, 1 / images), size=draws) / images
    low, high = np.quantile(((of_seeds @ values) * of_images).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def hillis_interval(values: Floats) -> tuple[float, float]:
    """Student's t with Hillis' degrees of freedom."""
    found = crossed_estimate(values)
    error, seeds = found.standard_error, len(values)
    df = (seeds - 1) * (error**2 / found.of_seeds) ** 2 if found.of_seeds else values.shape[1] - 1
    half = float(stats.t.ppf(0.975, df)) * error
    return found.mean - half, found.mean + half


def coverage(trials: int) -> None:
    """Print how often three 95% intervals hold the truth, and the family-wise error of six tests with Holm."""
    print("| seeds | sd of seeds | sd of images | ours | bootstrap of both | Hillis | family error |")
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    images = 200
    for seeds in (2, 3, 5, 10):
        for of_seed, of_image in ((0.0, 0.5), (0.05, 0.5), (0.3, 0.5)):
            held, wrong = np.zeros(3), 0
            for _ in range(trials):
                values = drawn(rng, seeds, images, of_seed, of_image)
                found = (crossed_estimate(values).interval, bootstrap_interval(values, rng), hillis_interval(values))
                held += [low <= 0 <= high for low, high in found]
            for _ in range(trials // 4):
                control = drawn(rng, seeds, images, of_seed, of_image)
                rivals = (drawn(rng, seeds, images, of_seed, of_image) for _ in range(6))
                wrong += min(holm([crossed_estimate(values - control).p for values in rivals])) < 0.05
            shares = " | ".join(f"{share:.3f}" for share in held / trials)
            print(f"| {seeds} | {of_seed} | {of_image} | {shares} | {wrong / (trials // 4):.3f} |", flush=True)


def children(command: list[str]) -> float:
    """CPU seconds of a command, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bare_steps(recipe: Recipe, folder: Path) -> float:
    """CPU seconds of the training steps of a run, its stores being there."""
    run = TrainingRun(recipe, recipe.train, Layout(recipe), folder, Console(quiet=True), ALIGNED, ALONE)  # type: ignore[arg-type]
    state = run._begin()
    objective, batches = state.objective, run.setup.batches
    run.stepper.step(0, batches.load(0, inputs=run.setup.inputs), objective)  # the first one allocates
    started = time.process_time()
    for step in range(run.steps):
        _, objective = run.stepper.step(step, batches.load(step, inputs=run.setup.inputs), objective)
    return time.process_time() - started


def sweep_against_loop(root: Path, runs: int, epochs: int, loop: bool) -> None:
    """Print what a run costs in a sweep and in a loop of csalign run, and the share of its training that is no step."""
    csalign = [sys.executable, "-m", "cs_aligner_cli"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        shared = [f"data.root={root.resolve()}", f"data.dir={folder / 'data'}", f"embed.dir={folder / 'frozen'}"]
        given = [*shared, f"train.epochs={epochs}", "eval_retrieval.bootstrap=0"]
        options = [part for text in given for part in ("--set", text)]
        first = load_recipe("flickr8k_gap", [*given, "train.pairwise_only=false", f"run_dir={folder / 'first'}"])
        for stage in ("prepare", "embed"):
            run_stage(stage, first, Console(quiet=True))
        bare = bare_steps(first, folder / "bare")
        options += ["--set", "train.pairwise_only=false"]
        seeds = ["--set", "sweep={settings: {CS: {}}}", "--seeds", str(runs), "--set", f"run_dir={folder / 'sweep'}"]
        swept = children([*csalign, "sweep", "flickr8k_gap", *options, *seeds, "-q"]) / runs
        looped = 0.0
        for seed in range(runs if loop else 0):
            own = ["--set", f"seed={seed}", "--set", f"run_dir={folder / str(seed)}"]
            looped += children([*csalign, "run", "flickr8k_gap", *options, *own, "-q"]) / runs
        records = [read_run_record(path) for path in (folder / "sweep" / "runs").glob("*/run.json")]
        first, *later = (record["costs"]["train"]["cpu_seconds"] for record in sorted(records, key=_seed))
    print("| | CPU s per run | runs per CPU minute |\n|---|---|---|")
    for name, seconds in (("loop of csalign run", looped), ("csalign sweep", swept)):
        if seconds:
            print(f"| {name} | {seconds:.1f} | {60 / seconds:.2f} |")
    print(f"| its training stage, first run (imports torch) | {first:.1f} | |")
    training = statistics.fmean(later or [first])
    print(f"| its training stage, later runs | {training:.1f} | |\n| bare steps | {bare:.1f} | |")
    print(f"\ntraining stage of later runs to bare steps {training / bare:.2f}")
    if looped:
        print(f"sweep to loop {swept / looped:.2f}")


def _seed(record: dict[str, Any]) -> int:
    return int(record["recipe"]["seed"])


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["coverage", "sweep"], help="what is measured")
    parser.add_argument("--trials", type=int, default=2000, help="simulated experiments per row")
    parser.add_argument("--root", type=Path, help="folder of Flickr8k")
    parser.add_argument("--runs", type=int, default=4, help="seeds of the sweep and of the loop")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of every run")
    parser.add_argument("--no-loop", dest="loop", action="store_false", help="leave out the loop of csalign run")
    options = parser.parse_args()
    if options.table == "coverage":
        coverage(options.trials)
    elif options.root is None:
        parser.error("sweep wants --root FOLDER")
    else:
        sweep_against_loop(options.root, options.runs, options.epochs, options.loop)


if __name__ == "__main__":
    main()
