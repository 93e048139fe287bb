"""Published values beside a run's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.recipe.expected import Expected

if TYPE_CHECKING:  # it brings numpy and pandas along, and a run with nothing to do must not wait for them
    from cs_aligner_cli.experiments.measured_run import MeasuredRun

_FRACTIONS = re.compile(r"\.(R@\d+|mAP|MRR|top1)$")
# What says nothing in a metric's path.
_PLAIN = re.compile(r"\b(sets|eval_retrieval|gap_report)\.")


class BesidePublished(BaseModel):
    """One published value and a run's own; ``own`` is null where the run has not measured it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    metric: str
    published: float
    tolerance: float
    source: str
    own: float | None = None
    difference: float | None = Field(None, description="own less published")
    within: bool | None = Field(None, description="whether the difference is at most the tolerance")


def beside_published(expected: Expected | None, run: MeasuredRun | None) -> list[BesidePublished]:
    """Every published value of a recipe beside the number that a run of it measured; None: nothing is measured yet."""
    found = []
    for value in expected.values if expected else ():
        about = {"run": run.configuration if run else "", "metric": value.metric, "published": value.value}
        about |= {"tolerance": value.tolerance, "source": value.source}
        if run and (own := run.number(value.metric)) is not None:
            difference = own - value.value
            about |= {"own": own, "difference": difference, "within": abs(difference) <= value.tolerance}
        found.append(BesidePublished.model_validate(about))
    return found


def expected_of(run: MeasuredRun) -> Expected | None:
    """What the recipe of a finished run says was published."""
    stated = run.record["recipe"].get("expected")
    return Expected.model_validate(stated) if stated else None


def published_tables(found: Sequence[BesidePublished], expected: Expected | None = None) -> list[Table]:
    """The values side by side, recalls in percent, then what ``expected`` says must be known to read them."""
    runs = len({value.run for value in found}) > 1
    rows = [
        (
            *([value.run] if runs else []),
            _PLAIN.sub("", value.metric),
            _written(value, value.published),
            _written(value, value.tolerance),
            "not measured" if value.own is None else _written(value, value.own),
            "" if value.difference is None else f"{_scale(value) * value.difference:+.2f}",
            {None: "", True: "yes", False: "no"}[value.within],
            value.source,
        )
        for value in found
    ]
    columns = [
        *(["run"] if runs else []),
        "metric",
        "published",
        "tolerance",
        "own",
        "difference",
        "within tolerance",
        "source",
    ]
    known = [("ours, not published", key) for key in (expected.ours if expected else ())]
    known += [("to know", remark) for remark in (expected.remarks if expected else ())]
    tables = [table("beside what was published (recalls in percent)", columns, rows, 1 + bool(runs))] if rows else []
    return [*tables, table("how to read it", ["what", "which"], known)] if known else tables


def _scale(value: BesidePublished) -> float:
    return 100.0 if _FRACTIONS.search(value.metric) else 1.0


def _written(value: BesidePublished, number: float) -> str:
    return f"{_scale(value) * number:.1f}" if _scale(value) != 1 else f"{number:.4g}"
