"""The tables of docs/generation.md from what benchmarks/generation.py has measured."""

from __future__ import annotations

import math
from typing import Any

from table_cells import cell, difference, provenance

# Of pictures: metric to title, digits, and what it is multiplied with.
_PICTURES = {
    **{f"accuracy_{name}": (name, 1, 100) for name in ("background", "colour", "cell", "shape", "mean")},
    "prompt_R@1": ("prompt R@1", 1, 100),
    "condition_cosine": ("cosine to what was fed", 3, 1),
    "gap": ("centroid gap", 3, 1),
}


def pictures(content: dict[str, Any]) -> str:
    """What pictures drawn from each store show, in percent: means over seeds."""
    titles = [title for title, _, _ in _PICTURES.values()]
    lines = [f"| fed with | {' | '.join(titles)} |", f"|{'---|' * (1 + len(titles))}"]
    for row in content["rows"]:
        values = row["values"]
        cells = [
            cell([factor * value for value in values[key]], digits) if key in values else ""
            for key, (_, digits, factor) in _PICTURES.items()
        ]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", provenance(content)])


def pictures_against(content: dict[str, Any]) -> str:
    """Differences in what pictures show, paired over seeds, with 95% intervals of Student's t, and its p corrected for
    the lines of a column (Holm)."""
    from cs_aligner_cli.common.estimates import holm
    from cs_aligner_cli.experiments.statistics import seeds_estimate

    shown = {key: _PICTURES[key] for key in ("accuracy_mean", "prompt_R@1")}
    head = [f"| difference | {' | '.join(f'{t} | p' for t, _, _ in shown.values())} |", f"|{'---|' * 5}"]
    found = {row["label"]: row["values"] for row in content["rows"]}
    columns = []
    for key, (_, digits, factor) in shown.items():
        pairs = [(found[label][key], found[other][key]) for label, other in content["against"]]
        apart = [[factor * (x - y) for x, y in zip(*pair, strict=True)] for pair in pairs]
        columns.append([difference(values, digits) for values in apart])
        p_values = holm([seeds_estimate(values).p for values in apart])
        columns.append(["" if math.isnan(p) else f"{p:.2g}" for p in p_values])
    lines = [
        f"| {label}, against {other} | {' | '.join(cells)} |"
        for (label, other), *cells in zip(content["against"], *columns, strict=True)
    ]
    return "\n".join([*head, *lines])


def pictures_searched(content: dict[str, Any]) -> str:
    """What was tried, best first: the attributes, in percent, that the validation split's pictures show."""
    keys = {
        "objective": "",
        "weight": "weight of CS",
        "bandwidth": "sigma",
        "logit_scale": "logit scale",
        "length": "length of texts",
    }
    lines = [f"| {' | '.join(keys.values())} | attributes |", f"|{'---|' * (1 + len(keys))}"]
    for one in sorted(content["search"], key=lambda one: -one["attributes"]):
        shown = {key: f"{one[key]:g}" for key in keys if key != "objective"}
        if not one["weight"]:
            shown["bandwidth"] = ""
        cells = [one["objective"], *shown.values()]
        lines.append(f"| {' | '.join(cells)} | {100 * one['attributes']:.1f} |")
    return "\n".join(lines)
