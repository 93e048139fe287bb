"""What can be had for free: closed forms on the frozen store, and on the control that knows no divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cs_aligner_cli.report.evidence import CONTROL, GAP, MIXED, RECALL, direction, recall_of, row_of

# What is compared: its name, and which way is better.
_GAP_NAME = "gap"
_METRICS = ((GAP, -1, _GAP_NAME), (RECALL, 1, "R@1"), (MIXED, 1, "R@10 in a mixed corpus"))
_WORDS = {-1: ("smaller", "larger"), 1: ("higher", "lower")}
_FORMS = {
    "centred": "each modality's mean taken away",
    "mean_shift": "both clouds moved half way",
    "whitened": "each modality whitened",
    "procrustes": "one modality rotated onto the other",
    "cca": "canonical axes of both modalities",
}


@dataclass(frozen=True)
class Alternative:
    """A free store beside the report's subject: in what it is clearly better, and in what clearly worse.

    ``tested``: the metrics that were compared. Neither better nor worse means that these pairs show no difference.
    ``of``: from how many of its base it was chosen, by these same pairs.
    """

    store: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    tested: tuple[str, ...]
    of: int = 1

    @property
    def as_good(self) -> bool:
        """No test shows it to be worse in anything that was compared."""
        return bool(self.tested) and not self.worse

    @property
    def what(self) -> str:
        """The closed form in words."""
        base, _, kind = self.store.partition("+")
        made = "of the trained control" if base == CONTROL else "a closed form of the frozen rows"
        chosen = f", the strongest of {self.of} here" if self.of > 1 else ""
        return f"{_FORMS.get(kind, kind)}, {made}{chosen}"

    def compared(self, subject: str) -> str:
        """In words, how it stands beside the subject."""
        if not self.tested:
            return ""
        if not self.better and not self.worse:
            return f"no difference to {subject} in {_listed(self.tested, 'or')} is shown"
        words = (*self.better, *self.worse)
        of_gap = any(word.endswith(_GAP_NAME) for word in words)
        return f"{_listed(words, 'and')} than {subject}{', sampling noise of the gap taken off' if of_gap else ''}"


def free_alternatives(report: Mapping[str, Any], subject: str) -> list[Alternative]:
    """The strongest closed form on the frozen store, and on the control, where there are any; the strongest first.

    Strongest is whichever is clearly worse than the subject in the fewest things; of several the one with the highest
    R@1 as printed, and then with the smallest gap.
    """
    found = []
    for base in ("frozen", CONTROL):
        names = [n for n, kind in report.get("kinds", {}).items() if kind == "baseline" and n.startswith(f"{base}+")]
        names = [n for n in names if recall_of(report, n) is not None and "centroid_gap" in report["stores"][n]]
        if names:
            best = min((_alternative(report, name) for name in names), key=lambda a: _rank(report, a))
            found.append(replace(best, of=len(names)))
    return sorted(found, key=lambda a: len(a.worse))


def _rank(report: Mapping[str, Any], alternative: Alternative) -> tuple[int, float, float]:
    recall = round(recall_of(report, alternative.store) or 0.0, 1)
    return len(alternative.worse), -recall, report["stores"][alternative.store]["centroid_gap"]


def _alternative(report: Mapping[str, Any], store: str) -> Alternative:
    better, worse, tested = [], [], []
    for metric, good, name in _METRICS:
        if row_of(report, store, metric) is None:
            continue
        tested.append(name)
        # The subject's direction against the alternative: where the subject is better, the alternative is worse.
        subject = direction(report, store, metric) * good
        words = _WORDS[good]
        if subject < 0:
            better.append(f"a {words[0]} {name}")
        elif subject > 0:
            worse.append(f"a {words[1]} {name}")
    return Alternative(store, tuple(better), tuple(worse), tuple(tested))


def _listed(parts: tuple[str, ...], last: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
