"""Configurations over several data sets: mean ranks, Friedman's test, and Nemenyi's critical difference.

Every data set counts once, whatever its size or the spread of its metric (Demsar, JMLR 2006). Within each the
configurations are ranked by their mean over seeds, 1 being the best, and equal means share the mean of their ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.p_values import LEVEL
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.columns import Column
from cs_aligner_cli.experiments.comparison import Comparison

_Frozen = ConfigDict(frozen=True, extra="forbid")


class RankedRow(BaseModel):
    """One configuration: its mean of the objective and its rank on every data set, and the mean of the ranks."""

    model_config = _Frozen
    name: str
    values: dict[str, float]
    ranks: dict[str, float]
    mean_rank: float


class MeanRanks(BaseModel):
    """Configurations that all data sets have, best mean rank first, and what their ranks say."""

    model_config = _Frozen
    objective: Column
    data_sets: list[str]
    rows: list[RankedRow]
    chi_square: float = Field(description="Friedman's, corrected for ties")
    f: float | None = Field(description="Iman and Davenport's; null where all data sets rank alike")
    p: float = Field(description="of f: that no configuration ranks better than another")
    critical_difference: float = Field(description="of two mean ranks, by Nemenyi's test at 5%")
    left_out: list[str] = Field(description="configurations that not every data set has")
    conclusions: list[str]


class AcrossDataSets(BaseModel):
    """A comparison for every data set, and the mean ranks over all of them."""

    model_config = _Frozen
    comparisons: list[Comparison]
    ranks: MeanRanks


def friedman(ranks: Floats) -> tuple[float, float | None, float]:
    """Friedman's chi-square, Iman and Davenport's F and its p, of ``ranks`` (data sets, configurations).

    chi2 = (k - 1) sum_j (R_j - N (k + 1) / 2)^2 / (sum of the ranks' squared deviations), R_j being rank sums: equal to
    Friedman's form, and right with ties. F = (N - 1) chi2 / (N (k - 1) - chi2) on k - 1 and (k - 1)(N - 1) degrees.
    Where all data sets rank alike F is infinite, given as None, and p the probability of that: A^(1 - N), A being in
    how many ways such ranks, ties and all, can fall to the configurations (k! without ties).
    """
    sets, count = ranks.shape
    middle = (count + 1) / 2
    spread = float(((ranks - middle) ** 2).sum())
    if spread == 0 or sets < 2:
        return 0.0, None, 1.0
    chi_square = (count - 1) * float(((ranks.sum(axis=0) - sets * middle) ** 2).sum()) / spread
    rest = sets * (count - 1) - chi_square
    if rest < 1e-9:
        tied = np.unique(ranks[0], return_counts=True)[1]
        ways = math.factorial(count) // math.prod(map(math.factorial, tied.tolist()))
        # By the logarithm, which Python has of integers that no float holds.
        return chi_square, None, math.exp((1 - sets) * math.log(ways))
    f = (sets - 1) * chi_square / rest
    return chi_square, f, float(stats.f.sf(f, count - 1, (count - 1) * (sets - 1)))


def critical_difference(configurations: int, sets: int, level: float = LEVEL) -> float:
    """How far two mean ranks must lie apart (Nemenyi 1963): q sqrt(k (k + 1) / (6 N)), q being the studentized range
    over sqrt(2)."""
    q = float(stats.studentized_range.ppf(1 - level, configurations, np.inf)) / math.sqrt(2)
    return q * math.sqrt(configurations * (configurations + 1) / (6 * sets))


def mean_ranks(comparisons: Sequence[Comparison]) -> MeanRanks:
    """The mean ranks by the objective of comparisons on several data sets, configurations being matched by name.

    Raises InputError where fewer than two configurations are in all of them.
    """
    values = {_title(found): _objective(found) for found in comparisons}
    common = [name for name in _objective(comparisons[0]) if all(name in own for own in values.values())]
    others = dict.fromkeys(name for own in values.values() for name in own if name not in common)
    if len(common) < 2:
        raise InputError(
            f"the data sets {', '.join(values)} have fewer than two configurations in common: "
            f"{', '.join(common) or 'none'}",
            "Configurations are matched by their names: compare sweeps of one recipe.",
        )
    column = comparisons[0].column(comparisons[0].objective)
    table = np.array([[own[name] for name in common] for own in values.values()])
    ranks = stats.rankdata(-column.sign * table, axis=1)
    chi_square, f, p = friedman(ranks)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    rows = [
        RankedRow(
            name=common[i],
            values=dict(zip(values, table[:, i].tolist(), strict=True)),
            ranks=dict(zip(values, ranks[:, i].tolist(), strict=True)),
            mean_rank=float(ranks[:, i].mean()),
        )
        for i in order
    ]
    found = MeanRanks(
        objective=column,
        data_sets=[*values],
        rows=rows,
        chi_square=chi_square,
        f=f,
        p=p,
        critical_difference=critical_difference(len(common), len(values)),
        left_out=[*others],
        conclusions=[],
    )
    return found.model_copy(update={"conclusions": _conclusions(found)})


def _title(found: Comparison) -> str:
    return f"{found.data_set} ({found.split})"


def _objective(found: Comparison) -> Mapping[str, float]:
    return {row.name: row.cells[found.objective].mean for row in found.rows if found.objective in row.cells}


def _conclusions(found: MeanRanks) -> list[str]:
    sets, best = len(found.data_sets), found.rows[0]
    what = f"{found.objective.title} of {counted(len(found.rows), 'configurations')} on {sets} data sets"
    shown = f"p {found.p:.2g}"
    if found.p >= LEVEL:
        lines = [f"{what}: Friedman's test shows no difference between their ranks ({shown})."]
    else:
        worse = [r.name for r in found.rows if r.mean_rank - best.mean_rank > found.critical_difference]
        beaten = f"{best.name} ranks better than {', '.join(worse)}" if worse else "no two of them can be told apart"
        lines = [
            f"{what}: their ranks differ (Friedman, {shown}); by Nemenyi's test, whose critical difference of mean "
            f"ranks is {found.critical_difference:.2f}, {beaten}."
        ]
    if found.critical_difference > len(found.rows) - 1:
        lines.append(
            f"With {sets} data sets no difference of mean ranks could have been enough for Nemenyi's test: it wants "
            f"{found.critical_difference:.2f}, and the largest that there can be is {len(found.rows) - 1}."
        )
    if found.left_out:
        lines.append(f"Not on every data set, and left out: {', '.join(found.left_out)}.")
    return lines
