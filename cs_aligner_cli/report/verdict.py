"""The gap report in plain sentences, computed from its numbers and tests alone.

The subject (the last store of this run) is compared with its control first, where there is one, else with the first
store. A metric *fell* or *rose* where ``differences`` calls its difference clear (Holm's correction within the
headline's metrics); otherwise no difference is shown. With g the squared centroid gap (debiased), m the standardised
margin, r R@1 (mean of both ways), and the spread of a cloud, 1 less the mean cosine of strangers within a modality:

A change of m by less than 5% counts as none: bringing shifted rows back to unit length does as much.

1. ``collapse``: the spread is below a tenth of the reference's; m or r fell and neither rose.
2. ``scale``: g fell, but by less than half in units of the spread: both clouds shrank, and the gap with them.
3. ``alignment``: g fell, m rose, r did not fall. No shift of a cloud and no common factor can do that.
4. ``shift``: g fell, m is as before, r did not fall: a shift of one cloud can do that much (and even raise r, where the
   gap itself stood in the way of ranking).
5. ``trade``: g fell; of m and r one rose and the other fell. ``cost``: g fell, m or r fell and neither rose.
6. ``pairs``: g did not fall, m or r rose and neither fell. ``apart``: g did not fall, m or r fell and neither rose.
7. Else ``wider`` where g rose, and ``same`` where it did not.

That no gap can be told is said only where the sign-flip test of the centroid gap has p >= 0.05. Paired cosine takes no
part: it rises whenever strangers' cosine does. A report over several seeds decides by its tests over seeds, others say
that they cover the choice of test pairs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.report.headline import p_in_words, signed

CONTROL = "pairwise_only"
_LEVEL = 0.05
_NO_GAP = 1e-9
_COLLAPSED, _SHRUNK, _UNCHANGED = 0.1, 0.5, 0.05
_FEW_RUNS = 4
_ARROW = "\N{NO-BREAK SPACE}\N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}"
_GAP, _MARGIN, _RECALL = "squared_gap_debiased", "margin_standardised", "R@1"
_SENTENCES = {
    "collapse": "The rows collapsed: everything lies close together, and pairs stand out from strangers less.",
    "scale": "Both clouds shrank, and the gap with them: by the clouds' own spread, most of it is still there.",
    "alignment": "The clouds came together, and pairs stand out from strangers more than before: no shift does that.",
    "shift": "With each modality's mean taken away, pairs stand out no more than before: a shift of one cloud can do "
    "that much.",
    "cost": "The clouds came together, and pairs stand out from strangers less than before.",
    "trade": "The clouds came together; pairs do better by one measure and worse by another.",
    "pairs": "Pairs stand out from strangers more than before; the clouds did not come together.",
    "apart": "Pairs stand out from strangers less than before, and the clouds did not come together.",
    "wider": "The clouds moved apart, and pairs stand out no more for it.",
    "same": "No difference is shown: neither of the clouds nor of the pairs.",
}


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return a paragraph on the subject and its control, with the best free alternative, then one on each other store.

    Stores without a centroid gap do not count; ``report`` is as in ``render_page``.
    """
    measured = [name for name, values in report["stores"].items() if "centroid_gap" in values]
    if not measured:
        return ["No store has its image and text rows in one space, so no gap between them can be measured yet."]
    kinds = report.get("kinds", {})
    own = [name for name in measured if kinds.get(name, "store") == "store"]
    sentences = []
    if len(own) == 1:
        sentences = [" ".join([_alone(report, own[0]), *_free(report, own[0])])]
    elif own:
        subject = own[-1]
        # The control differs in the divergence alone, a frozen store in all of training.
        others = sorted(own[:-1], key=lambda name: name != CONTROL)
        first = [_compared(report, others[0], subject), _left(report, subject), *_free(report, subject)]
        sentences = [
            " ".join([*first, _coverage(report)]),
            *(_compared(report, other, subject) for other in others[1:]),
        ]
    runs = [name for name in measured if kinds.get(name) == "run"]
    return sentences + _best_run(report, runs)


def outcome(report: Mapping[str, Any], reference: str, subject: str) -> str:
    """Which of the rules above applies to the subject against a reference store, one of their names."""
    gap, margin, recall = (_direction(report, reference, metric) for metric in (_GAP, _MARGIN, _RECALL))
    up, down = 1 in (margin, recall), -1 in (margin, recall)
    stores = report["stores"]
    spread = _spread(stores[subject]) / max(_spread(stores[reference]), _NO_GAP)
    if spread < _COLLAPSED and down and not up:
        return "collapse"
    if gap < 0:
        before, after = (max(stores[name].get(_GAP, 0.0), _NO_GAP) for name in (reference, subject))
        if spread < _SHRUNK and after / spread > _SHRUNK * before:
            return "scale"
        if down:
            return "trade" if up else "cost"
        return "alignment" if margin > 0 else "shift"
    if up != down:
        return "pairs" if up else "apart"
    return "wider" if gap > 0 else "same"


def mean_r1(report: Mapping[str, Any], store: str) -> float | None:
    """R@1 of a store in percent, averaged over both directions; None where retrieval was not evaluated."""
    directions = report.get("retrieval", {}).get(store)
    if not directions:
        return None
    return 50 * float(directions["i2t"]["R@1"] + directions["t2i"]["R@1"])


def _spread(values: Mapping[str, float]) -> float:
    return 1 - (values.get("conformity_image", 0.0) + values.get("conformity_text", 0.0)) / 2


def _row(report: Mapping[str, Any], reference: str, metric: str) -> Mapping[str, Any] | None:
    """The test of the subject against a reference: over seeds, where they were measured."""
    rows = [*report.get("seeds", {}).get("differences", ()), *report.get("differences", ())]
    return next((row for row in rows if row["store"] == reference and row["metric"] == metric), None)


def _direction(report: Mapping[str, Any], reference: str, metric: str) -> int:
    """1 where the subject's metric rose, -1 where it fell, 0 where no difference is shown."""
    row = _row(report, reference, metric)
    if row is None or not row["clear"]:
        return 0
    if metric == _MARGIN and abs(row["difference"]) < _UNCHANGED * abs(_value(report, reference, _MARGIN)):
        return 0
    return 1 if row["difference"] > 0 else -1


def _value(report: Mapping[str, Any], store: str, metric: str) -> float:
    """A store's value: the mean over seeds, where they were measured."""
    runs = report.get("seeds", {}).get("stores", {}).get(store) or [report["stores"][store]]
    return float(sum(run.get(metric, 0.0) for run in runs)) / len(runs)


def _compared(report: Mapping[str, Any], reference: str, subject: str) -> str:
    stores = report["stores"]
    before, after = (_value(report, name, "centroid_gap") for name in (reference, subject))
    numbers = f"({before:.3f}{_ARROW}{after:.3f}{_p(report, reference, _GAP)})"
    direction = _direction(report, reference, _GAP)
    if direction < 0:
        closed = f"{1 - after / before:.0%} of " if before > _NO_GAP else ""
        parts = [f"{subject} closed {closed}the centroid gap of {_named(reference)} {numbers}"]
    elif direction > 0:
        parts = [f"{subject} widened the centroid gap of {_named(reference)} {numbers}"]
    else:
        parts = [f"between {subject} and {_named(reference)} no difference in the centroid gap is shown {numbers}"]
    parts += _recall_change(report, reference, subject)
    if _MARGIN in stores[subject] and _MARGIN in stores[reference]:
        margins = _ARROW.join(f"{_value(report, name, _MARGIN):.2f}" for name in (reference, subject))
        words = {1: "rose", -1: "fell", 0: "is as before"}[_direction(report, reference, _MARGIN)]
        parts.append(
            f"the standardised margin of pairs over strangers {words} ({margins}{_p(report, reference, _MARGIN)})"
        )
    sentence = "; ".join(parts)
    return (
        f"{sentence[0].upper() if sentence[0] == 'b' and direction == 0 else sentence[0]}{sentence[1:]}. "
        + _SENTENCES[outcome(report, reference, subject)]
    )


def _named(store: str) -> str:
    return f"its control {store}" if store == CONTROL else store


def _p(report: Mapping[str, Any], reference: str, metric: str) -> str:
    row = _row(report, reference, metric)
    return "" if row is None else f", {p_in_words(row['p_holm'] if row.get('p_holm') is not None else row['p'])}"


def _recall_change(report: Mapping[str, Any], reference: str, subject: str) -> list[str]:
    before, after = mean_r1(report, reference), mean_r1(report, subject)
    if report.get("seeds") and reference in report["seeds"]["stores"]:
        before, after = (100 * _value(report, name, _RECALL) for name in (reference, subject))
    row = _row(report, reference, _RECALL)
    if before is None or after is None:
        return []
    numbers = f"{before:.1f}%{_ARROW}{after:.1f}%"
    if row is None:
        return [f"R@1 went {numbers}"]
    low, high = (signed(100 * bound, 1) for bound in row["interval"])
    points = f"{abs(100 * row['difference']):.1f} points of R@1"
    direction = _direction(report, reference, _RECALL)
    words = {1: f"it won {points}", -1: f"it cost {points}", 0: "no difference in R@1 is shown"}[direction]
    return [f"{words} ({numbers}; {low} to {high} points)"]


def _left(report: Mapping[str, Any], store: str) -> str:
    """Whether a gap is left, by the sign-flip test."""
    gap, level, p = (report.get(part, {}).get(store, {}).get("centroid_gap") for part in ("stores", "null", "tests"))
    if gap is None or level is None or p is None:
        return ""
    reads = f"{gap:.3f} where {level:.3f} is read without any, {p_in_words(p)}"
    return f"No gap can be told any more ({reads})." if p >= _LEVEL else f"A gap is left ({reads})."


def _alone(report: Mapping[str, Any], store: str) -> str:
    values, recall = report["stores"][store], mean_r1(report, store)
    parts = [f"{store} has a centroid gap of {values['centroid_gap']:.3f}"]
    if _MARGIN in values:
        parts.append(f"a standardised margin of pairs over strangers of {values[_MARGIN]:.2f}")
    if recall is not None:
        parts.append(f"an R@1 of {recall:.1f}%")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    alone = sum(bool(values) for values in report["stores"].values()) == 1
    ending = "There is no other store to compare it with." if alone else ""
    return " ".join(part for part in (f"{listed}.", _left(report, store), ending) if part)


def _free(report: Mapping[str, Any], subject: str) -> list[str]:
    """The best of what can be had for free: nothing trained at all, and nothing added to the control's training."""
    baselines = [name for name, kind in report.get("kinds", {}).items() if kind == "baseline"]
    baselines = [
        name for name in baselines if mean_r1(report, name) is not None and "centroid_gap" in report["stores"][name]
    ]
    of_control = [name for name in baselines if name.startswith(f"{CONTROL}+")]
    sentences = []
    for title, names in (
        ("Of what needs no training, {} retrieves best", [n for n in baselines if n.startswith("frozen+")]),
        ("The control needs no divergence either, with {}", of_control),
    ):
        if names:
            # Of those that print the same R@1, the one with the smallest gap.
            best = max(
                names,
                key=lambda name: (round(mean_r1(report, name) or 0.0, 1), -report["stores"][name]["centroid_gap"]),
            )
            sentences.append(f"{title.format(best)}: {_state(report, best)}{_rivals(report, subject, best)}.")
    return sentences


def _rivals(report: Mapping[str, Any], subject: str, other: str) -> str:
    """How a free alternative compares with the subject, by the tests."""
    gap, recall = _direction(report, other, _GAP), _direction(report, other, _RECALL)
    if not any(_row(report, other, metric) for metric in (_GAP, _RECALL)):
        return ""
    better = [
        what
        for what, direction in (("a smaller gap once sampling noise is taken off", gap), ("a higher R@1", -recall))
        if direction > 0
    ]
    worse = [
        what
        for what, direction in (("a larger gap once sampling noise is taken off", -gap), ("a lower R@1", recall))
        if direction > 0
    ]
    if not better and not worse:
        return f", no difference to {subject} in either is shown"
    return f", {' and '.join(better + worse)} than {subject}"


def _state(report: Mapping[str, Any], store: str) -> str:
    return f"R@1 {mean_r1(report, store):.1f}%, gap {report['stores'][store]['centroid_gap']:.3f}"


def _best_run(report: Mapping[str, Any], stores: list[str]) -> list[str]:
    """A sentence on the other runs' store that retrieves best, and one on that with the smallest gap, if another."""
    ranked = {name: recall for name in stores if (recall := mean_r1(report, name)) is not None}
    if not ranked:
        return []
    best = max(ranked, key=lambda name: ranked[name])
    closest = min(ranked, key=lambda name: float(report["stores"][name]["centroid_gap"]))
    sentence = f"Of the other runs' stores, {best} retrieves best: {_state(report, best)}."
    if closest != best:
        sentence += f" {closest} has the smallest gap: {_state(report, closest)}."
    return [sentence]


def _coverage(report: Mapping[str, Any]) -> str:
    runs = report.get("seeds", {}).get("runs", ())
    if runs:
        few = " So few runs can show only what differs by far." if len(runs) < _FEW_RUNS else ""
        return f"This covers the seed of training, over {len(runs)} runs, and the choice of test pairs.{few}"
    return "This covers the choice of test pairs, not the seed of training: one run was measured."
