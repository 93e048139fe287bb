"""What the demo says at its end, and that its recipes are what it runs; the scenes themselves run elsewhere."""

from __future__ import annotations

import pytest

from cs_aligner_cli.cli.demo import ADAPTERS, CLIP, conclusions
from cs_aligner_cli.recipe.recipe import load_recipe

GAPS = {"frozen": 0.96, "pairwise_only": 0.51, "aligned": 0.07, "frozen+cca": 0.069, "frozen+whitened": 0.9}
RECALL = {
    "frozen": {"R@1": 0.13, "mixed": None},
    "pairwise_only": {"R@1": 0.165, "mixed": 0.2},
    "aligned": {"R@1": 0.147, "mixed": 0.45},
    "frozen+cca": {"R@1": 0.14, "mixed": 0.4},
    "frozen+whitened": {"R@1": 0.3, "mixed": 0.4},
}


def test_the_last_lines_say_the_gap_the_harm_the_cost_and_what_is_free() -> None:
    gap, harm, cost, free = conclusions(RECALL, {store: {"centroid_gap": value} for store, value in GAPS.items()})
    assert "0.96 apart" in gap and "0.51 after" in gap and "0.07 with InfoNCE + CS" in gap
    assert "20% were" in harm and "45% with CS" in harm
    assert "16.5% with the control, 14.7% with CS (-1.8 points)" in cost
    assert (
        "frozen+cca" in free and "a gap of 0.07 and finds 14.0%" in free
    )  # whitening retrieves more, but closes no gap
    assert "of 1 closed form without" in free and "picked by that" in free  # the best of several by the test split
    assert free.endswith("All this is one run: the report says what of it may be chance.")


def test_the_centred_control_is_not_free() -> None:
    recall = {**RECALL, "pairwise_only+centred": {"R@1": 0.2, "mixed": 0.4}}
    gaps = {s: {"centroid_gap": v} for s, v in {**GAPS, "pairwise_only+centred": 0.05}.items()}
    free = conclusions(recall, gaps)[-1]
    assert "frozen+cca" in free and "centred" not in free


@pytest.mark.parametrize("name", [CLIP, ADAPTERS])
def test_the_demo_trains_a_control_and_needs_no_data(name: str) -> None:
    recipe = load_recipe(name) if name == CLIP else load_recipe(name, ["encoders.image.model=local-dir:."])
    assert recipe.data.manifest == "demo" and recipe.train is not None
    assert recipe.train.pairwise_only == (name == ADAPTERS)
