"""Which way a metric is better and what it can be, as far as it is known."""

from __future__ import annotations

import json
import math

import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.columns import Column, better_of, bounds_of
from cs_aligner_cli.experiments.measured_run import MeasuredRun


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("gap_report.aligned.rmg", "lower"),
        ("gap_report.frozen+cca.residual_ratio", "lower"),
        ("gap_report.aligned.cs_divergence_v@0.5", "lower"),
        ("gap_report.aligned.cluster_ari", "higher"),
        ("gap_report.mixed.aligned.text.R@5", "higher"),
        ("eval_retrieval.aligned.i2t.hubness", "lower"),
        ("eval_retrieval.aligned.mean.mean_rank", "lower"),
        ("eval_retrieval.sets.coco.eval_retrieval.aligned.mean.MRR", "higher"),
        ("zero_shot.aligned.accuracy", "higher"),
        ("generate.aligned.kid@inception", "lower"),
        ("train.runs.aligned.val_R@1.i2t", "higher"),
    ],
)
def test_the_direction_of_what_the_house_measures_is_known(metric, better):
    assert better_of(metric) == better
    other = "minimize" if better == "higher" else "maximize"
    with pytest.raises(InputError, match=f"objective {metric.replace('+', '.')}: {better} is better, and .* {other}"):
        better_of(metric, other)


@pytest.mark.parametrize(
    "metric",
    [
        "train.runs.aligned.steps",
        "cost.seconds",
        "gap_report.aligned.paired_cosine",  # rises with all cosines
        "gap_report.aligned.mutual_information",
        "gap_report.tests.aligned.centroid_gap",  # a p
    ],
)
def test_what_is_neither_has_to_be_said(metric):
    with pytest.raises(InputError, match="whether more or less of it is better is not known"):
        better_of(metric)
    assert better_of(metric, "minimize") == "lower"


def test_what_a_column_can_show_is_known_of_what_the_house_measures(tmp_path):
    recalls = {"R@1": 0.5, "R@5": 0.6, "median_rank": 1.0}
    of_store = {"i2t": recalls, "t2i": recalls, "both": {"RSum": 220.0}}
    (tmp_path / "run.json").write_text(
        json.dumps({"stages": {"eval_retrieval": {"eval_retrieval": {"frozen": of_store, "aligned": of_store}}}})
    )
    run = MeasuredRun(tmp_path, "frozen", "a", "a", 0, {})
    for key, scale, bounds in (
        ("eval_retrieval.aligned.i2t.R@1", 100.0, (0.0, 100.0)),
        ("eval_retrieval.aligned.both.RSum", 1.0, (0.0, 400.0)),
        ("eval_retrieval.sets.coco.eval_retrieval.aligned.mean.MRR", 1.0, (0.0, 1.0)),
        ("eval_retrieval.aligned.t2i.median_rank", 1.0, (1.0, math.inf)),
        ("gap_report.aligned.cs_divergence_v@0.7071", 1.0, (0.0, math.inf)),
        ("gap_report.aligned.cs_divergence_u@0.7071", 1.0, (-math.inf, math.inf)),
        ("gap_report.mixed.aligned.text.R@5", 100.0, (0.0, 100.0)),
        ("generate.aligned.frechet@inception", 1.0, (0.0, math.inf)),
        ("train.runs.aligned.steps", 1.0, (-math.inf, math.inf)),
    ):
        assert bounds_of(Column(key=key, title=key, scale=scale), run) == bounds, key
