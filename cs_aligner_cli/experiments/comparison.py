"""Runs compared: configurations times metrics, with intervals over seeds and images, and tests against a control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.estimates import Estimate, holm
from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.common.shares import Bounds, cut_off, of_difference
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.columns import Column, bounds_of, columns_of
from cs_aligner_cli.experiments.expected import BesidePublished
from cs_aligner_cli.experiments.measured_run import MEAN, MeasuredRun, refuse_other_protocols
from cs_aligner_cli.experiments.statistics import (
    crossed_estimate,
    main_effects,
    pareto_front,
    per_image,
    seeds_estimate,
)
from cs_aligner_cli.recipe.sweep import Direction
from cs_aligner_cli.retrieval.metrics import DIRECTIONS

Frozen = ConfigDict(frozen=True, extra="forbid")
OBJECTIVE = "eval_retrieval.aligned.mean.R@1"


class Difference(BaseModel):
    """A configuration less the control: its mean, 95% interval, p, and p corrected for all configurations (Holm).

    ``covers``: what interval and test are over, as of a cell; seeds count that both configurations have.
    """

    model_config = Frozen
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None = None
    covers: str

    @property
    def clear(self) -> bool:
        """Whether the corrected test says that it is more than chance."""
        return self.p_holm is not None and self.p_holm < LEVEL


class Cell(BaseModel):
    """One metric of one configuration: its values by seed, mean, standard deviation over seeds, and 95% interval.

    ``covers`` says what the interval is over: seeds and images, images, seeds, or nothing.
    """

    model_config = Frozen
    values: list[float]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    covers: str
    best: bool = False
    difference: Difference | None = None


class Row(BaseModel):
    """One configuration; ``searched``: a search chose it by the objective, on the images that are compared on."""

    model_config = Frozen
    name: str
    settings: dict[str, Any]
    seeds: list[int]
    runs: list[str]
    cells: dict[str, Cell]
    is_control: bool = False
    on_front: bool = False
    searched: bool = False


class Comparison(BaseModel):
    """A table of configurations times metrics, and what follows from it."""

    model_config = Frozen
    data_set: str
    split: str
    protocol: dict[str, Any]
    images: int
    columns: list[Column]
    rows: list[Row]
    objective: str
    control: str | None
    detectable: float | None
    importance: dict[str, float]
    conclusions: list[str] = []
    expected: list[BesidePublished] = []

    def column(self, key: str) -> Column:
        """A column by its key."""
        return next(column for column in self.columns if column.key == key)


class _Group(NamedTuple):
    """The runs of one configuration, by seed."""

    name: str
    runs: list[MeasuredRun]


def compare(
    runs: Sequence[MeasuredRun],
    control: str | None = None,
    objective: str = OBJECTIVE,
    direction: Direction | None = None,
    further: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs; those that differ in their seed alone are replicates of one configuration.

    Raises InputError where they were not measured on the same split by the same protocol, the control is none of
    them, or no run has the objective's metric. ``direction``: which way the objective is better, where that is not
    known of the metric (``columns.better_of``); ``further`` metrics get columns of their own.
    """
    refuse_other_protocols(runs)
    groups = _groups(runs)
    control = _full_name(control, groups)
    if control is not None and control not in {group.name for group in groups}:
        raise InputError(
            f"control: no configuration is named {control!r}{did_you_mean(control, [g.name for g in groups])}"
        )
    columns = columns_of(runs, objective, direction, further)
    images = _Images(runs)
    ranges = {column.key: bounds_of(column, runs[0]) for column in columns}
    estimates: dict[str, dict[str, Estimate]] = {group.name: {} for group in groups}
    differences: dict[str, dict[str, Estimate]] = {}
    reference = next((group for group in groups if group.name == control), None)
    for column in columns:
        own = {group.name: _values(group, column, images) for group in groups}
        for name, values in own.items():
            if values is not None:
                estimates[name][column.key] = _estimate(values, ranges[column.key])
        against = own[reference.name] if reference is not None else None
        for group in groups:
            values = own[group.name]
            if reference is None or against is None or values is None or group is reference:
                continue
            paired = _paired(group, reference, values, against, ranges[column.key])
            differences.setdefault(column.key, {})[group.name] = paired
    rows = _rows(groups, columns, estimates, _tested(differences, ranges), ranges, control, images.count)
    of_objective = [row.cells[objective].mean for row in rows if objective in row.cells]
    found = differences.get(objective, {})
    sizes = [estimate.detectable for estimate in found.values() if 0 < estimate.detectable < math.inf]
    return Comparison(
        data_set=runs[0].data_set,
        split=runs[0].split,
        protocol={key: value for run in runs for key, value in run.protocol.items()},
        images=images.count,
        columns=columns,
        rows=rows,
        objective=objective,
        control=control,
        detectable=float(np.median(sizes)) if sizes else None,
        importance=main_effects([{k: str(v) for k, v in row.settings.items()} for row in rows], of_objective)
        if len(of_objective) == len(rows)
        else {},
    )


def _groups(runs: Sequence[MeasuredRun]) -> list[_Group]:
    found: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        found.setdefault(run.configuration_id, []).append(run)
    groups = []
    for members in found.values():
        members = sorted(members, key=lambda run: run.seed)
        seeds = [run.seed for run in members]
        if len({*seeds}) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise InputError(f"{members[0].configuration}: two runs have the seed {twice}", "Name one of them.")
        groups.append(_Group(members[0].configuration, members))
    names = [group.name for group in groups]
    twins = {name for name in names if names.count(name) > 1}
    return [
        _Group(f"{name} ({runs[0].configuration_id[:6]})", runs) if name in twins else _Group(name, runs)
        for name, runs in groups
    ]


def _full_name(control: str | None, groups: Sequence[_Group]) -> str | None:
    """The group that a control means: where several configurations have its name, that of the first run."""
    return next((group.name for group in groups if control in (group.name, group.runs[0].configuration)), control)


class _Images:
    """What each test image scored in a metric, (seeds, images) for a group of runs."""

    def __init__(self, runs: Sequence[MeasuredRun]) -> None:
        owners = [runs[0].records[direction][0]["image"].astype(str) for direction in DIRECTIONS]
        self._known = pd.Index(np.unique(np.concatenate(owners)))
        self.count = len(self._known)
        # How many queries each image has in a metric, as the first run compared has them.
        self._queries: dict[tuple[str, str], Floats] = {}

    def values(self, runs: Sequence[MeasuredRun], direction: str, metric: str) -> Floats | None:
        """The values whose mean over images is the metric; None where it is not one of single queries."""
        if direction == MEAN:
            both = [self.values(runs, own, metric) for own in DIRECTIONS]
            return None if both[0] is None or both[1] is None else (both[0] + both[1]) / 2
        sums, counts = np.zeros((len(runs), self.count)), np.ones(self.count)
        for i, run in enumerate(runs):
            scored = run.query_scores(direction, metric)
            if scored is None:
                return None
            owners, values = scored
            places = self._known.get_indexer(owners)
            if (places < 0).any():
                raise InputError(
                    f"{run.folder}: {direction} has queries of {owners.iloc[int(np.argmin(places))]!r}, which "
                    "the first run compared does not have",
                    "A paired test needs the same split of the same data.",
                )
            own = np.bincount(places, minlength=self.count).astype(np.float64)
            counts = self._queries.setdefault((direction, metric), own)
            if (own != counts).any():
                raise InputError(
                    f"{run.folder}: {direction} has {int(own.sum())} queries, the first run compared has "
                    f"{int(counts.sum())}, or of other images",
                    "A paired test needs the same split of the same data.",
                )
            sums[i] = np.bincount(places, values, minlength=self.count)
        return per_image(sums, counts)


def _values(group: _Group, column: Column, images: _Images) -> Floats | None:
    """(S, C) values by seed and image, or (S, 1) where a metric is one number per run; None where a run lacks it."""
    if column.per_query is not None:
        found = images.values(group.runs, *column.per_query)
        if found is not None:
            return found * column.scale
    numbers = [run.number(column.key) for run in group.runs]
    if any(number is None for number in numbers):
        return None
    return np.array([[float(number or 0.0)] for number in numbers]) * column.scale


def _estimate(values: Floats, bounds: Bounds) -> Estimate:
    return crossed_estimate(values, bounds[1] - bounds[0]) if values.shape[1] > 1 else seeds_estimate(values[:, 0])


def _paired(group: _Group, control: _Group, values: Floats, against: Floats, bounds: Bounds) -> Estimate:
    """The difference to the control on the seeds that both have; InputError if there are none."""
    ours, theirs = ([run.seed for run in part.runs] for part in (group, control))
    both = [seed for seed in ours if seed in theirs]
    if not both:
        raise InputError(
            f"{group.name} and the control {control.name} share no seed ({ours} and {theirs})",
            "A paired test needs runs of the same seeds.",
        )
    pick = [[seeds.index(seed) for seed in both] for seeds in (ours, theirs)]
    return _estimate(values[pick[0]] - against[pick[1]], bounds)


def _tested(
    differences: Mapping[str, Mapping[str, Estimate]], ranges: Mapping[str, Bounds]
) -> dict[str, dict[str, Difference]]:
    tested: dict[str, dict[str, Difference]] = {}
    for key, found in differences.items():
        corrected = holm([estimate.p for estimate in found.values()])
        tested[key] = {
            name: Difference(
                mean=estimate.mean,
                interval=_known(estimate, of_difference(ranges[key])),
                p=_number(estimate.p),
                p_holm=_number(adjusted),
                covers=estimate.covers,
            )
            for (name, estimate), adjusted in zip(found.items(), corrected, strict=True)
        }
    return tested


def _rows(
    groups: Sequence[_Group],
    columns: Sequence[Column],
    estimates: Mapping[str, Mapping[str, Estimate]],
    tested: Mapping[str, Mapping[str, Difference]],
    ranges: Mapping[str, Bounds],
    control: str | None,
    images: int,
) -> list[Row]:
    best = {
        column.key: max(
            (estimate[column.key].mean * column.sign for estimate in estimates.values() if column.key in estimate),
            default=None,
        )
        for column in columns
    }
    gap, gain = next((c.key for c in columns if c.role == "gap"), None), columns[0]
    points = [(estimates[g.name].get(gap or ""), estimates[g.name].get(gain.key)) for g in groups]
    complete = gap is not None and all(x is not None and y is not None for x, y in points)
    front = pareto_front([x.mean for x, _ in points], [y.mean * gain.sign for _, y in points]) if complete else []  # type: ignore[union-attr]
    rows = []
    for i, group in enumerate(groups):
        cells = {}
        for column in columns:
            estimate = estimates[group.name].get(column.key)
            if estimate is None:
                continue
            values = [float((run.number(column.key) or 0.0) * column.scale) for run in group.runs]
            cells[column.key] = Cell(
                values=values,
                mean=estimate.mean,
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                interval=_interval(estimate, column, ranges[column.key], images),
                covers=estimate.covers,
                best=column.better is not None and estimate.mean * column.sign == best[column.key] and len(groups) > 1,
                difference=tested.get(column.key, {}).get(group.name),
            )
        rows.append(
            Row(
                name=group.name,
                settings=dict(group.runs[0].settings),
                seeds=[run.seed for run in group.runs],
                runs=[str(run.folder) for run in group.runs],
                cells=cells,
                is_control=group.name == control,
                on_front=bool(front) and front[i],
                searched=group.runs[0].searched,
            )
        )
    return rows


def _interval(estimate: Estimate, column: Column, bounds: Bounds, images: int) -> tuple[float, float] | None:
    """The 95% interval of a mean; of a share of queries the score interval that the other reports have, too."""
    share = column.per_query is not None and column.per_query[1].startswith("R@") and estimate.covers != "nothing"
    return estimate.share_interval(images, column.scale) if share else _known(estimate, bounds)


def _known(estimate: Estimate, bounds: Bounds) -> tuple[float, float] | None:
    low, high = cut_off(estimate.mean, estimate.interval, bounds)
    return (low, high) if np.isfinite([low, high]).all() else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
