"""What `csalign run` returns: the status of every stage, and all numbers per store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Frozen, Measured, Number, StageResult, Status
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.experiments.expected import BesidePublished, beside_published
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.stages.eval_retrieval.result import EvaluatedSplit, Gain, Metrics, RetrievalResult
from cs_aligner_cli.stages.formats import number, percent
from cs_aligner_cli.stages.gap_report.result import GapReportResult
from cs_aligner_cli.stages.generate.result import GenerateResult
from cs_aligner_cli.stages.train.result import TrainedHead, TrainedRun, TrainResult
from cs_aligner_cli.stages.zero_shot.result import ZeroShotResult


class RunResult(Frozen):
    """A whole run."""

    seed: int
    status: dict[str, Status] = Field(description="by stage")
    train: dict[str, TrainedRun]
    heads: dict[str, TrainedHead] = Field({}, description="matching heads by run; absent without train.matching")
    eval_retrieval: dict[str, Metrics]
    rerank: dict[str, dict[str, dict[str, Gain]]] = Field(
        {}, description="reranked less not, by store, direction and metric; absent without eval_retrieval.rerank"
    )
    sets: dict[str, dict[str, Metrics]] = Field(
        {}, description="of further data sets, by set and store; absent without eval_retrieval.sets"
    )
    zero_shot: dict[str, dict[str, Number]] = Field({}, description="absent without zero_shot.classes or from_data")
    generate: dict[str, dict[str, Measured]] = Field({}, description="absent without a generate section")
    expected: list[BesidePublished] = Field([], description="published values; absent where the recipe has none")
    gap_report: dict[str, dict[str, Measured]]
    null_floor: dict[str, dict[str, Measured]]
    verdict: list[str] = Field([], description="what the report opens with; absent where nothing was compared")
    findings: list[str] = Field(description="what prepare dropped, cut, or found leaked, unmatched or repeated")
    notes: list[str]
    report: str


def run_result(recipe: Recipe, results: Mapping[str, StageResult]) -> RunResult:
    """All results of a run as one."""
    retrieval, gap, train, zero_shot = (
        results.get(name) for name in ("eval_retrieval", "gap_report", "train", "zero_shot")
    )
    assert isinstance(retrieval, RetrievalResult) and isinstance(gap, GapReportResult)
    drawn = results.get("generate")
    optional: dict[str, Any] = {"zero_shot": zero_shot.zero_shot} if isinstance(zero_shot, ZeroShotResult) else {}
    optional |= {"generate": drawn.generate} if isinstance(drawn, GenerateResult) else {}
    optional |= {"heads": train.heads} if isinstance(train, TrainResult) and train.heads else {}
    optional |= {"rerank": retrieval.rerank} if retrieval.rerank else {}
    if retrieval.sets:
        optional["sets"] = {name: found.eval_retrieval for name, found in retrieval.sets.items()}
    if recipe.expected is not None:
        from cs_aligner_cli.experiments.measured_run import find_run

        optional["expected"] = beside_published(recipe.expected, find_run(str(recipe.folder))[0])
    return RunResult(
        seed=recipe.seed,
        status={stage: result.status for stage, result in results.items()},
        train=train.runs if isinstance(train, TrainResult) else {},
        eval_retrieval=retrieval.eval_retrieval,
        **optional,
        gap_report=gap.gap_report,
        null_floor=gap.null_floor,
        verdict=gap.verdict,
        findings=results["prepare"].findings() if "prepare" in results else [],
        notes=list(dict.fromkeys([*retrieval.notes, *gap.notes])),
        report=gap.report,
    )


def run_tables(results: Mapping[str, StageResult]) -> list[Table]:
    """The closing table of a whole run: what was won and what it cost, store by store."""
    evaluated, gap = results["eval_retrieval"], results["gap_report"]
    assert isinstance(evaluated, RetrievalResult) and isinstance(gap, GapReportResult)
    # Baselines are the report's own; what both measured, on all images or another split, is eval-retrieval's.
    retrieval: dict[str, Any] = {**gap.retrieval, **evaluated.eval_retrieval}
    mixed = {**gap.mixed, **{name: found["mixed"] for name, found in retrieval.items() if "mixed" in found}}
    ways = ("i2t", "t2i", *(["mixed"] if mixed else []))
    rows = []
    for store in dict.fromkeys([*gap.gap_report, *retrieval]):
        found, values = {**retrieval.get(store, {}), "mixed": mixed.get(store, {})}, gap.gap_report.get(store, {})
        recalls = [percent(found.get(way, {}).get(f"R@{k}")) for way in ways for k in (1, 10)]
        rows.append(
            (store, *recalls, *(number(values.get(m)) for m in ("centroid_gap", "margin", "margin_standardised")))
        )
    columns = [
        "store",
        *(f"{way} R@{k}" for way in ways for k in (1, 10)),
        "centroid gap",
        "margin",
        "margin, standardised",
    ]
    return [
        table(f"split {evaluated.split} (R@k in percent)", columns, rows),
        *(_set_table(name, found) for name, found in evaluated.sets.items()),
        *evaluated.all_gains(),
    ]


def _set_table(name: str, found: EvaluatedSplit) -> Table:
    """Retrieval on a further data set, store by store."""
    ways = ("i2t", "t2i", *(["mixed"] if any("mixed" in metrics for metrics in found.eval_retrieval.values()) else []))
    rows = [
        (store, *(percent(_plain(metrics, way, f"R@{k}")) for way in ways for k in (1, 10)))
        for store, metrics in found.eval_retrieval.items()
    ]
    columns = ["store", *(f"{way} R@{k}" for way in ways for k in (1, 10))]
    return table(f"{name}, split {found.split} (R@k in percent)", columns, rows)


def _plain(metrics: Metrics, way: str, metric: str) -> Measured:
    value = metrics.get(way, {}).get(metric)
    return None if isinstance(value, dict) else value
