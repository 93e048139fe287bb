"""The rows of benchmarks/few_pairs.py: what is searched, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from few_pairs import NO_CS, PAIRS, Job

_OBJECTIVE = "train.objective"
ALL = "train.captions=all"
TUNED_CS = f"{_OBJECTIVE}.divergence={{kind: cs, weight: 3, bandwidth: 0.5}}"


class Row(NamedTuple):
    """A row: settings of the recipe, how many trainings of another row teach it, how many pairs it is made with, the
    share of the unpaired items that it sees, and whether all its seeds come before those of other rows."""

    settings: tuple[str, ...]
    teachers: tuple[str, int] | None = None
    pairs: tuple[int, ...] = (1000,)
    unpaired: float = 1.0
    first: bool = True


def _teacher(text: str, **more: object) -> str:
    return f"{_OBJECTIVE}.teacher={{{', '.join([text, *(f'{key}: {value}' for key, value in more.items())])}}}"


_CCA = "unpaired_moments: false"
_LOOSE = "min_cosine: 0.3, min_margin: 0, agreement: [], share: 0.2"
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
    "start spectral, lr 3e-4": Row((NO_CS, PAIRS, "train.start=spectral", "train.lr=3e-4")),
    "start spectral of all, lr 3e-4": Row(
        (NO_CS, PAIRS, "train.start=spectral", "train.start_moments={unpaired: true}", "train.lr=3e-4")
    ),
    "self-training": Row((NO_CS, PAIRS, "train.self_training={first_epoch: 10}")),
    "self-training, loose": Row(
        (NO_CS, PAIRS, f"train.self_training={{first_epoch: 10, {_LOOSE}}}"),
    ),
    "tuned CS": Row((TUNED_CS,)),
    "cca teacher, moments of all": Row((NO_CS, f"{_OBJECTIVE}.teacher={{}}")),
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
# What is combined with the teacher of weight 3, the best of the search, when a gap may be no larger than with CS alone.
_TEACHER = _teacher(_CCA, weight=3)
_LARGEST_GAP = 0.055
CHOOSE = {
    "CS": Row((_TEACHER,)),
    "CS, captions all": Row((ALL, _TEACHER)),
    "CS, captions all, weight 10": Row((ALL, _teacher(_CCA, weight=10))),
    "CS, weight 10": Row((_teacher(_CCA, weight=10),)),
    "CS, eps .03": Row((_teacher(_CCA, weight=3, epsilon=0.03),)),
    "CS, start cca": Row((_TEACHER, "train.start=cca", "train.lr=3e-4")),
    "CS, 2 unpaired a pair": Row((_TEACHER, "train.unpaired_per_pair={image: 2.0, text: 2.0}")),
    "tuned CS": Row((TUNED_CS, _TEACHER)),
    "tuned CS, captions all": Row((TUNED_CS, ALL, _TEACHER)),
    "CS 3": Row((f"{_OBJECTIVE}.divergence.weight=3", ALL, _TEACHER)),
}


def best(lines: Sequence[dict[str, Any]]) -> str:
    """The combination with the highest R@1, the mean of both ways, among those whose gap is small enough.

    Those of all captions are left out: a step then costs four times as much.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        if ALL not in CHOOSE[line["label"]].settings:
            found.setdefault(line["label"], []).append(line["values"])
    recalls = {label: fmean(v["i2t R@1"] + v["t2i R@1"] for v in values) for label, values in found.items()}
    gaps = {label: fmean(v["centroid gap"] for v in values) for label, values in found.items()}
    small = [label for label in found if gaps[label] <= _LARGEST_GAP] or [min(gaps, key=lambda label: gaps[label])]
    return max(small, key=lambda label: recalls[label])


def final(chosen: str) -> dict[str, Row]:
    """The rows of the table: every term alone, on the pairs and with unpaired items, and the best combination."""
    best_of = CHOOSE[chosen].settings
    structure = f"{_OBJECTIVE}.structure={{kind: kl}}"
    everywhere = (100, 300, 1000, 2000)
    return {
        "InfoNCE": Row((NO_CS, PAIRS), pairs=everywhere),
        "best, unpaired": Row(best_of, pairs=everywhere),
        "best, pairs": Row((*best_of, PAIRS), pairs=everywhere),
        "teacher, unpaired": Row((NO_CS, _TEACHER), pairs=everywhere),
        "teacher, pairs": Row((NO_CS, PAIRS, _TEACHER), pairs=everywhere),
        "tuned CS, unpaired": Row((TUNED_CS,), pairs=everywhere),
        "teacher and CS, unpaired": Row((_TEACHER,), pairs=everywhere),
        "captions all, pairs": Row((NO_CS, PAIRS, ALL)),
        "best of all captions, unpaired": Row(CHOOSE["CS 3"].settings),
        "teacher, captions all, unpaired": Row((NO_CS, ALL, _TEACHER)),
        "best, a fifth of the unpaired": Row(best_of, unpaired=0.2, first=False),
        "best, a twenty-fifth of the unpaired": Row(best_of, unpaired=0.04, first=False),
        "start spectral, unpaired": SEARCH["start spectral of all, lr 3e-4"]._replace(first=False),
        "start spectral, pairs": SEARCH["start spectral, lr 3e-4"]._replace(first=False),
        "self-training, unpaired": SEARCH["self-training, loose"]._replace(first=False),
        "structure and CS, unpaired": Row((structure,), pairs=everywhere, first=False),
        "mixup and CS, unpaired": Row(("train.mixup={}",), pairs=everywhere, first=False),
        "pseudo pairs and CS, unpaired": Row((f"{_OBJECTIVE}.pseudo_pairs={{}}",), pairs=everywhere, first=False),
        "negatives and CS, unpaired": Row(
            (f"{_OBJECTIVE}.pairwise.unpaired_negatives=true",), pairs=everywhere, first=False
        ),
        "start cca and CS, unpaired": Row(("train.start=cca", "train.lr=3e-4"), pairs=everywhere, first=False),
        "start cca, pairs": Row((NO_CS, PAIRS, "train.start=cca", "train.lr=3e-4"), pairs=everywhere, first=False),
        "structure, unpaired": Row((NO_CS, structure), pairs=everywhere, first=False),
        "structure, pairs": Row((NO_CS, PAIRS, structure), pairs=everywhere, first=False),
        "mixup, pairs": Row((NO_CS, PAIRS, "train.mixup={}"), pairs=everywhere, first=False),
        "pseudo pairs, unpaired": Row((NO_CS, f"{_OBJECTIVE}.pseudo_pairs={{}}"), pairs=everywhere, first=False),
        "negatives, unpaired": Row(
            (NO_CS, f"{_OBJECTIVE}.pairwise.unpaired_negatives=true"), pairs=everywhere, first=False
        ),
        "CS, unpaired": Row((), pairs=everywhere, first=False),
    }


# What every row begins with, whatever of it the shipped recipe has chosen since.
_BASE = (
    f"{_OBJECTIVE}={{divergence: {{kind: cs, weight: 1, bandwidth: 0.7071}}, teacher: null}}",
    "train.captions=one_random",
    "train.unpaired_per_pair={image: 1.0, text: 1.0}",
)
# Of each number of pairs: passes over them, and pairs in a step where those of the recipe are too many.
SCHEDULES = {100: (60, 64), 300: (60, None), 1000: (30, None), 2000: (30, None)}


def jobs(
    name: str,
    pairs: Sequence[int] | None,
    seeds: int | None,
    only: Sequence[str],
    passes: int | None,
    chosen: str | None = None,
) -> list[Job]:
    """The trainings of a plan, seed by seed, those that teach others first."""
    if name == "final" and chosen is None:
        raise SystemExit("final wants --chosen FILE, the lines of choose")
    rows = {"search": lambda: SEARCH, "choose": lambda: CHOOSE, "final": lambda: final(chosen or "")}[name]()
    wanted = {label: row for label, row in rows.items() if not only or any(word in label for word in only)}
    found = [
        job
        for seed in range(seeds or {"search": 2, "choose": 2, "final": 5}[name])
        for count in SCHEDULES
        for job in _of(wanted, rows, count, seed, passes)
        if pairs is None or count in pairs
    ]
    return sorted(found, key=lambda job: not rows[job.label].first)


def _of(wanted: dict[str, Row], rows: dict[str, Row], pairs: int, seed: int, passes: int | None) -> Iterator[Job]:
    epochs, batch = SCHEDULES[pairs]
    fixed = (*_BASE, f"train.epochs={passes or epochs}", *([f"train.batch_size={batch}"] if batch else []))
    here = {label: row for label, row in wanted.items() if pairs in row.pairs}
    needed: dict[str, int] = {}
    for row in here.values():
        if row.teachers:
            label, count = row.teachers
            needed[label] = max(count, needed.get(label, 0))
    for label, count in needed.items():
        for member in range(count):
            yield Job(label, (*fixed, *rows[label].settings), pairs, seed, member, kept=True)
    for label, row in here.items():
        if label not in needed:
            yield Job(label, (*fixed, *row.settings), pairs, seed, teachers=row.teachers, unpaired=row.unpaired)
