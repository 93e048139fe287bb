"""The tables of README and docs from runs: make results DATA=FOLDER, or one by one:

python benchmarks/results.py run flickr8k --root FOLDER [--seeds 5]   # runs, and writes docs/results/flickr8k.json
python benchmarks/results.py tables                                   # docs/results/*.json into the pages

A run whose outputs are fresh is not made again. Prepared data and frozen stores are made once for all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
PAGES = ("README.md", "docs/retrieval.md", "docs/objectives.md")
# Column to digits shown; recalls are in percent.
COLUMNS = {
    "i2t R@1": 1,
    "t2i R@1": 1,
    "mixed R@1": 1,
    "mixed R@10": 1,
    "images R@10": 1,
    "centroid gap": 3,
    "paired cosine": 2,
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
}
# Of these seeds fewer, since the sweep's inner points only say where the trend goes.
SEEDS = {"flickr8k": 5, "temperatures": 2}
DIFFERENCES = (
    ("CS against InfoNCE, temperature 0.01", 3, 1),
    ("CS against centring, temperature 0.01", 3, 2),
    ("learned temperature against 0.01, both without CS", 4, 1),
    ("CS against InfoNCE, learned temperature", 6, 4),
    ("CS against centring, learned temperature", 6, 5),
    ("CS at 0.01 against a learned temperature without CS", 3, 4),
)


def measured(row: Row, seed: int, root: Path, out: Path) -> dict[str, float]:
    """Run a row's recipe with one seed; return its COLUMNS."""
    from cs_aligner_cli.common.console import Console
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.stages.pipeline import run_all

    name = "-".join([row.recipe, *(re.sub(r"\W+", "_", s.partition("=")[2]) for s in row.settings), str(seed)])
    settings = [*row.settings, f"seed={seed}", f"data.root={root}", f"run_dir={out / name}"]
    settings += [f"data.dir={out / 'data'}", f"embed.dir={out / 'frozen'}"]
    settings += ["gap_report.baselines={frozen: [cca], pairwise_only: [centred]}"]
    results: dict[str, Any] = run_all(load_recipe(row.recipe, settings), Console(quiet=True))
    gap = results["gap_report"]
    found = {**gap["retrieval"], **results["eval_retrieval"]["eval_retrieval"]}[row.store]
    mixed = found.get("mixed") or gap["mixed"][row.store]
    values = {f"{way} R@{k}": 100 * found[way][f"R@{k}"] for way in ("i2t", "t2i") for k in (1, 10)}
    values |= {f"mixed R@{k}": 100 * mixed[f"R@{k}"] for k in (1, 10)}
    values["images R@10"] = 100 * mixed["image"]["R@10"]
    metrics = gap["gap_report"][row.store]
    return values | {key.replace("_", " "): metrics[key] for key in ("centroid_gap", "paired_cosine")}


def run(name: str, root: Path, out: Path, seeds: int) -> None:
    """Run a table's rows with every seed and write its JSON."""
    rows: list[dict[str, Any]] = []
    for row in TABLES[name]:
        runs = [measured(row, seed, root, out) for seed in range(seeds)]
        rows.append({**row._asdict(), "values": {key: [one[key] for one in runs] for key in runs[0]}})
        print(line(row.label, rows[-1]["values"]), flush=True)
    content = {"name": name, "command": f"python benchmarks/results.py run {name} --root FOLDER", **_where()}
    content |= {"seeds": [*range(seeds)], "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


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


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds; a number that no seed changes stands alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.{digits}f}" if spread > 0 else mean


def line(label: str, values: Values) -> str:
    """One line of a table."""
    return f"| {label} | {' | '.join(cell(values[column], digits) for column, digits in COLUMNS.items())} |"


def table(content: dict[str, Any]) -> str:
    """The table of one JSON, and under it what made it."""
    head = f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}"
    return "\n".join([head, *(line(row["label"], row["values"]) for row in content["rows"]), "", provenance(content)])


def provenance(content: dict[str, Any]) -> str:
    """The line that says where a table comes from."""
    seeds = len(content["seeds"])
    return (
        f"Mean ± standard deviation of {seeds} seeds of training; `{content['command']}`, commit {content['commit']}, "
        f"{content['date']}, {content['device']}."
    )


def differences(content: dict[str, Any]) -> str:
    """Differences between rows of one JSON, paired over seeds, with 95% intervals of Student's t."""
    columns = {"R@1, mean of both ways": 1, "mixed R@1": 1, "mixed R@10": 1, "centroid gap": 3}
    lines = [f"| difference | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    for label, one, other in DIFFERENCES:
        a, b = (_with_mean(content["rows"][i]["values"]) for i in (one, other))
        cells = [_difference([x - y for x, y in zip(a[c], b[c], strict=True)], n) for c, n in columns.items()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_mean(values: Values) -> Values:
    both = [(a + b) / 2 for a, b in zip(values["i2t R@1"], values["t2i R@1"], strict=True)]
    return {**values, "R@1, mean of both ways": both}


def _difference(values: Sequence[float], digits: int) -> str:
    from scipy.stats import t

    mean = statistics.fmean(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.{digits}f} [{mean - reach:+.{digits}f}, {mean + reach:+.{digits}f}]"


VIEWS: dict[str, Callable[[dict[str, Any]], str]] = {"table": table, "differences": differences}
_PART = re.compile(r"(<!-- results: (\w+) (\w+) -->\n).*?(\n<!-- end of results -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with what stands between its markers made anew from docs/results."""

    def view(match: re.Match[str]) -> str:
        content = json.loads((RESULTS / f"{match[2]}.json").read_text())
        return f"{match[1]}{VIEWS[match[3]](content)}{match[4]}"

    return _PART.sub(view, page)


def main() -> None:
    """Run a table, or write all tables into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "tables"])
    parser.add_argument("name", nargs="?", choices=[*TABLES], help="table to run")
    parser.add_argument("--root", type=Path, help="folder of Flickr8k's features")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, help="seeds, from 0")
    options = parser.parse_args()
    if options.what == "run":
        if options.name is None or options.root is None:
            parser.error("run wants the name of a table and --root")
        seeds = options.seeds or SEEDS[options.name]
        run(options.name, options.root.resolve(), options.out.resolve(), seeds)
        return
    for name in PAGES:
        path = REPOSITORY / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
