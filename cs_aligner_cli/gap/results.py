"""What was measured on one store, and the two ways to an interval: resampled sums, and influence functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.gap.groups import Groups

DRAWS = 500
_LEVEL = 0.95


class Smooth(NamedTuple):
    """A metric of the whole sample, and (n,) its derivative with respect to the weight of each pair.

    Metrics made of singular values or sorted rows cannot be resampled: a draw holds pairs twice, and clones move them
    by more than they vary. Their first-order expansion can (the infinitesimal jackknife: Jaeckel 1972; Efron 1982,
    chapter 6), and it shares its draws with the metrics that are resampled.
    """

    value: float
    influence: Floats

    def drawn(self, groups: Groups, counts: Floats) -> Floats:
        """(1 + D,) values under ``counts`` (1 + D, G), to first order."""
        change = groups.sums(self.influence - self.influence.mean())
        values: Floats = self.value + (counts - 1) @ change
        return values


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on one store; all but ``sweep`` by the keys of ``measure_gap``.

    ``values``; ``intervals`` [low, high] of 95%; ``null`` floors; ``samples``, the pairs each was taken on; ``draws``,
    the bootstrap's values (D,), which are comparable between stores of the same pairs; ``sweep``, D_CS and MMD at many
    bandwidths, one dict each; ``spectra``, modality to the centred rows' singular values (shares of their sum).
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    null: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    draws: dict[str, Floats] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    spectra: dict[str, Floats] = field(default_factory=dict)

    def add(self, drawn: Mapping[str, Floats], pairs: int) -> None:
        """Add metrics by their values (1 + D,), of which the first is the sample's own."""
        for key, values in drawn.items():
            self.add_plain({key: float(values[0])}, pairs)
            self.draws[key] = values[1:]
            self.intervals[key] = interval(values[1:])

    def add_plain(self, values: Mapping[str, float], pairs: int) -> None:
        """Add metrics that have no interval."""
        self.values.update(values)
        self.samples.update(dict.fromkeys(values, pairs))

    def put_in_order(self, keys: Sequence[str]) -> None:
        """Bring the values into this order."""
        ordered = {key: self.values[key] for key in keys}
        self.values.clear()
        self.values.update(ordered)


def interval(drawn: Floats) -> list[float]:
    """The 95% percentile interval of drawn values; draws that say nothing (NaN) are left out."""
    if np.isnan(drawn).all():
        return [float("nan"), float("nan")]
    return [float(q) for q in np.nanquantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])]


def refuse_constant(found: Measured) -> None:
    """Raise InputError if all image rows, or all text rows, were one and the same."""
    for modality, shares in found.spectra.items():
        if not shares.any():
            raise InputError(
                f"{modality}: all {found.samples['mutual_knn']} rows are equal: features that do not depend on the "
                "item have no gap to measure",
                "Look at the encoder; after training, at its loss: a tower may have collapsed.",
            )
