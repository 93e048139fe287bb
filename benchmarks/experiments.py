"""Experiments: how often the intervals over seeds and images cover, and what a sweep costs beside a shell loop.

python benchmarks/experiments.py coverage [--trials 2000]
python benchmarks/experiments.py sweep --root FOLDER [--runs 6]
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.statistics import crossed_estimate, holm


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


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["coverage"], help="what is measured")
    parser.add_argument("--trials", type=int, default=2000, help="simulated experiments per row")
    options = parser.parse_args()
    coverage(options.trials)


if __name__ == "__main__":
    main()
