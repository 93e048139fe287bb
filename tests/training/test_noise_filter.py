"""The noise filter: its limit in closed form, what becomes of pairs and rows, and shuffled captions that it finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CAPTIONS_PER_IMAGE
from trained_runs import QUIET

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.objectives import Clouds, Pairs
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.noise_filter import likely_pairs, without_noise
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.training.scheduled_objective import ObjectiveState, TrainingObjective


def with_cosines(*cosines: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (P, 2) and texts of the given cosines."""
    c = torch.tensor(cosines, dtype=torch.float64)
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(c), 2), torch.stack([c, (1 - c**2).sqrt()], dim=1)


def test_the_limit_is_the_mean_less_deviations() -> None:
    x, y = with_cosines(0.8, 0.6, 0.7, 0.1)  # mean .55, standard deviation .269
    assert likely_pairs(x, y, 1.0).tolist() == [True, True, True, False]
    assert likely_pairs(x, y, 1.7).tolist() == [True, True, True, True]
    assert likely_pairs(x, y, 0.1).tolist() == [True, True, True, False]
    assert likely_pairs(*with_cosines(0.3, 0.3, 0.3), 0.5).all() and likely_pairs(*with_cosines(0.3), 0.5).all()


def test_two_pairs_stay_and_rows_that_are_not_finite_leave_none_out() -> None:
    assert likely_pairs(*with_cosines(0.9, 0.1), 0.5).all()
    assert likely_pairs(*with_cosines(0.9, 0.1, 0.2), 0.1).tolist() == [True, False, True]
    assert likely_pairs(*with_cosines(0.9, math.nan, 0.2), 0.1).all()


def test_pairs_that_are_left_out_are_rows_without_partner() -> None:
    x, y = with_cosines(0.9, -0.9, 0.8, 0.7)
    labels = torch.tensor([4, 5, 6, 7])
    found, left, judged = without_noise(Clouds.of_pairs(x, y, labels), [IMAGE_TEXT], 1.0)
    assert (left, judged) == (1, 4)
    first, second, groups = found.pairs[IMAGE_TEXT]
    assert first is not None and second is not None and groups is not None
    assert first.tolist() == second.tolist() == [0, 2, 3] and groups.tolist() == [4, 6, 7]
    torch.testing.assert_close(found.pair(IMAGE_TEXT)[1], y[[0, 2, 3]])
    torch.testing.assert_close(found.unpaired(IMAGE_TEXT)[1], y[[1]])
    assert torch.equal(found.cloud("text"), y) and not found.only_pairs
    places = {IMAGE_TEXT: Pairs(torch.tensor([0, 0, 2]), torch.tensor([1, 0, 2]))}
    again, left, judged = without_noise(Clouds({"image": x, "text": y}, places), [IMAGE_TEXT], 1.0)
    assert (left, judged) == (1, 3)
    assert [z.tolist() for z in again.pairs[IMAGE_TEXT][:2] if z is not None] == [[0, 2], [0, 2]]


def test_it_begins_when_towers_know_something_and_counts() -> None:
    spec = Objective.model_validate({"noise_filter": {"begin": 0.5, "deviations": 0.5}})
    found, clouds, state = TrainingObjective(spec, 10), Clouds.of_pairs(*with_cosines(0.9, -0.9, 0.8)), ObjectiveState()
    same, before = found.without_noise(4, clouds, state)
    assert same is clouds and before.describe() == {}
    _, once = found.without_noise(5, clouds, state)
    _, twice = found.without_noise(6, clouds, once)
    assert twice.describe() == {"left_out_pairs": 2, "judged_pairs": 6}


def test_a_run_finds_captions_that_were_shuffled(features_root: Path, features_recipe: Path, tmp_path: Path) -> None:
    """A fifth of the training images get the captions of another; most of what is left out in the end is theirs."""
    texts, split = np.load(features_root / "text_minilm.npy"), pd.read_csv(features_root / "images.csv")["split"]
    wrong = np.random.default_rng(0).permutation(np.flatnonzero(split == "train"))[:24]
    of_image = texts.reshape(len(split), CAPTIONS_PER_IMAGE, -1)
    of_image[wrong] = of_image[np.roll(wrong, 1)]
    np.save(features_root / "text_minilm.npy", texts)
    settings = ["train.objective.noise_filter={deviations: 0.5}", "eval_retrieval.split=train", "train.log_steps=1"]
    recipe = load_recipe(str(features_recipe), settings)
    for stage in ("prepare", "embed", "train", "embed"):
        found = run_stage(stage, recipe, QUIET)
        if stage == "train":
            run = found.data()["runs"]["aligned"]
            assert 0.05 < run["left_out_pairs"] / run["judged_pairs"] < 0.4
            assert "the noise filter left out" in found.findings()[0]
    store = Store(Layout(recipe).aligned("aligned", "train").path)
    image, text = (l2_normalize(torch.from_numpy(store.array(m).all())) for m in ("image", "text"))
    left = ~likely_pairs(image.repeat_interleave(CAPTIONS_PER_IMAGE, dim=0), text, 0.5).numpy()
    shuffled = np.repeat(np.isin(np.flatnonzero(split == "train"), wrong), CAPTIONS_PER_IMAGE)
    assert shuffled[left].mean() > 0.5, "of those left out (0.2 by chance)"
    assert left[shuffled].mean() > 0.5, "of those shuffled (0.2 to 0.3 by chance)"


@pytest.mark.parametrize("filtered", [{"deviations": 0.0}, {"begin": 1.0}, {"deviation": 1.0}])
def test_settings_out_of_bounds_are_refused(filtered: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(filtered))):
        Objective.model_validate({"noise_filter": filtered})
