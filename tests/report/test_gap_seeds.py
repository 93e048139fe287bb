"""gap_report.seeds: finished runs of one recipe with other seeds, and a verdict that covers the seed of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

TINY = ("train.epochs=1", "train.pairwise_only=true", "gap_report.examples=0", "gap_report.baselines.frozen=[]",
        "gap_report.bandwidths=[0.7071]", "eval_retrieval.bootstrap=0", "eval_retrieval.mixed=null")  # fmt: skip


def test_three_seeds_end_to_end(csalign: Callable[..., Any], features_recipe: Path, tmp_path: Path) -> None:
    settings = [f"--set={setting}" for setting in TINY]
    for seed in (1, 2):
        other = [*settings, f"--set=seed={seed}", f"--set=run_dir={tmp_path / f'seed-{seed}'}"]
        for stage in ("prepare", "embed", "train", "embed"):
            called = csalign(stage, features_recipe, "-q", *other)
            assert called.exit_code == 0, called.stderr
    seeds = [*settings, f"--set=gap_report.seeds=[{tmp_path / 'seed-1'},{tmp_path / 'seed-2'}]"]
    called = csalign("run", features_recipe, "-q", "--json", *seeds)
    assert called.exit_code == 0, called.stderr

    folder = tmp_path / "run" / "gap_report"
    report = json.loads((folder / "report.json").read_text())
    found = report["seeds"]
    assert found["runs"] == ["run", "seed-1", "seed-2"]
    assert list(found["stores"]) == ["pairwise_only", "aligned"]
    gaps = [run["centroid_gap"] for run in found["stores"]["aligned"]]
    assert gaps[0] == report["stores"]["aligned"]["centroid_gap"]
    assert len(set(gaps)) == 3
    rows = {row["metric"]: row for row in found["differences"]}
    assert {"R@1", "R@10", "mixed_R@10", "squared_gap_debiased", "margin_standardised"} <= set(rows)
    for metric, row in rows.items():
        assert row["store"] == "pairwise_only"
        pairs = zip(*(found["stores"][name] for name in ("aligned", "pairwise_only")), strict=True)
        assert row["values"] == pytest.approx([mine[metric] - theirs[metric] for mine, theirs in pairs]), metric
        assert row["difference"] == pytest.approx(sum(row["values"]) / 3)
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["clear"] == (row["p_holm"] < 0.05)
    page = unescape((folder / "report.html").read_text())
    for text in (page, (folder / "report.md").read_text()):
        assert "This covers the seed of training, over 3 runs, and the choice of test pairs." in text
    assert "Over 3 seeds of training" in page

    assert csalign("gap-report", features_recipe, "-q", "--json", *seeds).json["status"] == "fresh"
