"""From the lines of benchmarks/few_pairs.py to docs/results/few_pairs.json: rows, and tests over seeds and images.

python benchmarks/few_pairs_table.py final.jsonl --device "H100, 8 processes" [--chosen choose.jsonl]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import few_pairs
import few_pairs_rows
import numpy as np
import results

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.statistics import crossed_estimate, holm

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
    ("CS, unpaired", "InfoNCE"),
    ("structure, unpaired", "InfoNCE"),
    ("structure, unpaired", "structure, pairs"),
    ("start cca, pairs", "InfoNCE"),
    ("mixup, pairs", "InfoNCE"),
    ("pseudo pairs, unpaired", "InfoNCE"),
    ("negatives, unpaired", "InfoNCE"),
    ("best, a fifth of the unpaired", "best, pairs"),
    ("best, a twenty-fifth of the unpaired", "best, pairs"),
]
Lines = Sequence[Mapping[str, Any]]


def named(line: Mapping[str, Any]) -> str:
    """How a row of the table is called."""
    return f"{line['pairs']:,}: {line['label']}"


def rows(lines: Lines, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows that were trained with every seed, as docs/results has them."""
    labels = dict.fromkeys((line["pairs"], line["label"]) for line in lines)
    for pairs, label in sorted(labels, key=lambda key: key[0]):
        own = {line["seed"]: line for line in lines if (line["pairs"], line["label"]) == (pairs, label)}
        if set(seeds) <= own.keys():
            chosen = [own[seed] for seed in seeds]
            values = {key: [line["values"][key] for line in chosen] for key in chosen[0]["values"]}
            row = {"label": named(chosen[0]), "recipe": few_pairs.RECIPE, "store": "aligned"}
            yield {**row, "settings": chosen[0]["settings"], "values": values}


def hits(lines: Lines, label: str, seeds: Sequence[int]) -> Floats:
    """(seeds, images) R@1 in percent, the mean of both ways, of every image's own queries."""
    own = {line["seed"]: line["hits"] for line in lines if named(line) == label}
    return np.array([[10.0 * int(digit, 16) for digit in own[seed]] for seed in seeds])


def tests(lines: Lines, labels: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Differences of R@1 with intervals, p by seeds and images as crossed random effects, and Holm's p."""
    found = []
    for pairs in few_pairs_rows.SCHEDULES:
        for one, other in ((f"{pairs:,}: {a}", f"{pairs:,}: {b}") for a, b in AGAINST):
            if one in labels and other in labels:
                estimate = crossed_estimate(hits(lines, one, seeds) - hits(lines, other, seeds))
                numbers = (estimate.mean, *estimate.interval, estimate.p, estimate.detectable)
                keys = ("difference", "low", "high", "p", "detectable")
                found.append({"label": one, "against": other, **dict(zip(keys, numbers, strict=True))})
    return [{**test, "holm": p} for test, p in zip(found, holm([float(test["p"]) for test in found]), strict=True)]


def main() -> None:
    """Write docs/results/few_pairs.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="the file of lines of few_pairs.py final")
    parser.add_argument("--chosen", type=Path, required=True, help="the lines of few_pairs.py choose")
    parser.add_argument("--device", required=True, help="what trained them, in words")
    options = parser.parse_args()
    lines = few_pairs.read_lines([options.lines])
    seeds = sorted({line["seed"] for line in lines})
    found = [*rows(lines, seeds)]
    chosen = few_pairs_rows.best(few_pairs.read_lines([options.chosen]))
    content = {
        "name": "few_pairs",
        "command": "python benchmarks/few_pairs.py final --root FOLDER --chosen choose.jsonl --out final.jsonl",
        **results._where(),
        "device": options.device,
        "seeds": seeds,
        "best": {"label": chosen, "settings": [*few_pairs_rows.CHOOSE[chosen].settings]},
        "left out": sorted({named(line) for line in lines} - {row["label"] for row in found}),
        "rows": found,
        "tests": tests(lines, [row["label"] for row in found], seeds),
    }
    (results.RESULTS / "few_pairs.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
