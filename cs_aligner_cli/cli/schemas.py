"""The JSON Schemas of results: what every command prints with --json, and the files of a run that programs read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from cs_aligner_cli.cli.doctor import DoctorResult
from cs_aligner_cli.cli.options import RESULTS
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.results import Frozen, schema_of
from cs_aligner_cli.experiments.comparison import Comparison
from cs_aligner_cli.experiments.leaderboard import Leaderboard
from cs_aligner_cli.experiments.ranks import AcrossDataSets
from cs_aligner_cli.files.records import StageRecord
from cs_aligner_cli.runs.run_record import RunRecord
from cs_aligner_cli.stages.pair_score import PairScoreResult
from cs_aligner_cli.stages.run_result import RunResult
from cs_aligner_cli.stages.search import SearchResult
from cs_aligner_cli.stages.sweep import SweepResult
from cs_aligner_cli.stages.table import STAGES
from cs_aligner_cli.training.metrics_log import LogLine

_OF_A_RECIPE = {
    "command": "which command printed this",
    "name": "the recipe's name",
    "run_dir": "the run's folder, an absolute path",
}


class ErrorDetail(Frozen):
    """Why a command ended."""

    exit_code: int = Field(description="2 wrong input, 130 interrupted, 1 a bug in csalign")
    message: str = Field(description="what stands on stderr, too")


class ErrorResult(Frozen):
    """What a command prints with --json where it fails and has no result."""

    error: ErrorDetail


def result_schema(name: str) -> dict[str, Any]:
    """The schema of a name of ``RESULTS``; raise InputError for any other."""
    if name not in RESULTS:
        raise InputError(f"--results {name}: no such result{did_you_mean(name, RESULTS)}")
    plain: dict[str, type[BaseModel]] = {
        "error": ErrorResult,
        "run.json": RunRecord,
        "stage.json": StageRecord,
        "metrics.jsonl": LogLine,
    }
    if name in plain:
        return schema_of(plain[name])
    of_machine: dict[str, type[BaseModel]] = {
        "sweep": SweepResult,
        "compare": Comparison,
        "compare-data-sets": AcrossDataSets,
        "leaderboard": Leaderboard,
        "doctor": DoctorResult,
    }
    if name in of_machine:
        return _printed(of_machine[name], {"command": _OF_A_RECIPE["command"]})
    stages = {stage.command: stage for stage in STAGES.values()}
    others: dict[str, type[BaseModel]] = {"search": SearchResult, "pair-score": PairScoreResult, "run": RunResult}
    return _printed(others[name] if name in others else stages[name].result, _OF_A_RECIPE)


def _printed(model: type[BaseModel], more: dict[str, str]) -> dict[str, Any]:
    """The schema of a result with what every command puts before it."""
    found = schema_of(model)
    added = {key: {"type": "string", "description": text} for key, text in more.items()}
    return {
        **found,
        "properties": {**added, **found["properties"]},
        "required": [*added, *found["required"]],
    }
