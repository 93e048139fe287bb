"""The columns of a comparison: which metrics, how they are written, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.experiments.measured_run import MEAN, MeasuredRun

_RETRIEVAL_KEY = re.compile(r"eval_retrieval\.[^.]+\.(?P<direction>i2t|t2i|mean|both|mixed)\.(?P<metric>.+)")
# The same of a further data set; what each of its queries scored is not compared.
_SET_KEY = re.compile(r"eval_retrieval\.sets\.(?P<set>[^.]+)\.(?P<rest>eval_retrieval\..+)")


class Column(BaseModel):
    """One metric. ``key``: its path in a run's numbers; ``scale``: what it is multiplied with to be shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    title: str
    better: Literal["higher", "lower"] | None = None
    digits: int = 3
    scale: float = 1.0
    role: Literal["objective", "gap", "pictures", ""] = ""

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return -1.0 if self.better == "lower" else 1.0

    @property
    def per_query(self) -> tuple[str, str] | None:
        """Direction and metric, where it is a mean over queries."""
        match = _RETRIEVAL_KEY.fullmatch(self.key)
        return (match["direction"], match["metric"]) if match else None

    @property
    def arrow(self) -> str:
        """Which way is better, as a mark behind the title."""
        return {"higher": " \N{UPWARDS ARROW}", "lower": " \N{DOWNWARDS ARROW}"}.get(self.better or "", "")

    def written(self, value: float) -> str:
        """A value as the table shows it."""
        return f"{value:.{self.digits}f}"


_RECALL = {"better": "higher", "digits": 1, "scale": 100.0}
# In the order of the table; what a run lacks is left out.
_COLUMNS: tuple[Column, ...] = tuple(
    Column.model_validate(about)
    for about in (
        {"key": "eval_retrieval.aligned.i2t.R@1", "title": "i2t R@1", **_RECALL},
        {"key": "eval_retrieval.aligned.t2i.R@1", "title": "t2i R@1", **_RECALL},
        {"key": "eval_retrieval.aligned.both.RSum", "title": "RSum", "better": "higher", "digits": 1},
        {"key": "eval_retrieval.aligned.mixed.R@1", "title": "mixed R@1", **_RECALL},
        {"key": "eval_retrieval.aligned.mixed.R@10", "title": "mixed R@10", **_RECALL},
        {"key": "gap_report.aligned.centroid_gap", "title": "centroid gap", "better": "lower", "role": "gap"},
        {"key": "gap_report.aligned.margin", "title": "margin", "better": "higher"},
        {"key": "gap_report.aligned.paired_cosine", "title": "paired cosine"},
        {"key": "gap_report.aligned.cs_divergence_u@0.7071", "title": "D_CS", "better": "lower"},
        {"key": "zero_shot.aligned.top1", "title": "zero-shot", **_RECALL},
        {"key": "generate.aligned.accuracy_mean", "title": "attributes", "role": "pictures", **_RECALL},
        {"key": "generate.aligned.prompt_R@1", "title": "prompt R@1", "role": "pictures", **_RECALL},
        {"key": "generate.aligned.frechet@encoder", "title": "Frechet", "better": "lower", "digits": 2},
        {"key": "generate.aligned.frechet@inception", "title": "FID", "better": "lower", "digits": 2},
        {"key": "train.runs.aligned.seconds", "title": "train s", "digits": 0},
        {"key": "cost.peak_memory_mb", "title": "peak MB", "digits": 0},
    )
)


def columns_of(
    runs: Sequence[MeasuredRun],
    objective: str,
    better: Literal["higher", "lower"] | None = None,
    further: Sequence[str] = (),
) -> list[Column]:
    """The columns that at least one run has, the objective's first, then the table's own, then ``further`` ones.

    Raises InputError if no run has the objective or one of the further metrics.
    """
    known = sorted({path for run in runs for path in run.numbers})
    for wanted in (objective, *further):
        if all(run.number(wanted) is None for run in runs):
            raise InputError(f"no run has the metric {wanted!r}{did_you_mean(wanted, known)}")
    found = {c.key: c for c in _COLUMNS if any(run.number(c.key) is not None for run in runs)}
    chosen = found.pop(objective, None) or _made(objective)
    first = chosen.model_copy(update={"role": "objective", **({"better": better} if better else {})})
    return [first, *found.values(), *(_made(key) for key in further if key != objective and key not in found)]


def _made(key: str) -> Column:
    """The column of a metric that the table does not know by itself."""
    if of_set := _SET_KEY.fullmatch(key):
        inner = _made(of_set["rest"])
        return inner.model_copy(update={"key": key, "title": f"{of_set['set']} {inner.title}"})
    match = _RETRIEVAL_KEY.fullmatch(key)
    if match is None:
        return Column(key=key, title=key.rsplit(".", 1)[-1], better="higher")
    title = match["metric"] if match["direction"] == MEAN else f"{match['direction']} {match['metric']}"
    if match["metric"].startswith("R@"):
        return Column.model_validate({"key": key, "title": title, **_RECALL})
    return Column(key=key, title=title, better="lower" if "rank" in match["metric"] else "higher")
