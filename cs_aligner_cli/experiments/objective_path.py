"""Whether a metric that is named by its path can be there once a recipe has run, as far as the path says so."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.experiments.measured_run import MEAN
from cs_aligner_cli.gap.quick import METRICS
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.retrieval.metrics import DIRECTIONS
from cs_aligner_cli.runs.layout import Layout


def refuse_unmeasured(metric: str, recipe: Recipe, stages: Collection[str], report: bool) -> None:
    """Raise InputError if no run of ``recipe`` will have the metric, which ``sweep.objective.metric`` names.

    ``stages``: those that are run; without ``report`` the gap report is none of them, and only its headline metrics
    are measured. What only the data decide (mixed retrieval, say) is let pass.
    """
    stage, *rest = metric.split(".")
    known: list[str] = []
    if stage == "eval_retrieval" and rest[1:2] and rest[1] in (*DIRECTIONS, MEAN) and rest[-1].startswith("R@"):
        known = [*_recalls(recipe)]
    elif stage == "gap_report" and not report:
        known = [f"gap_report.{store}.{name}" for store in Layout(recipe).aligned_names for name in METRICS]
    elif stage not in (*stages, "cost"):
        raise InputError(
            f"sweep.objective.metric: {metric!r}: no stage of this recipe is named {stage!r}"
            + did_you_mean(stage, [*stages, "cost"])
        )
    if known and metric not in known:
        unreported = " (without sweep.report)" if stage == "gap_report" else ""
        raise InputError(
            f"sweep.objective.metric: no run will have the metric {metric!r}{unreported}{did_you_mean(metric, known)}"
        )


def _recalls(recipe: Recipe) -> Iterator[str]:
    spec = recipe.eval_retrieval
    for store in Layout(recipe).stores(spec.split):
        for direction in (*DIRECTIONS, MEAN):
            yield from (f"eval_retrieval.{store}.{direction}.R@{k}" for k in spec.ks)
