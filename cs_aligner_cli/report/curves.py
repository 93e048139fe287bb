"""Figures of numbers: divergences over bandwidths, the conflict over temperatures, training over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.report.canvas import GRID, SERIES, UNPAIRED, Picture, legend, outer_labels, panels, powers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row: TypeAlias = Mapping[str, Any]

# Below this a divergence of unit rows is rounding, and would stretch the logarithmic axis over empty decades.
_SMALLEST_DIVERGENCE = 1e-6
_CONFLICT_STYLES = ((SERIES[0], "--"), (SERIES[1], "-."), ("black", "-"), (SERIES[2], ":"))
_DASHES = ("-", "--", "-.", ":")


def divergence_curve(sweeps: Mapping[str, Sequence[Row]]) -> Picture:
    """Draw D_CS against kernel bandwidth: V solid with its 95% interval, U dashed; grey what V reads without a gap.

    The grey area holds 95% of its sign flips. MMD U is dotted.

    ``sweeps`` maps a store to the rows of ``Measured.sweep``. Values at or below 0, which U can take, have no place on
    a logarithmic axis and interrupt the line. Raises InputError without any store.
    """
    if not sweeps:
        raise InputError("divergence_curve: expected at least one store")
    curves = {name: _curves(rows) for name, rows in sweeps.items()}
    bottom, top = _log_limits([c[key] for c in curves.values() for key in ("v", "null", "mmd")])
    with panels(list(curves), share_axes=True) as (figure, axes):
        for ax, curve in zip(axes, curves.values(), strict=True):
            widths = curve["bandwidth"]
            ax.set(xscale="log", yscale="log", ylim=(bottom, top))
            ax.fill_between(widths, bottom, curve["null"], color="#C4C4C4", lw=0, label="V without a gap")
            ax.plot(widths, curve["null"], color=UNPAIRED, lw=1)
            ax.fill_between(widths, curve["low"], curve["high"], color="black", alpha=0.25, lw=0)
            ax.plot(widths, curve["v"], color="black", lw=1.8, marker="o", ms=4, label="CS, V")
            ax.plot(widths, curve["u"], color=SERIES[1], lw=1.8, ls="--", marker="s", ms=4, label="CS, U")
            ax.plot(widths, curve["mmd"], color=SERIES[0], lw=1.8, ls=":", marker="^", ms=4, label="MMD, U")
            ax.yaxis.set_major_formatter(powers)
            ax.grid(color=GRID, lw=0.6)
            ticks = [s for s in (0.3, 0.5, 0.71, 1.0, 2.0) if widths[0] * 0.99 <= s <= widths[-1] * 1.01]
            ax.set_xticks(ticks, [f"{s:.2g}" for s in ticks])
            ax.minorticks_off()
            ax.set(xlabel="kernel bandwidth", ylabel="divergence")
        outer_labels(axes)
        legend(figure, axes)
        return Picture(figure)


def _curves(rows: Sequence[Row]) -> dict[str, Floats]:
    """The lines of one store; nan where a value is too small for a log axis."""
    columns = {
        "bandwidth": [row["bandwidth"] for row in rows],
        "v": [row["cs_divergence_v"] for row in rows],
        "u": [row["cs_divergence_u"] for row in rows],
        "low": [row["cs_divergence_v_interval"][0] for row in rows],
        "high": [row["cs_divergence_v_interval"][1] for row in rows],
        "null": [row["cs_divergence_v_band"] for row in rows],
        "mmd": [row["mmd_u"] for row in rows],
    }
    curves = {name: np.array(values, np.float64) for name, values in columns.items()}
    for name in ("v", "u", "mmd"):
        curves[name] = np.where(curves[name] > _SMALLEST_DIVERGENCE, curves[name], np.nan)
    for name in ("low", "high", "null"):
        curves[name] = np.maximum(curves[name], _SMALLEST_DIVERGENCE)
    return curves


def conflict_curves(sweeps: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """Draw how fast each part of the loss moves the centroid gap, against temperature: below 0 it closes.

    ``sweeps`` maps a store's name to rows of ``objectives.conflict_sweep``: InfoNCE's pull on pairs, its push from
    negatives, both, and D_CS at the bandwidth nearest to 0.7071 and the smallest weight. The axis is linear around 0
    and logarithmic beyond. Raises InputError without any store.
    """
    if not sweeps:
        raise InputError("conflict_curves: expected at least one store's sweep")
    with panels(list(sweeps), share_axes=True) as (figure, axes):
        for ax, rows in zip(axes, sweeps.values(), strict=True):
            width = min((row["bandwidth"] for row in rows), key=lambda s: abs(s - 0.7071))
            weight = min(row["weight"] for row in rows)
            kept = [row for row in rows if row["bandwidth"] == width and row["weight"] == weight]
            lines = {
                "pull on pairs": [row["gap_rate_pull"] for row in kept],
                "push from negatives": [row["gap_rate_push"] for row in kept],
                "InfoNCE: both": [row["gap_rate_pull"] + row["gap_rate_push"] for row in kept],
                f"CS, weight {weight:g}": [row["gap_rate_divergence"] for row in kept],
            }
            temperatures = [row["temperature"] for row in kept]
            ax.axhline(0, color=GRID, lw=0.8, zorder=0)
            for (label, rates), (colour, style) in zip(lines.items(), _CONFLICT_STYLES, strict=True):
                ax.plot(temperatures, rates, color=colour, ls=style, lw=1.8, marker="o", ms=4, label=label)
            ax.set(xscale="log", xlabel="temperature", ylabel="change of the gap (below 0: it closes)")
            ax.set_yscale("symlog", linthresh=0.1)
            ax.yaxis.set_major_formatter(powers)
            ticks = sorted(temperatures)
            labelled: list[float] = []
            for tick in ticks:  # a label that would run into the one before it is left out
                labelled += [tick] if not labelled or tick >= 1.5 * labelled[-1] else []
            ax.set_xticks(ticks, [f"{t:g}" if t in labelled else "" for t in ticks])
            ax.set_xticks([], minor=True)
        outer_labels(axes)
        legend(figure, axes)
        return Picture(figure)


def training_curves(logs: Mapping[str, Sequence[Row]]) -> Picture:
    """Draw what training logged over its steps: the terms, the ratio of their gradients, the temperature, R@1.

    ``logs`` maps a training run to the lines of its metrics.jsonl. One panel per quantity, one colour per run. Raises
    InputError without any logged step.
    """
    logs = {name: rows for name, rows in logs.items() if any("terms" in row for row in rows)}
    if not logs:
        raise InputError("training_curves: expected at least one run with logged steps")
    terms = list(dict.fromkeys(term for rows in logs.values() for row in rows for term in row.get("terms", ())))
    titles: dict[str, Callable[[Row], Any]] = {f"term: {term}": _in("terms", term) for term in terms}
    for term in terms[1:]:
        titles[f"gradient of {term} / {terms[0]}"] = _in("grad_norm_ratio", term)
        titles[f"weight of {term}"] = _in("weights", term)
    titles["temperature"] = lambda row: 1 / row["logit_scale"] if row.get("logit_scale") else None
    titles["validation R@1 (%)"] = lambda row: 50 * sum(row["val_R@1"].values()) if "val_R@1" in row else None
    with panels(list(titles)) as (figure, axes):
        for ax, (title, read) in zip(axes, titles.items(), strict=True):
            for number, (name, rows) in enumerate(logs.items()):
                _line(ax, rows, read, label=name, color=SERIES[number % len(SERIES)], ls=_DASHES[number % 4])
            ax.set(xlabel="step")
            if not title.startswith(("term", "validation")):
                ax.set_ylim(bottom=0)
            ax.grid(color=GRID, lw=0.6)
        legend(figure, axes)
        return Picture(figure)


def _in(part: str, term: str) -> Callable[[Row], Any]:
    return lambda row: row.get(part, {}).get(term)


def _line(ax: Axes, rows: Sequence[Row], read: Callable[[Row], Any], **style: Any) -> None:
    points = [(row["step"], value) for row in rows if (value := read(row)) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    ax.plot(steps, values, lw=1.6, **style)


def _log_limits(values: Iterable[Floats]) -> tuple[float, float]:
    shown = np.concatenate(list(values))
    shown = shown[np.isfinite(shown)]
    return float(shown.min()) / 2, float(shown.max()) * 2
