"""The rows of benchmarks/few_pairs.py: what is searched, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from few_pairs import NO_CS, PAIRS, Job

_OBJECTIVE = "train.objective"
ALL = "train.captions=all"
TUNED_CS = f"{_OBJECTIVE}.divergence={{kind: cs, weight: 3, bandwidth: 0.5}}"


class Row(NamedTuple):
    """A row: settings of the recipe, and how many trainings of another row teach it."""

    settings: tuple[str, ...]
    teachers: tuple[str, int] | None = None


class Plan(NamedTuple):
    """Rows by label, and the numbers of pairs and seeds that they are trained with."""

    rows: dict[str, Row]
    pairs: tuple[int, ...]
    seeds: int


def _teacher(text: str = "", **more: object) -> str:
    keys = {**more}
    inside = ", ".join([*([text] if text else []), *(f"{key}: {value}" for key, value in keys.items())])
    return f"{_OBJECTIVE}.teacher={{{inside}}}"


_CCA = "unpaired_moments: false"
_TAUGHT = ("InfoNCE", 4)
_TAUGHT_ALL = ("captions all", 4)

SEARCH = {
    "InfoNCE": Row((NO_CS, PAIRS)),
    "captions all": Row((NO_CS, PAIRS, ALL)),
    "mixup 1": Row((NO_CS, PAIRS, "train.mixup={}")),
    "mixup .3": Row((NO_CS, PAIRS, "train.mixup={alpha: 0.3}")),
    "captions all, mixup 1": Row((NO_CS, PAIRS, ALL, "train.mixup={}")),
    "start cca": Row((NO_CS, PAIRS, "train.start=cca")),
    "start cca, lr 3e-4": Row((NO_CS, PAIRS, "train.start=cca", "train.lr=3e-4")),
    "tuned CS": Row((TUNED_CS,)),
    "cca teacher, moments of all": Row((NO_CS, _teacher())),
    "cca teacher": Row((NO_CS, _teacher(_CCA))),
    "cca teacher, pairs": Row((NO_CS, PAIRS, _teacher(_CCA))),
    "cca teacher, eps .03": Row((NO_CS, _teacher(_CCA, epsilon=0.03))),
    "cca teacher, eps .1": Row((NO_CS, _teacher(_CCA, epsilon=0.1))),
    "cca teacher, weight 3": Row((NO_CS, _teacher(_CCA, weight=3))),
    "cca teacher, captions all": Row((NO_CS, ALL, _teacher(_CCA))),
    "runs": Row((NO_CS, _teacher("kind: runs")), _TAUGHT),
    "cca and runs": Row((NO_CS, _teacher(_CCA)), _TAUGHT),
    "cca and runs, pairs": Row((NO_CS, PAIRS, _teacher(_CCA)), _TAUGHT),
    "cca and runs, eps .03": Row((NO_CS, _teacher(_CCA, epsilon=0.03)), _TAUGHT),
    "cca and runs, eps .02": Row((NO_CS, _teacher(_CCA, epsilon=0.02)), _TAUGHT),
    "cca and runs, weight 3": Row((NO_CS, _teacher(_CCA, weight=3)), _TAUGHT),
    "cca and runs, 2 a pair": Row((NO_CS, _teacher(_CCA), "train.unpaired_per_pair={image: 2.0, text: 2.0}"), _TAUGHT),
    "cca and runs, 60 passes": Row((NO_CS, _teacher(_CCA), "train.epochs=60"), _TAUGHT),
    "cca and runs, tuned CS": Row((TUNED_CS, _teacher(_CCA)), _TAUGHT),
    "cca and runs, CS 1": Row((_teacher(_CCA),), _TAUGHT),
    "cca and runs, start cca": Row((NO_CS, _teacher(_CCA), "train.start=cca"), _TAUGHT),
    "cca and runs, mixup": Row((NO_CS, _teacher(_CCA), "train.mixup={}"), _TAUGHT),
    "cca and runs of captions all": Row((NO_CS, _teacher(_CCA)), _TAUGHT_ALL),
    "cca and runs of captions all, captions all": Row((NO_CS, ALL, _teacher(_CCA)), _TAUGHT_ALL),
    "cca and runs of captions all, captions all, weight 3": Row((NO_CS, ALL, _teacher(_CCA, weight=3)), _TAUGHT_ALL),
    "cca and runs of captions all, captions all, tuned CS": Row((TUNED_CS, ALL, _teacher(_CCA)), _TAUGHT_ALL),
    "structure": Row((NO_CS, f"{_OBJECTIVE}.structure={{kind: kl}}")),
    "cca and runs, structure": Row(
        (NO_CS, _teacher(_CCA), f"{_OBJECTIVE}.structure={{kind: kl, weight: 0.3}}"), _TAUGHT
    ),
}
PLANS = {"search": Plan(SEARCH, (1000,), 2)}


def jobs(
    name: str, pairs: Sequence[int] | None, seeds: int | None, only: Sequence[str], passes: int | None
) -> list[Job]:
    """The trainings of a plan, seed by seed, those that teach others first."""
    plan = PLANS[name]
    chosen = {label: row for label, row in plan.rows.items() if not only or any(word in label for word in only)}
    return [
        job
        for seed in range(seeds or plan.seeds)
        for count in pairs or plan.pairs
        for job in _of(chosen, plan, count, seed, passes or 30)
    ]


def _of(chosen: dict[str, Row], plan: Plan, pairs: int, seed: int, passes: int) -> Iterator[Job]:
    fixed = (f"train.epochs={passes}", *(["train.batch_size=64"] if pairs < 256 else []))
    needed: dict[str, int] = {}
    for row in chosen.values():
        if row.teachers:
            label, count = row.teachers
            needed[label] = max(count, needed.get(label, 0))
    for label, count in needed.items():
        for member in range(count):
            yield Job(label, (*fixed, *plan.rows[label].settings), pairs, seed, member, kept=True)
    for label, row in chosen.items():
        if label not in needed:
            yield Job(label, (*fixed, *row.settings), pairs, seed, teachers=row.teachers)
