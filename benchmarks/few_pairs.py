"""What terms for few pairs, and unpaired items under each, are worth on Flickr8k: many short trainings at once.

python benchmarks/few_pairs.py search --root FOLDER --out search.jsonl   # settings, on 1,000 images taken out of train
python benchmarks/few_pairs.py choose --root FOLDER --out choose.jsonl   # combinations with CS, on the same images
python benchmarks/few_pairs.py final --root FOLDER --chosen choose.jsonl --out final.jsonl  # the table, on dev
python benchmarks/few_pairs.py show FILE.jsonl ...                       # means so far
python benchmarks/few_pairs_table.py FILE.jsonl ...                      # into docs/results; results.py tables: pages

Trains recipes/flickr8k_unpaired.yaml once per row, number of pairs and seed, step by step as ``csalign train`` does,
but without its validation and checkpoints, which cost more than the steps of few pairs and change nothing of the last
weights. Every finished training is a line of the file at once, and is not made again: a call that is cut loses little.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

RECIPE, TRAIN_IMAGES, TAKEN_OUT = "flickr8k_unpaired", 6000, 1000
_OBJECTIVE = "train.objective"
NO_CS, PAIRS = f"{_OBJECTIVE}.divergence.weight=0", "train.unpaired_per_pair={image: 0, text: 0}"


@dataclass(frozen=True)
class Job:
    """One training: ``member`` 0 of a row is measured as the row; all ``teachers`` of a row are members of another.

    ``unpaired``: the share of the unpaired items that it may see.
    """

    label: str
    settings: tuple[str, ...]
    pairs: int
    seed: int
    member: int = 0
    teachers: tuple[str, int] | None = None
    kept: bool = False
    unpaired: float = 1.0

    @property
    def name(self) -> str:
        """What tells this training from all others."""
        return f"{self.pairs} pairs, seed {self.seed}.{self.member}: {self.label}"

    def weights(self, out: Path, member: int | None = None) -> Path:
        """The folder of the weights of a training that teaches others."""
        words = "".join(c if c.isalnum() else "_" for c in self.label)
        return out / "teachers" / f"{words}-{self.pairs}-{self.seed}-{self.member if member is None else member}"


@dataclass(frozen=True)
class Place:
    """Where everything lies: the features, the folder of all that is made, the lines of finished trainings."""

    root: Path
    out: Path
    lines: Path
    train_images: int

    @property
    def shared(self) -> list[str]:
        """Settings by which all trainings share prepared data and frozen stores."""
        return [f"data.root={self.root}", f"data.dir={self.out / 'data'}", f"embed.dir={self.out / 'frozen'}"]


def trained(job: Job, place: Place, device: str) -> dict[str, Any]:
    """Train one row with one seed; what ``results`` measures of it on the recipe's split, and hits by image."""
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.runs.distributed import Ranks
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.towers.weights import save_weights
    from cs_aligner_cli.training.scheduled_objective import ObjectiveState
    from cs_aligner_cli.training.setup import set_up
    from cs_aligner_cli.training.step import Stepper

    started = time.monotonic()
    settings = [*place.shared, f"data.unpaired.paired_fraction={job.pairs / place.train_images}", *job.settings]
    settings += [f"run_dir={place.out / 'runs' / str(os.getpid())}", f"train.device={device}", "train.log_steps=100000"]
    settings += [f"data.seed={job.seed}", f"seed={100 * job.seed + job.member}"]
    if job.teachers:
        label, count = job.teachers
        folders = [str(replace(job, label=label).weights(place.out, member)) for member in range(count)]
        settings.append(f"{_OBJECTIVE}.teacher.runs=[{', '.join(folders)}]")
    recipe = load_recipe(RECIPE, settings)
    assert recipe.train is not None
    _write_pairing(recipe, job)
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    setup.start_adapters(recipe.train)
    stepper = Stepper(recipe.train, setup.towers, setup.steps, recipe.seed, setup.device, teacher=setup.teacher)
    state, rounds, teaching = ObjectiveState(), [], setup.self_training
    for part in teaching.segments(range(setup.steps)) if teaching else [range(setup.steps)]:
        if teaching and (number := teaching.round_at(part.start)) is not None:
            accepted = teaching.choose(setup.towers, setup.inputs, setup.device, setup.validation.batch_size)
            setup.batches.accept(accepted, number)
            rounds.append(accepted.counts())
        for step in part:
            _, state = stepper.step(step, setup.batches.load(step, setup.inputs), state)
    if job.kept:
        folder = job.weights(place.out)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / "last.safetensors", setup.towers)
    found = _measured(recipe, setup.towers) | ({"rounds": rounds} if teaching else {})
    return {**found, "steps": setup.steps, "seconds": round(time.monotonic() - started, 2), "device": device}


def _write_pairing(recipe: Any, job: Job) -> None:
    """Draw the pairs as ``csalign prepare`` does, but without its locks on what all trainings share."""
    import numpy as np

    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.runs.unpaired import LEFT_OUT, UNPAIRED, read_pairing
    from cs_aligner_cli.stages.prepare.job import write_pairing

    pairing = Layout(recipe).pairing
    assert pairing is not None
    pairing.path.mkdir(parents=True, exist_ok=True)
    write_pairing(Layout(recipe), SimpleNamespace(folder=pairing.path))  # type: ignore[arg-type]
    if job.unpaired < 1:
        found, rng = read_pairing(pairing.path), np.random.default_rng([job.seed, 11])
        for table in found.tables.values():
            beyond = (table["role"] == UNPAIRED) & (rng.random(len(table)) >= job.unpaired)
            table.loc[beyond, "role"] = LEFT_OUT
        found.write(pairing.path)


def _measured(recipe: Any, towers: Any) -> dict[str, Any]:
    import numpy as np
    import results

    from cs_aligner_cli.common.modalities import MODALITIES
    from cs_aligner_cli.data.prepared import PreparedData
    from cs_aligner_cli.retrieval.evaluation import true_ranks
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.stores.embeddings import Store
    from cs_aligner_cli.towers.towers import Inputs, embed_split

    layout, name = Layout(recipe), recipe.eval_retrieval.split
    split = PreparedData(layout.prepared.path).split(name, "eval_retrieval.split")
    inputs, device = Inputs(towers.plans, {}, {name: Store(layout.frozen(name).path)}), towers.log_logit_scale.device
    rows = {m: embed_split(towers, inputs, m, split, np.arange(len(split.table(m))), device) for m in MODALITIES}
    scores = true_ranks(rows["image"], rows["text"], split.image_of_caption, (1, 10))
    values = results.measured(rows["image"], rows["text"], split, scores)
    # Of every image how many of its ten chances (itself, counted five times, and five captions) were hits.
    hits = 5 * scores["i2t"].values["R@1"]
    hits += np.bincount(split.image_of_caption, scores["t2i"].values["R@1"], minlength=len(hits))
    return {"values": {k: round(v, 5) for k, v in values.items()}, "hits": "".join(f"{int(h):x}" for h in hits)}


def prepared(root: Path, out: Path, lines: Path, select: bool) -> Place:
    """Prepare and embed once what all trainings share; with ``select`` of a root whose dev is a part of train."""
    from cs_aligner_cli.common.console import Console
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.stages.pipeline import run_stage

    if select:
        out = out / "select"
        root = _with_other_dev(root, out / "root")
    place = Place(root, out, lines, TRAIN_IMAGES - (TAKEN_OUT if select else 0))
    recipe = load_recipe(RECIPE, [*place.shared, f"run_dir={out / 'first'}"])
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, Console(quiet=True))
    return place


def _with_other_dev(root: Path, folder: Path) -> Path:
    """The same data with 1,000 images of train as dev; what was dev is of a split that nothing reads."""
    import numpy as np
    import pandas as pd

    if (folder / "captions.csv").exists():  # written anew, it would count as changed
        return folder
    folder.mkdir(parents=True)
    images = pd.read_csv(root / "images.csv")
    train = images.loc[images["split"] == "train", "image"].to_numpy()
    taken = {*np.random.default_rng(7).permutation(train)[:TAKEN_OUT]}
    for file in root.glob("*.npy"):
        (folder / file.name).symlink_to(file)
    for name in ("images.csv", "captions.csv"):
        table = pd.read_csv(root / name)
        table["split"] = table["split"].where(table["split"] != "dev", "unread")
        table.loc[table["image"].isin(taken), "split"] = "dev"
        table.to_csv(folder / name, index=False)
    return folder


def work(jobs: Any, place: Place, device: str, until: float, left_to_others: bool) -> None:
    """Take jobs until there are none or the time is up; a line for each. Large ones may be ``left_to_others``."""
    import torch

    torch.set_num_threads(1)
    while time.time() < until:
        try:
            job: Job = jobs.get(timeout=2)
        except Empty:
            return
        if (left_to_others and "train.captions=all" in job.settings) or not _taught(job, place):
            jobs.put(job)
            time.sleep(0.3)
            continue
        line = json.dumps({"name": job.name, **asdict(job), **trained(job, place, device)}) + "\n"
        with place.lines.open("a") as file:  # one write, so that processes do not mix their lines
            file.write(line)


def _taught(job: Job, place: Place) -> bool:
    label, count = job.teachers or ("", 0)
    folders = (replace(job, label=label).weights(place.out, member) for member in range(count))
    return all((folder / "last.safetensors").is_file() for folder in folders)


def run_all(jobs: Sequence[Job], place: Place, workers: Sequence[str], budget: float) -> None:
    """Run the jobs that have no line yet in one process for each of ``workers``, the names of their devices."""
    done = {line["name"] for line in read_lines([place.lines])} if place.lines.exists() else set()
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    for job in jobs:
        if job.name not in done or (job.kept and not (job.weights(place.out) / "last.safetensors").is_file()):
            queue.put(job)
    until = time.time() + budget
    mixed = len({*workers}) > 1
    processes = [
        context.Process(target=work, args=(queue, place, device, until, mixed and device == "cpu"))
        for device in workers
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, until - time.time()))
        if process.is_alive():  # its training would end after the budget
            process.terminate()
    queue.cancel_join_thread()


def read_lines(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The finished trainings of some files."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def show(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line of means for every number of pairs and row, the best first."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["pairs"], line["label"]), []).append(line)

    def mean(group: list[dict[str, Any]], *columns: str) -> float:
        return sum(line["values"][c] for line in group for c in columns) / len(group) / len(columns)

    order = sorted(groups, key=lambda key: (key[0], -mean(groups[key], "i2t R@1", "t2i R@1")))
    for pairs, label in order:
        g = groups[pairs, label]
        yield (
            f"{pairs:5d} {label:44s} n={len(g):2d} R@1 {mean(g, 'i2t R@1', 't2i R@1'):5.2f} "
            f"R@10 {mean(g, 'i2t R@10', 't2i R@10'):5.2f} "
            f"mixed {mean(g, 'mixed R@1'):5.2f} {mean(g, 'mixed R@10'):5.2f} "
            f"gap {mean(g, 'centroid gap'):.3f} {sum(line['seconds'] for line in g) / len(g):5.1f} s"
        )


def main() -> None:
    """Search, measure, or show."""
    import few_pairs_rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "choose", "final", "show"])
    parser.add_argument("files", nargs="*", type=Path, help="files of lines to show")
    parser.add_argument("--root", type=Path, help="folder of Flickr8k's features")
    parser.add_argument("--out", type=Path, help="the file of lines; what is made lies in a folder beside it")
    parser.add_argument("--pairs", type=int, nargs="+", help="how many pairs are kept")
    parser.add_argument("--seeds", type=int, help="seeds, from 0")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="only rows that hold one of these words")
    parser.add_argument(
        "--jobs", nargs="+", default=["cpu:2"], metavar="DEVICE:N", help="processes, as in cpu:12 cuda:2"
    )
    parser.add_argument("--chosen", type=Path, help="final: the lines of choose")
    parser.add_argument("--passes", type=int, help="passes over the pairs, for a trial")
    parser.add_argument("--budget", type=float, default=1e6, help="seconds after which trainings are cut")
    options = parser.parse_args()
    if options.what == "show":
        print("\n".join(show(read_lines(options.files))))
        return
    if not (options.root and options.out):
        parser.error(f"{options.what} wants --root and --out")
    started = time.time()
    lines = options.out.resolve()
    lines.parent.mkdir(parents=True, exist_ok=True)
    best = few_pairs_rows.best(read_lines([options.chosen])) if options.chosen else None
    jobs = few_pairs_rows.jobs(options.what, options.pairs, options.seeds, options.only, options.passes, best)
    place = prepared(options.root.resolve(), lines.parent / "few_pairs", lines, options.what != "final")
    workers = [device for part in options.jobs for device, _, n in [part.partition(":")] for _ in range(int(n or 1))]
    run_all(jobs, place, workers, options.budget - (time.time() - started))
    print("\n".join(show(read_lines([lines]))))


if __name__ == "__main__":
    main()
