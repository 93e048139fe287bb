"""The columns of a comparison: which metrics, how they are written, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.common.shares import SHARE, UNBOUNDED, Bounds
from cs_aligner_cli.experiments.measured_run import MEAN, MeasuredRun
from cs_aligner_cli.gap.bounds import metric_bounds
from cs_aligner_cli.gap.glossary import METRICS
from cs_aligner_cli.recipe.sweep import Direction

_RETRIEVAL_KEY = re.compile(r"eval_retrieval\.[^.]+\.(?P<direction>i2t|t2i|mean|both|mixed)\.(?P<metric>.+)")
# The same of a further data set; what each of its queries scored is not compared.
_SET_KEY = re.compile(r"eval_retrieval\.sets\.(?P<set>[^.]+)\.(?P<rest>eval_retrieval\..+)")
# Which way is better of what is measured of retrieval, classification and pictures, by the last part of its path; of
# the gap's metrics the glossary says it.
_MORE = re.compile(
    r"(val_)?R@\d+(\.(i2t|t2i))?|mAP|MRR|nDCG@\d+|spearman|RSum|(stated_)?accuracy(_\w+)?|mean_per_class(_top5)?|prompt_R@\d+|clip_score"
    r"|condition_cosine|(precision|recall|density|coverage)@[a-z]+"
)
_LESS = re.compile(r"median_rank|mean_rank|hubness|(frechet(_\w+)?|kid|cmmd|cmmd_biased)@\w+")
Better = Literal["higher", "lower"]
# The least and the most that they can be.
_RANGES: tuple[tuple[re.Pattern[str], Bounds], ...] = (
    (re.compile(r"(val_)?R@\d+(\.(i2t|t2i))?|mAP|MRR|nDCG@\d+|prompt_R@\d+"), SHARE),
    (re.compile(r"(stated_)?accuracy(_\w+)?|mean_per_class(_top5)?|(precision|recall|coverage)@[a-z]+"), SHARE),
    (re.compile(r"spearman|condition_cosine"), (-1.0, 1.0)),
    (re.compile(r"clip_score"), (0.0, 100.0)),
    (re.compile(r"median_rank|mean_rank"), (1.0, math.inf)),
    (re.compile(r"(frechet(_\w+)?|cmmd_biased|density)@\w+|seconds|peak_memory_mb"), (0.0, math.inf)),
)
_DIRECTIONS: dict[Direction, Better] = {"maximize": "higher", "minimize": "lower"}


class Column(BaseModel):
    """One metric. ``key``: its path in a run's numbers; ``scale``: what it is multiplied with to be shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    title: str
    better: Better | None = None
    digits: int = 3
    scale: float = 1.0
    role: Literal["objective", "gap", "pictures", ""] = ""

    @property
    def is_cost(self) -> bool:
        """Whether it is what a run took, not what came of it."""
        return self.key.startswith("cost.") or self.key.endswith(".seconds")

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
        {"key": "zero_shot.aligned.accuracy", "title": "zero-shot", **_RECALL},
        {"key": "generate.aligned.accuracy_mean", "title": "attributes", "role": "pictures", **_RECALL},
        {"key": "generate.aligned.prompt_R@1", "title": "prompt R@1", "role": "pictures", **_RECALL},
        {"key": "generate.aligned.frechet@encoder", "title": "Frechet", "better": "lower", "digits": 2},
        {"key": "generate.aligned.frechet@inception", "title": "FID", "better": "lower", "digits": 2},
        {"key": "train.runs.aligned.seconds", "title": "train s", "digits": 0},
        {"key": "cost.peak_memory_mb", "title": "peak MB", "digits": 0},
    )
)


_BY_KEY = {column.key: column for column in _COLUMNS}


def better_of(metric: str, direction: Direction | None = None) -> Better:
    """Which way an objective is better: what is known of the metric, or else the ``direction`` that is given.

    Raises InputError where neither says so, or they contradict each other.
    """
    known = _known_of(metric)
    given = _DIRECTIONS[direction] if direction else None
    if known is None and given is None:
        raise InputError(
            f"objective {metric}: whether more or less of it is better is not known",
            "Say so: maximize or minimize, as --direction of csalign compare and leaderboard, or as"
            " sweep.objective.direction.",
        )
    if known and given and known != given:
        raise InputError(
            f"objective {metric}: {known} is better, and its direction is {direction}",
            "Leave the direction out (--direction, sweep.objective.direction).",
        )
    better = known or given
    assert better is not None
    return better


def bounds_of(column: Column, run: MeasuredRun) -> Bounds:
    """The least and the most that a column can show; infinite where nothing bounds it, or it is not known."""
    last = _last(column.key)
    if last == "RSum":  # the sum, in percent, of as many recalls as the run has
        recalls = re.compile(re.escape(run.path(column.key).removesuffix("both.RSum")) + r"(i2t|t2i)\.R@\d+")
        return 0.0, 100.0 * sum(bool(recalls.fullmatch(path)) for path in run.numbers) or math.inf
    of_gap = metric_bounds(last) if column.key.startswith("gap_report.") else UNBOUNDED
    low, high = next((found for pattern, found in _RANGES if pattern.fullmatch(last)), of_gap)
    return column.scale * low, column.scale * high


def columns_of(
    runs: Sequence[MeasuredRun],
    objective: str,
    direction: Direction | None = None,
    further: Sequence[str] = (),
) -> list[Column]:
    """The columns that at least one run has, the objective's first, then the table's own, then ``further`` ones.

    Raises InputError if no run has the objective or one of the further metrics, and as ``better_of``.
    """
    known = sorted({path for run in runs for path in run.numbers})
    for wanted in (objective, *further):
        if all(run.number(wanted) is None for run in runs):
            raise InputError(f"no run has the metric {wanted!r}{did_you_mean(wanted, known)}")
    found = {c.key: c for c in _COLUMNS if any(run.number(c.key) is not None for run in runs)}
    chosen = found.pop(objective, None) or _made(objective)
    first = chosen.model_copy(update={"role": "objective", "better": better_of(objective, direction)})
    others = (key for key in dict.fromkeys(further) if key != objective and key not in found)
    return [first, *found.values(), *map(_made, others)]


def _known_of(key: str) -> Better | None:
    """Which way a metric is better, as its path says; None of what is neither, as steps, and of what is not known."""
    if of_set := _SET_KEY.fullmatch(key):
        return _known_of(of_set["rest"])
    stage, _, rest = key.partition(".")
    metric = rest.partition(".")[2]
    if own := _BY_KEY.get(f"{stage}.{ALIGNED}.{metric}"):
        return own.better
    if stage == "gap_report" and (of_gap := METRICS.get(metric.partition("@")[0])):
        return "lower" if of_gap.no_gap.startswith("falls") else "higher" if of_gap.no_gap.startswith("rises") else None
    last = _last(key)
    return "higher" if _MORE.fullmatch(last) else "lower" if _LESS.fullmatch(last) else None


def _last(key: str) -> str:
    """The last part of a path; a bandwidth's own dot divides nothing."""
    path, at, of = key.partition("@")
    return f"{path.rsplit('.', 1)[-1]}{at}{of}"


def _made(key: str) -> Column:
    """The column of a metric that the table does not know by itself."""
    if of_set := _SET_KEY.fullmatch(key):
        inner = _made(of_set["rest"])
        return inner.model_copy(update={"key": key, "title": f"{of_set['set']} {inner.title}"})
    match = _RETRIEVAL_KEY.fullmatch(key)
    if match is None:
        return Column(key=key, title=_last(key), better=_known_of(key))
    title = match["metric"] if match["direction"] == MEAN else f"{match['direction']} {match['metric']}"
    if match["metric"].startswith("R@"):
        return Column.model_validate({"key": key, "title": title, **_RECALL})
    return Column(key=key, title=title, better=_known_of(key))
