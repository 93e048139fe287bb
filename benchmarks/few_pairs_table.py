"""From the lines of benchmarks/few_pairs.py to docs/results/few_pairs.json: rows, and tests over seeds and images.

python benchmarks/few_pairs_table.py final.jsonl --device "H100, 8 processes" [--chosen choose.jsonl]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import few_pairs
import few_pairs_rows
import numpy as np
import results

from cs_aligner_cli.common.estimates import holm
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.statistics import crossed_estimate

# What is tested against what, wherever both were trained.
AGAINST = [
    ("best, unpaired", "InfoNCE"),
    ("best, unpaired", "best, pairs"),
    ("teacher, unpaired", "InfoNCE"),
    ("teacher, unpaired", "teacher, pairs"),
    ("teacher and CS, unpaired", "teacher, unpaired"),
    ("captions all, pairs", "InfoNCE"),
    ("best of all captions, unpaired", "InfoNCE"),
    ("best of all captions, unpaired", "captions all, pairs"),
    ("best, unpaired", "tuned CS, unpaired"),
    ("tuned CS, unpaired", "InfoNCE"),
    ("tuned CS, unpaired", "tuned CS, pairs"),
    ("CS, unpaired", "InfoNCE"),
    ("CS, unpaired", "CS, pairs"),
    ("structure, unpaired", "InfoNCE"),
    ("structure, unpaired", "structure, pairs"),
    ("start cca, pairs", "InfoNCE"),
    ("mixup, pairs", "InfoNCE"),
    ("pseudo pairs, unpaired", "InfoNCE"),
    ("negatives, unpaired", "InfoNCE"),
    ("start spectral, unpaired", "InfoNCE"),
    ("start spectral, unpaired", "start spectral, pairs"),
    ("self-training, unpaired", "InfoNCE"),
    ("structure and CS, unpaired", "CS, unpaired"),
    ("mixup and CS, unpaired", "CS, unpaired"),
    ("pseudo pairs and CS, unpaired", "CS, unpaired"),
    ("negatives and CS, unpaired", "CS, unpaired"),
    ("start cca and CS, unpaired", "CS, unpaired"),
    ("best, a fifth of the unpaired", "best, pairs"),
    ("best, a twenty-fifth of the unpaired", "best, pairs"),
]
Lines = Sequence[Mapping[str, Any]]


def named(line: Mapping[str, Any]) -> str:
    """How a row of the table is called."""
    return f"{line['pairs']:,}: {line['label']}"


def seeds_of(lines: Lines, row: str) -> list[int]:
    """The seeds that a row was trained with."""
    return sorted(line["seed"] for line in lines if named(line) == row)


def rows(lines: Lines, chosen: str) -> Iterator[dict[str, Any]]:
    """The rows of two seeds and more, as docs/results has them; those of fewer seeds than others say of how many."""
    most, order = len({line["seed"] for line in lines}), [*few_pairs_rows.final(chosen)]
    by_size = sorted(lines, key=lambda line: (line["pairs"], order.index(line["label"])))
    for row in dict.fromkeys(map(named, by_size)):
        own = sorted((line for line in lines if named(line) == row), key=lambda line: line["seed"])
        if len(own) > 1:
            values = {key: [line["values"][key] for line in own] for key in own[0]["values"]}
            label = row if len(own) == most else f"{row} ({len(own)} seeds)"
            shared = {"label": label, "recipe": few_pairs.RECIPE, "store": "aligned", "settings": own[0]["settings"]}
            yield {**shared, "values": values}


def hits(lines: Lines, label: str, seeds: Sequence[int]) -> Floats:
    """(seeds, images) R@1 in percent, the mean of both ways, of every image's own queries."""
    own = {line["seed"]: line["hits"] for line in lines if named(line) == label}
    return np.array([[10.0 * int(digit, 16) for digit in own[seed]] for seed in seeds])


def candidates(lines: Lines) -> list[dict[str, Any]]:
    """What the best was chosen from: R@1 (mean of both ways), mixed R@10 and gap over the draws, the best R@1 first."""
    found = []
    for label in {line["label"] for line in lines}:
        own = [line["values"] for line in lines if line["label"] == label]
        means = {key: fmean(values[key] for values in own) for key in own[0]}
        recall = (means["i2t R@1"] + means["t2i R@1"]) / 2
        shown = {"R@1": recall, "mixed R@10": means["mixed R@10"], "centroid gap": means["centroid gap"]}
        found.append({"label": label, "draws": len(own), **{key: round(value, 5) for key, value in shown.items()}})
    return sorted(found, key=lambda row: -row["R@1"])


def tests(lines: Lines) -> list[dict[str, Any]]:
    """Differences of R@1 with intervals, p by seeds and images as crossed random effects, and Holm's p, over the seeds
    that both rows have."""
    found, most = [], len({line["seed"] for line in lines})
    for pairs in few_pairs_rows.SCHEDULES:
        for one, other in ((f"{pairs:,}: {a}", f"{pairs:,}: {b}") for a, b in AGAINST):
            seeds = sorted({*seeds_of(lines, one)} & {*seeds_of(lines, other)})
            if len(seeds) > 1:
                estimate = crossed_estimate(hits(lines, one, seeds) - hits(lines, other, seeds), 100.0)
                numbers = (estimate.mean, *estimate.interval, estimate.p, estimate.detectable)
                keys = ("difference", "low", "high", "p", "detectable")
                against = other if len(seeds) == most else f"{other} ({len(seeds)} seeds)"
                found.append({"label": one, "against": against, **dict(zip(keys, numbers, strict=True))})
    return [{**test, "holm": p} for test, p in zip(found, holm([float(test["p"]) for test in found]), strict=True)]


def main() -> None:
    """Write docs/results/few_pairs.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="the file of lines of few_pairs.py final")
    parser.add_argument("--chosen", type=Path, required=True, help="the lines of few_pairs.py choose")
    parser.add_argument("--commit", help="what made the lines; without it, what is checked out here")
    parser.add_argument("--device", required=True, help="what trained them, in words")
    options = parser.parse_args()
    lines = few_pairs.read_lines([options.lines])
    choice = few_pairs.read_lines([options.chosen])
    chosen = few_pairs_rows.best(choice)
    found = [*rows(lines, chosen)]
    content = {
        "name": "few_pairs",
        "command": "python benchmarks/few_pairs.py final --root FOLDER --chosen choose.jsonl --out final.jsonl",
        **results._where(),
        **({"commit": options.commit} if options.commit else {}),
        "device": options.device,
        "seeds": sorted({line["seed"] for line in lines}),
        "best": {"label": chosen, "settings": [*few_pairs_rows.CHOOSE[chosen].settings]},
        "candidates": candidates(choice),
        "rows": found,
        "tests": tests(lines),
    }
    (results.RESULTS / "few_pairs.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
