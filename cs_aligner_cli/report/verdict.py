"""The gap report in plain sentences, computed from its numbers and tests alone.

Three questions come first: did it close the gap, what did it cost, could one have had it for free? The subject (the
last store of this run) is compared with its control, where there is one, else with the first store. A metric *fell* or
*rose* where ``differences`` calls its difference clear (Holm's correction within the headline's metrics); otherwise no
difference is shown. With g the squared centroid gap (debiased), m the standardised margin, r R@1 (mean of both ways),
and the spread of a cloud, 1 less the mean cosine of strangers within a modality:

A change of m by less than 5% counts as none: bringing shifted rows back to unit length does as much.

1. ``collapse``: the spread is below a tenth of the reference's; m or r fell and neither rose.
2. ``scale``: g fell, but by less than half in units of the spread: both clouds shrank, and the gap with them.
3. ``alignment``: g fell, m rose, r did not fall. No shift of a cloud and no common factor can do that.
4. ``shift``: g fell, m is not shown to have risen, r did not fall: a shift of one cloud can do that much (and even
   raise r, where the gap itself stood in the way of ranking).
5. ``trade``: g fell; of m and r one rose and the other fell. ``cost``: g fell, m or r fell and neither rose.
6. ``pairs``: g did not fall, m or r rose and neither fell. ``apart``: g did not fall, m or r fell and neither rose.
7. Else ``wider`` where g rose, and ``same`` where it did not.

Where the plain centroid gap, which holds sampling noise, went the other way than the test of g says, g is printed, too.
That no gap can be told is said only where the sign-flip test of the centroid gap has p >= 0.05. Paired cosine takes
no part: it rises whenever strangers' cosine does. "Yes, as far as these pairs can tell" is said of a free alternative
that no test shows to be worse in g, r or R@10 in a mixed corpus, whether or not it is better. A report over several
seeds decides by its tests and its means over seeds; whether a gap is left and what is free are tested on its own run
alone, and it says so. Others say that they cover the choice of test pairs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.report.evidence import (
    CONTROL,
    GAP,
    MARGIN,
    MIXED,
    RECALL,
    direction,
    gap_left,
    own_stores,
    p_of_test,
    recall_of,
    reference_of,
    row_of,
    the_pairs,
    value_of,
)
from cs_aligner_cli.report.free import Alternative, free_alternatives
from cs_aligner_cli.report.headline import number, p_in_words, signed

_NO_GAP = 1e-9
_AS_BEFORE = "as before, to within 5%"
_COLLAPSED, _SHRUNK = 0.1, 0.5
_FEW_RUNS = 4
_ARROW = "\N{NO-BREAK SPACE}\N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}"
# {better} and {worse} say which of m and r rose or fell, {clouds} and {still} what of g and m did not.
_SENTENCES = {
    "collapse": "The rows collapsed: everything lies close together, and {worse}.",
    "scale": "Both clouds shrank, and the gap with them: by the clouds' own spread, most of it is still there.",
    "alignment": "The clouds came together, and pairs stand out from strangers more than before: no shift does that.",
    "shift": "With each modality's mean taken away, pairs {still}: a shift of one cloud can do that much.",
    "cost": "The clouds came together, and {worse}.",
    "trade": "The clouds came together; {better}, and {worse}.",
    "pairs": "{clouds}, but {better}.",
    "apart": "{clouds}, and {worse}.",
    "wider": "The clouds moved apart{both}.",
    "same": "Between the clouds no difference is shown{both}.",
}


class Answer(NamedTuple):
    """One of the questions that a report opens with, and what its tests say."""

    question: str
    text: str


def answers(report: Mapping[str, Any]) -> list[Answer]:
    """The report's first paragraph, question by question: on the subject, its control, and the best free alternatives.

    Stores without a centroid gap do not count; ``report`` is as in ``render_page``.
    """
    own = own_stores(report)
    if not own:
        words = "No store has its image and text rows in one space, so no gap between them can be measured yet."
        return [Answer("How wide is the gap?", words)]
    subject, reference = own[-1], reference_of(report)
    free = Answer("Could one have had it for free?", _free(report, subject))
    if reference is None:
        first = [Answer("How wide is the gap?", _alone(report, subject))]
        return [*first, free] if free_alternatives(report, subject) else first
    over = _over_seeds(report)
    closed = (*_gap_change(report, reference, subject), over, _left(report, subject))
    cost = (_cost(report, reference, subject), _summary(report, reference, subject), over)
    # Closed forms are measured in the report's own run alone.
    alone = "This was tested on this run alone, over test pairs."
    of_free = alone if over else "This covers the choice of test pairs, not the seed of training: one run was measured."
    return [
        Answer("Did it close the gap?", " ".join(filter(None, closed))),
        Answer("What did it cost?", " ".join(filter(None, cost))),
        free._replace(text=f"{free.text} {of_free}"),
    ]


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return the answers as one paragraph, then one on every other store of this run, and one on other runs' stores."""
    return [" ".join(f"{question} {text}" for question, text in answers(report)), *further(report)]


def further(report: Mapping[str, Any]) -> list[str]:
    """A paragraph on the subject against every other store of this run, and one on the best of other runs' stores."""
    own, reference = own_stores(report), reference_of(report)
    paragraphs = []
    for other in own[:-1]:
        if other != reference:
            _, gap = _gap_change(report, other, own[-1])
            rest = f"{_cost(report, other, own[-1])} {_summary(report, other, own[-1])}"
            paragraphs.append(
                f"Against {other}: {gap[0].lower() if gap.startswith('Between') else gap[0]}{gap[1:]} {rest}"
            )
    runs = [n for n, kind in report.get("kinds", {}).items() if kind == "run" and "centroid_gap" in report["stores"][n]]
    return paragraphs + _best_run(report, runs)


def outcome(report: Mapping[str, Any], reference: str, subject: str) -> str:
    """Which of the rules above applies to the subject against a reference store, one of their names."""
    gap, margin, recall = (direction(report, reference, metric) for metric in (GAP, MARGIN, RECALL))
    up, down = 1 in (margin, recall), -1 in (margin, recall)
    spread = _spread(report, subject) / max(_spread(report, reference), _NO_GAP)
    if spread < _COLLAPSED and down and not up:
        return "collapse"
    if gap < 0:
        before, after = (max(value_of(report, name, GAP), _NO_GAP) for name in (reference, subject))
        if spread < _SHRUNK and after / spread > _SHRUNK * before:
            return "scale"
        if down:
            return "trade" if up else "cost"
        return "alignment" if margin > 0 else "shift"
    if up != down:
        return "pairs" if up else "apart"
    return "wider" if gap > 0 else "same"


def _summary(report: Mapping[str, Any], reference: str, subject: str) -> str:
    """The sentence of the rule that applies."""
    gap, margin, recall = (direction(report, reference, metric) for metric in (GAP, MARGIN, RECALL))
    words = {
        1: ("stand out from strangers more than before", "are found first more often"),
        -1: ("stand out from strangers less than before", "are found first less often"),
    }
    better, worse = (
        "pairs " + " and ".join(w for w, moved in zip(words[way], (margin, recall), strict=True) if moved == way)
        for way in (1, -1)
    )
    kind, little = outcome(report, reference, subject), _moved_little(report, reference)
    both = "; between the pairs no difference is shown" if kind == "wider" else ", nor between the pairs"
    if margin != recall:
        both = f"; {better}, and {worse}"
    elif little:
        both = f"; pairs stand out {_AS_BEFORE}, and no difference in R@1 is shown"
    clouds = "The clouds moved apart" if gap > 0 else "The clouds are not shown to have come together"
    still = f"stand out {_AS_BEFORE}" if little else "are not shown to stand out more than before"
    return _SENTENCES[kind].format(better=better, worse=worse, both=both, clouds=clouds, still=still)


def _moved_little(report: Mapping[str, Any], reference: str) -> bool:
    """Whether the margin is known to have moved, by so little that it counts as no change."""
    row = row_of(report, reference, MARGIN)
    return row is not None and row["clear"] and direction(report, reference, MARGIN) == 0


def _spread(report: Mapping[str, Any], store: str) -> float:
    return 1 - (value_of(report, store, "conformity_image") + value_of(report, store, "conformity_text")) / 2


def _gap_change(report: Mapping[str, Any], reference: str, subject: str) -> tuple[str, str]:
    """Whether the subject closed the gap of a reference, in a word, and a sentence with the numbers."""
    change = direction(report, reference, GAP)
    before, after = (value_of(report, name, "centroid_gap") for name in (reference, subject))
    numbers = f"({before:.3f}{_ARROW}{after:.3f}{p_of_test(report, reference, GAP)})"
    if change * (after - before) < 0:  # the gap as it is measured also holds the noise of each store's own sample
        squares = _ARROW.join(number(value_of(report, name, GAP), 4) for name in (reference, subject))
        noise = f"squared and free of sampling noise {squares}"
        numbers = f"({noise}{p_of_test(report, reference, GAP)}; as measured {before:.3f}{_ARROW}{after:.3f})"
    named = f"its control {reference}" if reference == CONTROL else reference
    if change > 0:
        return "No, it widened it.", f"{subject} widened the centroid gap of {named} {numbers}."
    if change == 0:
        return "Not shown.", f"Between {subject} and {named} no difference in the centroid gap is shown {numbers}."
    closed = f"closed {1 - after / before:.0%} of" if before > max(after, _NO_GAP) else "narrowed"
    left = gap_left(report, subject)
    if outcome(report, reference, subject) in ("collapse", "scale"):
        lead = "Only by drawing everything together."
    elif left and left[2] >= LEVEL:
        lead = f"Yes, as far as {the_pairs(report)} can tell."
    else:
        lead = ("In part, by this run's pairs." if report.get("seeds") else "In part.") if left else "It is narrower."
    return lead, f"{subject} {closed} the centroid gap of {named} {numbers}."


def _cost(report: Mapping[str, Any], reference: str, subject: str) -> str:
    """R@1, how far pairs stand out, and retrieval from a mixed corpus: before, after, and what the tests say of it."""
    parts = [_recall_change(report, reference, subject)]
    stores = report["stores"]
    if MARGIN in stores[subject] and MARGIN in stores[reference]:
        margins = _ARROW.join(number(value_of(report, name, MARGIN), 2) for name in (reference, subject))
        row, change = row_of(report, reference, MARGIN), direction(report, reference, MARGIN)
        if change == 0 and (row is None or not row["clear"]):
            words = "No difference is shown in how far pairs stand out from strangers"
        else:
            by_how_much = {1: "more than before", -1: "less than before", 0: _AS_BEFORE}
            words = f"Pairs stand out from strangers {by_how_much[change]}"
        p = p_of_test(report, reference, MARGIN)
        parts.append(f"{words} ({margins} standard deviations{p}).")
    parts.append(_mixed_change(report, reference, subject))
    return " ".join(part for part in parts if part)


def _recall_change(report: Mapping[str, Any], reference: str, subject: str) -> str:
    before, after = (recall_of(report, name) for name in (reference, subject))
    if before is None or after is None:
        return ""
    numbers, row = f"{before:.1f}%{_ARROW}{after:.1f}%", row_of(report, reference, RECALL)
    if row is None:
        return f"R@1 went {numbers}."
    points = f"{abs(100 * row['difference']):.1f} points of R@1"
    change = direction(report, reference, RECALL)
    lost = -1 in (direction(report, reference, metric) for metric in (MARGIN, MIXED))
    words = {
        1: f"{'It' if lost else 'Nothing: it'} won {points}",
        -1: f"It cost {points}",
        0: "No difference in R@1 is shown",
    }[change]
    return f"{words} ({numbers}; {_points(row, change)})."


def _mixed_change(report: Mapping[str, Any], reference: str, subject: str) -> str:
    """R@10 in a corpus of both modalities, the search in which a gap does harm."""
    before, after = (recall_of(report, name, MIXED) for name in (reference, subject))
    row = row_of(report, reference, MIXED)
    if before is None or after is None or row is None:
        return ""
    change = direction(report, reference, MIXED)
    words = {1: "R@10 rose", -1: "R@10 fell", 0: "no difference in R@10 is shown"}[change]
    numbers = f"({before:.1f}%{_ARROW}{after:.1f}%; {_points(row, change)})"
    return f"Where images and texts are searched together, {words} {numbers}."


def _points(row: Mapping[str, Any], change: int) -> str:
    """The interval of a difference, and why no ``change`` is shown where the interval alone would say that there is."""
    low, high = (signed(100 * bound, 1) for bound in row["interval"])
    alone = change == 0 and row["p"] < LEVEL
    return f"{low} to {high} points{'; more than chance by itself, not among all comparisons' if alone else ''}"


def _left(report: Mapping[str, Any], store: str) -> str:
    """Whether a gap is left, by the sign-flip test."""
    found = gap_left(report, store)
    if found is None:
        return ""
    gap, level, p = found
    words = "No gap can be told" if p >= LEVEL else "A gap is left"
    words += " in this run" if report.get("seeds") else ""
    reads = f"{gap:.3f} where {level:.3f} is read without any, {p_in_words(p)}"
    return f"{words} ({reads})."


def _alone(report: Mapping[str, Any], store: str) -> str:
    values, recall = report["stores"][store], recall_of(report, store)
    parts = [f"{store} has a centroid gap of {values['centroid_gap']:.3f}"]
    if MARGIN in values:
        parts.append(f"pairs that stand out from strangers by {number(values[MARGIN], 2)} standard deviations")
    if recall is not None:
        parts.append(f"an R@1 of {recall:.1f}%")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    alone = sum(bool(values) for values in report["stores"].values()) == 1
    ending = "There is no other store to compare it with." if alone else ""
    return " ".join(part for part in (f"{listed}.", _left(report, store), ending) if part)


def _free(report: Mapping[str, Any], subject: str) -> str:
    """The strongest of what can be had for free, and whether it does as well by the tests."""
    found = free_alternatives(report, subject)
    if not found:
        return "This was not measured: no closed form is in the report (gap_report.baselines)."
    tested = [alternative for alternative in found if alternative.tested]
    lead = ""
    if any(alternative.as_good for alternative in tested):
        lead = f"Yes, as far as {the_pairs(report)} can tell. "
    elif tested:
        lead = "Not the same. " if any(alternative.better for alternative in tested) else "No. "
    return lead + " ".join(_sentence(report, alternative, subject) for alternative in found)


def _sentence(report: Mapping[str, Any], alternative: Alternative, subject: str) -> str:
    gap = report["stores"][alternative.store]["centroid_gap"]
    numbers = f"R@1 {recall_of(report, alternative.store):.1f}%, gap {gap:.3f}"
    mixed = recall_of(report, alternative.store, MIXED)
    numbers += f", R@10 in a mixed corpus {mixed:.1f}%" if mixed is not None else ""
    compared = alternative.compared(subject)
    return f"{alternative.store} ({alternative.what}): {numbers}{f'; {compared}' if compared else ''}."


def _best_run(report: Mapping[str, Any], stores: list[str]) -> list[str]:
    """A sentence on the other runs' store of the highest R@1, and one on that of the smallest gap, if another."""
    ranked = {name: recall for name in stores if (recall := recall_of(report, name)) is not None}
    if not ranked:
        return []

    def gap(store: str) -> float:
        return float(report["stores"][store]["centroid_gap"])

    best, closest = max(ranked, key=lambda name: ranked[name]), min(ranked, key=gap)
    if len(ranked) == 1:
        return [f"Of another run, {best}: R@1 {ranked[best]:.1f}%, gap {gap(best):.3f}."]
    sentence = f"Of the other runs' stores, {best} has the highest R@1, {ranked[best]:.1f}% (gap {gap(best):.3f})"
    if closest != best:
        sentence += f", and {closest} the smallest gap, {gap(closest):.3f} (R@1 {ranked[closest]:.1f}%)"
    return [f"{sentence}."]


def _over_seeds(report: Mapping[str, Any]) -> str:
    runs = report.get("seeds", {}).get("runs", ())
    few = " So few runs can show only what differs by far." if len(runs) < _FEW_RUNS else ""
    return (
        f"This covers the seed of training, over {len(runs)} runs, and the choice of test pairs.{few}" if runs else ""
    )
