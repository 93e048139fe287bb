"""What the gap's statistics are worth: simulated coverage, false alarms and power, for docs/statistics.md.

python benchmarks/gap_statistics.py [--write]           # of one run (make bench-statistics)
python benchmarks/gap_statistics.py --runs [--write]    # of reports over runs that differ in their seed
python benchmarks/gap_statistics.py --topics [--write]  # of pairs that fall into a few tight topics
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.metrics import measure, measure_headline
from cs_aligner_cli.gap.recall import recall_spreads
from cs_aligner_cli.gap.results import Measured, Measurement, Spread, score_interval
from cs_aligner_cli.gap.seeds import seed_differences
from cs_aligner_cli.report.headline import tested_metrics
from cs_aligner_cli.retrieval import true_ranks

DOCS = Path(__file__).resolve().parent.parent / "docs" / "statistics.md"
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
BEGIN_RUNS, END_RUNS = "<!-- simulated runs: begin -->", "<!-- simulated runs: end -->"
BEGIN_TOPICS, END_TOPICS = "<!-- simulated topics: begin -->", "<!-- simulated topics: end -->"
TOPICS = 6
# Repetitions by number of pairs, of every population.
REPETITIONS = {100: 200, 500: 100, 5000: 8}
REGIMES = {
    "no gap": {"gap": 0.0, "noise": 0.7},
    "small": {"gap": 0.15, "noise": 0.5},
    "wide": {"gap": 1.5, "noise": 1.0},
}
DIMENSIONS = 24
Pair = tuple[np.ndarray, np.ndarray]


def drawn(rng: np.random.Generator, n: int, gap: float, noise: float) -> Pair:
    """Unit rows of n pairs that share a signal and a mean, ``gap`` apart along one axis."""
    shared = rng.standard_normal((n, DIMENSIONS)) * np.linspace(1.5, 0.3, DIMENSIONS)
    mean, apart = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
    mean[0], apart[1] = 0.25 * DIMENSIONS**0.5, gap
    sides = (shared + noise * rng.standard_normal((n, DIMENSIONS)) + mean + sign * apart for sign in (1, -1))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in sides)
    return image, text


def of_topics(rng: np.random.Generator, n: int) -> Pair:
    """Unit rows of n pairs around six centres, a tenth as far from them as these are from each other."""
    centres = np.random.default_rng(TOPICS).standard_normal((TOPICS, DIMENSIONS))
    shared = centres[rng.integers(TOPICS, size=n)] + 0.1 * rng.standard_normal((n, DIMENSIONS))
    sides = (shared + 0.03 * rng.standard_normal((n, DIMENSIONS)) for _ in range(2))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in sides)
    return image, text


def topics_table(repetitions: int = 400) -> str:
    """Coverage where pairs fall into six tight topics, in percent."""
    sizes, columns = (60, 200), []
    for n in sizes:
        found: dict[str, dict[str, list[float]]] = {"value": {}, "low": {}, "high": {}}
        for seed in range(repetitions):
            measured = measure_headline(*of_topics(np.random.default_rng([seed, n]), n), bandwidths=(0.7071,))
            for key in ("margin", "margin_standardised", "residual_ratio"):
                for part, number in zip(found, (measured.values[key], *measured.intervals[key]), strict=True):
                    found[part].setdefault(key, []).append(number)
        columns.append(coverage(found))
    lines = [f"| metric | {' | '.join(f'n = {n} (x {repetitions})' for n in sizes)} |", "|---|---:|---:|"]
    lines += [f"| `{key}` | {' | '.join(f'{100 * column[key]:.1f}' for column in columns)} |" for key in columns[0]]
    return "\n".join(lines)


def repeated(n: int, regime: str, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Values, interval bounds and p values of every metric over samples, R@K among them."""
    found: dict[str, dict[str, list[float]]] = {"value": {}, "low": {}, "high": {}, "p": {}}
    for seed in range(repetitions):
        image, text = drawn(np.random.default_rng([seed, n, [*REGIMES].index(regime)]), n, **REGIMES[regime])
        measured = measure(image, text, seed=seed)
        recalls = recall_spreads(true_ranks(image, text, np.arange(n)), np.arange(n), n, (1, 10), seed)["mean"]
        values = {**measured.values, **{k: value for k, (value, _) in recalls.items()}}
        spans = {**measured.intervals, **{k: score_interval(*both) for k, both in recalls.items()}}
        for key, (low, high) in spans.items():
            for part, number in (("value", values[key]), ("low", low), ("high", high)):
                found[part].setdefault(key, []).append(number)
        for key, p in measured.tests.items():
            found["p"].setdefault(key, []).append(p)
    return found


def coverage(found: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The share of intervals that hold the mean of the metric over samples of this size."""
    shares = {}
    for key, values in found["value"].items():
        low, high = np.array(found["low"][key]), np.array(found["high"][key])
        shares[key] = float(np.mean((low <= np.mean(values)) & (np.mean(values) <= high)))
    return shares


def false_clear(n: int, repetitions: int) -> float:
    """How often any metric of the headline is called clear between two stores that are noise apart alone."""
    alarms = 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        shared, stores = drawn(rng, n, gap=0.15, noise=0.3), {}
        for name in ("a", "b"):
            image, text = (rows + 0.08 * rng.standard_normal(rows.shape) for rows in shared)
            found: Measured = measure_headline(image, text)
            recalls = recall_spreads(true_ranks(image, text, np.arange(n)), np.arange(n), n, (1, 10), 0)["mean"]
            values = {**found.values, **{k: value for k, (value, _) in recalls.items()}}
            stores[name] = Measurement(values, {**found.spreads, **{k: spread for k, (_, spread) in recalls.items()}})
        tested = tested_metrics({"stores": {name: store.values for name, store in stores.items()}})
        alarms += any(row["clear"] for row in differences(stores, "a", tested))
    return alarms / repetitions


def tables(sizes: list[int]) -> str:
    """The Markdown between the marks of docs/statistics.md."""
    runs = {(n, regime): repeated(n, regime, REPETITIONS[n]) for n in sizes for regime in REGIMES}
    covered = {key: coverage(found) for key, found in runs.items()}
    lines = ["Coverage of 95% intervals, in percent, over the three populations:", ""]
    lines += [f"| metric | {' | '.join(f'n = {n:,} (x {3 * REPETITIONS[n]})' for n in sizes)} |"]
    lines += ["|---|" + "---:|" * len(sizes)]
    for key in dict.fromkeys(key for shares in covered.values() for key in shares):
        cells = []
        for n in sizes:
            shares = [covered[n, regime][key] for regime in REGIMES if key in covered[n, regime]]
            cells.append(f"{100 * np.mean(shares):.1f}" if shares else "none")
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    lines += ["", "Share of samples with p < 0.05 in the test of no gap, in percent: false alarms, then power:", ""]
    lines += [f"| metric | {' | '.join(f'{regime}, n = {n:,}' for regime in REGIMES for n in sizes)} |"]
    lines += ["|---|" + "---:|" * (len(sizes) * len(REGIMES))]
    for key in runs[sizes[0], "no gap"]["p"]:
        shares = [100 * np.mean(np.array(runs[n, regime]["p"][key]) < 0.05) for regime in REGIMES for n in sizes]
        lines.append(f"| `{key}` | {' | '.join(f'{share:.0f}' for share in shares)} |")
    rate = false_clear(100, 2 * REPETITIONS[100])
    lines += ["", f"Two stores that differ in noise alone, 100 pairs, {2 * REPETITIONS[100]} comparisons: some metric"]
    lines += [f"of the headline was called clear in {100 * rate:.1f}% of them."]
    return "\n".join(lines)


def wrong_over_runs(runs: int, of_run: float, trials: int, pairs: int = 200) -> float:
    """How often the 95% interval of a difference over runs does not hold the truth.

    A pair's difference in a run varies with the run (standard deviation ``of_run``), the pair (0.5) and both (1).
    """
    rng, wrong = np.random.default_rng([runs, pairs]), 0
    for _ in range(trials):
        rows = of_run * rng.normal(size=(runs, 1)) + 0.5 * rng.normal(size=pairs) + rng.normal(size=(runs, pairs))
        theirs = Measurement({"m": 0.0}, {"m": Spread(np.zeros(pairs))})
        mine = [Measurement({"m": float(row.mean())}, {"m": Spread((row - row.mean()) / pairs)}) for row in rows]
        (found,) = seed_differences([{"aligned": own, "frozen": theirs} for own in mine], "aligned", ["m"])
        low, high = found["interval"]
        wrong += not low <= 0 <= high
    return wrong / trials


def runs_table(trials: int = 2000) -> str:
    """How often intervals over runs err, in percent."""
    spreads = (0.0, 0.03, 0.1, 0.3)
    lines = [f"| runs | {' | '.join(f'differ by {spread:g}' for spread in spreads)} |", f"|{'---|' * 5}"]
    for runs in (2, 3, 5):
        cells = (f"{100 * wrong_over_runs(runs, spread, trials):.1f}" for spread in spreads)
        lines.append(f"| {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", action="store_true", help="intervals over runs instead")
    parser.add_argument("--topics", action="store_true", help="pairs of a few tight topics instead")
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(REPETITIONS), default=list(REPETITIONS))
    parser.add_argument("--write", action="store_true", help="write the tables into docs/statistics.md")
    arguments = parser.parse_args()
    if arguments.topics:
        text, begin, end = topics_table(), BEGIN_TOPICS, END_TOPICS
    elif arguments.runs:
        text, begin, end = runs_table(), BEGIN_RUNS, END_RUNS
    else:
        text, begin, end = tables(arguments.sizes), BEGIN, END
    if arguments.write:
        page = DOCS.read_text()
        before, rest = page.split(begin)
        DOCS.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
