"""What the cells of the tables in README and docs hold, and what stands under a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cs_aligner_cli.common.estimates import Estimate


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds; a number that no seed changes stands alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.{digits}f}" if spread > 0 else mean


def difference(values: Sequence[float], digits: int) -> str:
    """The mean of paired differences with its 95% interval of Student's t; alone where all are equal."""
    from cs_aligner_cli.experiments.statistics import seeds_estimate

    return _with_interval(seeds_estimate(values), digits)


def _with_interval(one: Estimate, digits: int) -> str:
    low, high = one.interval
    span = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if one.covers != "nothing" else ""
    return f"{one.mean:+.{digits}f}{span}"


def costs(content: dict[str, Any]) -> str:
    """A table of what terms cost, in steps of the first of them, whose milliseconds stand in its row."""
    rows = {row["label"]: row["seconds"] for row in content["terms"]}
    first, *others = rows
    lines = ["| term | batch 512 | batch 4,096 |", "|---|---|---|"]
    lines.append(f"| {first} | {' | '.join(f'{1e3 * took:,.0f} ms' for took in rows[first])} |")
    for label in others:
        ratios = [took / own for took, own in zip(rows[label], rows[first], strict=True)]
        lines.append(f"| {label} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |")
    return "\n".join([*lines, "", _made(content)])


def provenance(content: dict[str, Any]) -> str:
    """The line that says where a table comes from."""
    seeds = len(content["seeds"])
    what = f"Mean ± standard deviation of {seeds} seeds of training" if seeds > 1 else "One seed of training"
    return f"{what}; {_made(content)}"


def _made(content: dict[str, Any]) -> str:
    return f"`{content['command']}`, commit {content['commit']}, {content['date']}, {content['device']}."


def few_shot(content: dict[str, Any]) -> str:
    """Accuracies in percent by store, method and number of shots, with the half width of the interval over draws."""
    found = content["few_shot"]
    names = {
        "zero_shot": "zero-shot",
        "nearest_mean": "nearest class mean",
        "linear_probe": "linear probe",
        "tip_adapter": "Tip-Adapter",
    }
    counts = [*next(iter(found.values()))["zero_shot"]]
    lines = [f"| shots of each class | {' | '.join(counts)} |", f"|{'---|' * (1 + len(counts))}"]
    for store, methods in found.items():
        for method, by_count in methods.items():
            cells = []
            for one in by_count.values():
                low, high = one["interval"]  # of one draw there is none
                mean = one["mean"]  # an end of the interval may be that of all shares
                reach = f" ± {100 * max(high - mean, mean - low):.1f}" if None not in (low, high) and high > low else ""
                cells.append(f"{100 * mean:.1f}{reach}")
            lines.append(f"| `{store}`, {names[method]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _made(content)])


def noise(content: dict[str, Any]) -> str:
    """R@1 with and without the noise filter, differences paired over seeds, which draw other data, too."""
    from cs_aligner_cli.common.estimates import holm
    from cs_aligner_cli.experiments.statistics import seeds_estimate

    without = {row["shuffled"]: row["values"]["R@1"] for row in content["noise"] if row["deviations"] is None}
    gains = [[a - b for a, b in zip(r["values"]["R@1"], without[r["shuffled"]], strict=True)] for r in content["noise"]]
    estimates = [seeds_estimate(gain) for gain, row in zip(gains, content["noise"], strict=True) if row["deviations"]]
    tested = iter(zip(estimates, holm([one.p for one in estimates]), strict=True))
    head = ("captions", "deviations", "R@1", "more than without", "p", "Holm's p", "shuffled, of those left out")
    lines = [f"| {' | '.join(head)} | found, of the shuffled |", f"|{'---|' * (1 + len(head))}"]
    for row in content["noise"]:
        values, test = row["values"], ["", "", ""]
        if row["deviations"]:
            one, adjusted = next(tested)
            p_values = [f"{one.p:.4f}", f"{adjusted:.4f}"] if one.covers != "nothing" else ["", ""]
            test = [_with_interval(one, 1), *p_values]
        captions = f"{row['shuffled']:.0%} shuffled" if row["shuffled"] else "as they are"
        found = [f"{cell(values[name], 0)}%" if name in values else "" for name in ("precision", "recall")]
        cells = [captions, str(row["deviations"] or "no filter"), cell(values["R@1"], 1), *test, *found]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", provenance(content)])
