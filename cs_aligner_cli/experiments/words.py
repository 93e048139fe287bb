"""What a comparison says, in sentences that follow from its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.p_values import rounded_p
from cs_aligner_cli.experiments.columns import Column
from cs_aligner_cli.experiments.comparison import Comparison, Difference, Row

_MOST_NAMED = 6


def conclusions(found: Comparison) -> list[str]:
    """The design, the tests of the objective, the gap's, what this many seeds could have shown, and the front."""
    objective = found.column(found.objective)
    sentences = [_design(found)]
    others = [row for row in found.rows if not row.is_control]
    if found.control is not None and others:
        sentences += _against_control(others, objective, found.control)
        if found.detectable is not None:
            sentences.append(
                f"A true difference of {objective.written(found.detectable)} in {objective.title} would be found in "
                "four of five such experiments, before the correction; smaller ones can be there unseen."
            )
        gap = next((column for column in found.columns if column.role == "gap"), None)
        if gap is not None and gap.key != found.objective:
            sentences += _gap(others, gap, found.control)
    searched = sum(row.searched for row in found.rows)
    if searched:
        sentences.append(
            f"{counted(searched, 'configurations', 'stem')} from a search by a metric of these very images, so that "
            "the best of them look better than they are: measure those on another split before you believe a"
            " difference."
        )
    front = [row.name for row in found.rows if row.on_front]
    if front and len(found.rows) > 1:
        sentences.append(
            f"By the means, nothing has both a smaller gap and a better {objective.title} than {_listed(front)}."
        )
    return sentences


def _design(found: Comparison) -> str:
    seeds = sorted({len(row.seeds) for row in found.rows})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    over = f"{found.images:,} images of split {found.split} of {found.data_set}"
    configurations = counted(len(found.rows), "configurations")
    if seeds == [1]:
        return f"{configurations} with one training seed each, on {over}. {_coverage(found)}"
    return f"{configurations}, {each} seeds each, on {over}. {_coverage(found)}"


# What an interval is over, by what a cell says of it.
_COVERED = {
    "seeds and images": "seeds and test images",
    "images": "test images alone (one seed)",
    "seeds": "seeds",
    "nothing": "nothing (one seed, or equal ones)",
}


def _coverage(found: Comparison) -> str:
    """What intervals and tests are over; a test has the seeds that both its configurations share."""
    intervals: dict[tuple[str, ...], list[str]] = {}
    tests: dict[tuple[str, ...], list[str]] = {}
    for column in [column for column in found.columns if not column.is_cost] or found.columns:
        cells = [row.cells[column.key] for row in found.rows if column.key in row.cells]
        paired = [cell.difference for cell in cells if cell.difference is not None]
        for by_covers, own in ((intervals, cells), (tests, paired)):
            over = {one.covers for one in own}
            if over:
                by_covers.setdefault(tuple(covers for covers in _COVERED if covers in over), []).append(column.title)
    if not tests or tests == intervals:
        return f"Intervals {'and tests ' if tests else ''}of {_covering(intervals)}."
    return f"Intervals of {_covering(intervals)}. Tests, on the seeds that both have, of {_covering(tests)}."


def _covering(titles: Mapping[tuple[str, ...], Sequence[str]]) -> str:
    *named, last = titles.items()
    others = "all metrics" if not named else "the others" if len(last[1]) > _MOST_NAMED else _joined(last[1])
    parts = [(_joined(own), covers) for covers, own in named] + [(others, last[0])]
    return "; ".join(f"{own} cover {', or '.join(_COVERED[one] for one in covers)}" for own, covers in parts)


def _joined(titles: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


def _against_control(rows: Sequence[Row], column: Column, control: str) -> list[str]:
    tests = {row.name: row.cells[column.key].difference for row in rows if column.key in row.cells}
    known = {name: test for name, test in tests.items() if test is not None and test.p_holm is not None}
    if not known:
        return [
            f"{column.title}: one value per configuration, or the same of all seeds, says nothing of chance, so"
            " nothing is tested."
        ]
    sign = column.sign
    better = {n: t for n, t in known.items() if t.clear and t.mean * sign > 0}
    worse = {n: t for n, t in known.items() if t.clear and t.mean * sign < 0}
    corrected = f", p corrected for {len(known)} comparisons (Holm)" if len(known) > 1 else ""
    sentences = []
    for group, word in ((better, "better"), (worse, "worse")):
        if group:
            listed = _listed([f"{name} ({_difference(test, column)})" for name, test in group.items()])
            sentences.append(f"{column.title}: {word} than {control}{corrected}: {listed}.")
    open_ = [name for name in known if name not in better and name not in worse]
    if open_:
        rest = f"{_listed(open_)}" if len(open_) <= _MOST_NAMED else f"the other {len(open_)} configurations"
        least = min(known[name].p_holm or 1.0 for name in open_)
        sentences.append(
            f"{column.title}: no difference to {control} is shown for {rest} (smallest p {least:.2g}{corrected})."
        )
    return sentences


def _gap(rows: Sequence[Row], gap: Column, control: str) -> list[str]:
    tests = {row.name: row.cells[gap.key].difference for row in rows if gap.key in row.cells}
    known = {name: test for name, test in tests.items() if test is not None and test.p_holm is not None}
    if not known:
        return []
    smaller = [n for n, t in known.items() if t.clear and t.mean < 0]
    larger = [n for n, t in known.items() if t.clear and t.mean > 0]
    parts = []
    if smaller:
        parts.append(f"smaller than that of {control} for {_listed(smaller)}")
    if larger:
        parts.append(f"larger for {_listed(larger)}")
    if not parts:
        return [f"{gap.title.capitalize()}: no difference to {control} is shown for any configuration."]
    return [f"{gap.title.capitalize()}: {'; '.join(parts)}."]


def _difference(test: Difference, column: Column) -> str:
    span = f" [{test.interval[0]:+.{column.digits}f}, {test.interval[1]:+.{column.digits}f}]" if test.interval else ""
    assert test.p_holm is not None
    return f"{test.mean:+.{column.digits}f}{span}, p {rounded_p(test.p_holm, '.2g', least=0.0)}"


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{'; '.join(shown[:-1])} and {shown[-1]}"
