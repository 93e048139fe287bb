"""Which way a metric is better, as far as it is known."""

from __future__ import annotations

import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.columns import better_of


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
