"""What was measured on one store: values, each with what every group of pairs contributes to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.shares import UNBOUNDED, Bounds, cut_off, share_interval
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.bounds import metric_bounds
from cs_aligner_cli.gap.groups import Groups

_LEVEL = 0.95
# Distances of equal rows are roots of rounding, some 1e-8.
_ROUNDING = 1e-7


class Spread(NamedTuple):
    """A metric's sampling variation, in parts that can be taken from those of another store of the same pairs.

    The variance is the sum of squares of ``first`` (G,), less that of ``second`` (P,), if any. A jackknife counts the
    part of the variance that comes from interactions of two groups twice; ``second`` is that part (Efron & Stein, The
    jackknife estimate of variance, Annals of Statistics 1981, section 4). Where two clouds do not differ, it is all
    there is. ``units``: how many independent things were drawn.
    """

    first: Floats
    second: npt.NDArray[np.float32] | None = None
    units: int = 0

    def less(self, other: Spread) -> Spread:
        """The variation of the difference to the same metric in another store of the same pairs."""
        return self.plus(other.times(-1.0))

    def plus(self, other: Spread) -> Spread:
        """The variation of the sum with the same metric in another store of the same pairs."""
        second = None if self.second is None or other.second is None else self.second + other.second
        return Spread(self.first + other.first, second, min(self.units, other.units))

    def times(self, factor: float) -> Spread:
        """The variation of a multiple."""
        second = None if self.second is None else factor * self.second
        return Spread(factor * self.first, second, self.units)

    @property
    def variance(self) -> float:
        """The variance; that of a metric without variation is 0."""
        jackknife = float(self.first @ self.first)
        if self.second is None:
            return jackknife
        # Half of the jackknife's variance is right where terms of two groups are all there is; noise may ask for less.
        return max(jackknife - float(np.square(self.second, dtype=np.float64).sum()), jackknife / 4)

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the variance (Satterthwaite 1946), from how much the squares differ among groups."""
        squares = self.first**2
        noise = len(squares) * float(squares.var())
        most = max(len(squares) - 1, 1)
        return float(np.clip(2 * self.variance**2 / noise, 1, most)) if noise else most


def jackknife(left_out: Floats, groups: int) -> Spread:
    """The variation of a metric from its values (1 + G + G (G - 1) / 2,) in the order of ``groups.without``."""
    whole, one, two = left_out[0], left_out[1 : 1 + groups], left_out[1 + groups :]
    first = math.sqrt((groups - 1) / groups) * (one.mean() - one)
    a, b = np.triu_indices(groups, 1)
    # Efron & Stein's Q: free of all terms of a single group.
    mixed = groups * whole - (groups - 1) * (one[a] + one[b]) + (groups - 2) * two
    if not np.isfinite(mixed).all():  # with a handful of pairs, two may be too many to leave out
        mixed = np.zeros_like(mixed)
    return Spread(np.nan_to_num(first), ((mixed - mixed.mean()) / groups).astype(np.float32), groups)


class Smooth(NamedTuple):
    """A metric of the whole sample, and (n,) its derivative with respect to the weight of each pair.

    Metrics made of singular values or sorted rows: leaving groups out would cost a decomposition each. Their
    first-order expansion costs nothing (the infinitesimal jackknife: Jaeckel 1972; Efron 1982, chapter 6).
    """

    value: float
    influence: Floats

    def spread(self, groups: Groups) -> Spread:
        """The metric's variation, pairs being independent."""
        change = groups.sums(self.influence - self.influence.mean())
        return Spread(change * math.sqrt(len(change) / (len(change) - 1)), None, len(change))


class Measurement(NamedTuple):
    """A store's values, and their variation over test pairs, by metric."""

    values: Mapping[str, float]
    spreads: Mapping[str, Spread]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on one store; all but ``sweep`` by the keys of ``measure_gap``.

    ``values``; ``intervals`` [low, high] of 95%; ``null`` what a metric reads without a gap (without pairs, of metrics
    of pairs); ``tests`` the p values of "there is no gap", ``bands``
    what 95% of its flips stay below; ``samples``, the pairs each was taken on; ``spreads``,
    comparable between stores of the same pairs; ``sweep``, D_CS and MMD at many bandwidths, one dict each;
    ``spectra``, modality to the centred rows' singular values (shares of their sum).
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    null: dict[str, float] = field(default_factory=dict)
    tests: dict[str, float] = field(default_factory=dict)
    bands: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    spectra: dict[str, Floats] = field(default_factory=dict)

    def add(self, values: Mapping[str, float], spreads: Mapping[str, Spread], pairs: int, share: bool = False) -> None:
        """Add metrics with an interval, which of those that are a ``share`` of something is Wilson's."""
        self.add_plain(values, pairs)
        for key, spread in spreads.items():
            self.spreads[key] = spread
            value = self.values[key]
            self.intervals[key] = (
                score_interval(value, spread) if share else interval(value, spread, metric_bounds(key))
            )

    def add_left_out(self, drawn: Mapping[str, Floats], groups: int, pairs: int) -> None:
        """Add metrics by their values in the order of ``groups.without``."""
        spreads = {key: jackknife(values, groups) for key, values in drawn.items()}
        self.add({key: float(values[0]) for key, values in drawn.items()}, spreads, pairs)

    def add_plain(self, values: Mapping[str, float], pairs: int) -> None:
        """Add metrics that have no interval."""
        self.values.update({key: _within(value, metric_bounds(key)) for key, value in values.items()})
        self.samples.update(dict.fromkeys(values, pairs))

    def put_in_order(self, keys: Sequence[str]) -> None:
        """Bring the values into this order."""
        ordered = {key: self.values[key] for key in keys}
        self.values.clear()
        self.values.update(ordered)


def _within(value: float, bounds: Bounds) -> float:
    """The value, or the bound that it lies beyond by rounding alone, as a mean cosine of 1 + 2e-16."""
    nearest = min(max(value, bounds[0]), bounds[1])
    return nearest if abs(value - nearest) < _ROUNDING else value


def quantile(freedom: float) -> float:
    """How many standard errors a 95% interval reaches either way (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + _LEVEL) / 2))


def p_value(difference: float, spread: Spread) -> float:
    """Two-sided p of a difference against none (Student's t); 1.0 for none at all."""
    if not spread.error:
        return 1.0 if difference == 0 else 0.0
    return p_of(difference / spread.error, spread.freedom)


def p_of(t: float, freedom: float) -> float:
    """Two-sided p of Student's t."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def interval(value: float, spread: Spread, bounds: Bounds = UNBOUNDED) -> list[float]:
    """The 95% interval of a value, symmetric around it as far as what it can be."""
    reach = quantile(spread.freedom) * spread.error
    return cut_off(value, [value - reach, value + reach], bounds)


def score_interval(share: float, spread: Spread) -> list[float]:
    """The 95% interval of a share in [0, 1], as ``share_interval``."""
    return share_interval(share, spread.variance, spread.units, quantile(spread.freedom))


def refuse_constant(found: Measured) -> None:
    """Raise InputError if all image rows, or all text rows, were one and the same."""
    for modality, shares in found.spectra.items():
        if not shares.any():
            raise InputError(
                f"{modality}: all {found.samples['mutual_knn']} rows are equal: features that do not depend on the "
                "item have no gap to measure",
                "Look at the encoder; after training, at its loss: a tower may have collapsed.",
            )
