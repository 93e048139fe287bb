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
    """A row: settings of the recipe, how many trainings of another row teach it, how many pairs it is made with, and
    the share of the unpaired items that it sees."""

    settings: tuple[str, ...]
    teachers: tuple[str, int] | None = None
    pairs: tuple[int, ...] = (1000,)
    unpaired: float = 1.0


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
    "CS, captions all, teacher's weight 10": Row((ALL, _teacher(_CCA, weight=10))),
    "CS, teacher's weight 10": Row((_teacher(_CCA, weight=10),)),
    "CS, epsilon .03": Row((_teacher(_CCA, weight=3, epsilon=0.03),)),
    "CS, start cca": Row((_TEACHER, "train.start=cca", "train.lr=3e-4")),
    "CS, 2 unpaired a pair": Row((_TEACHER, "train.unpaired_per_pair={image: 2.0, text: 2.0}")),
    "tuned CS": Row((TUNED_CS, _TEACHER)),
    "tuned CS, captions all": Row((TUNED_CS, ALL, _TEACHER)),
    "CS, lambda 3, captions all": Row((f"{_OBJECTIVE}.divergence.weight=3", ALL, _TEACHER)),
    **{
        f"CS, lambda {weight}, sigma {sigma}": Row(
            (f"{_OBJECTIVE}.divergence={{kind: cs, weight: {weight}, bandwidth: {sigma}}}", _TEACHER)
        )
        for weight, sigma in ((3, 0.7071), (10, 0.7071), (1, 0.5), (10, 0.5))
    },
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
    start_cca = ("train.start=cca", "train.lr=3e-4")
    pseudo_pairs = f"{_OBJECTIVE}.pseudo_pairs={{}}"
    negatives = f"{_OBJECTIVE}.pairwise.unpaired_negatives=true"
    everywhere = {
        "InfoNCE": (NO_CS, PAIRS),
        "best, unpaired": best_of,
        "best, pairs": (*best_of, PAIRS),
        "teacher, unpaired": (NO_CS, _TEACHER),
        "teacher, pairs": (NO_CS, PAIRS, _TEACHER),
        "teacher and CS, unpaired": (_TEACHER,),
        "CS, unpaired": (),
        "CS, pairs": (PAIRS,),
        "tuned CS, unpaired": (TUNED_CS,),
        "tuned CS, pairs": (TUNED_CS, PAIRS),
        "structure, unpaired": (NO_CS, structure),
        "structure, pairs": (NO_CS, PAIRS, structure),
        "structure and CS, unpaired": (structure,),
        "pseudo pairs, unpaired": (NO_CS, pseudo_pairs),
        "pseudo pairs and CS, unpaired": (pseudo_pairs,),
        "negatives, unpaired": (NO_CS, negatives),
        "negatives and CS, unpaired": (negatives,),
        "mixup, pairs": (NO_CS, PAIRS, "train.mixup={}"),
        "mixup and CS, unpaired": ("train.mixup={}",),
        "start cca, pairs": (NO_CS, PAIRS, *start_cca),
        "start cca and CS, unpaired": start_cca,
    }
    return {
        **{label: Row(settings, pairs=(100, 300, 1000, 2000)) for label, settings in everywhere.items()},
        "captions all, pairs": Row((NO_CS, PAIRS, ALL)),
        "teacher, captions all, unpaired": Row((NO_CS, ALL, _TEACHER)),
        "best of all captions, unpaired": Row(CHOOSE["CS, lambda 3, captions all"].settings),
        "best, a fifth of the unpaired": Row(best_of, unpaired=0.2),
        "best, a twenty-fifth of the unpaired": Row(best_of, unpaired=0.04),
        "start spectral, unpaired": SEARCH["start spectral of all, lr 3e-4"],
        "start spectral, pairs": SEARCH["start spectral, lr 3e-4"],
        "self-training, unpaired": SEARCH["self-training, loose"],
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
    return [
        job
        for seed in range(seeds or {"search": 2, "choose": 2, "final": 5}[name])
        for count in SCHEDULES
        for job in _of(wanted, rows, count, seed, passes)
        if pairs is None or count in pairs
    ]


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
