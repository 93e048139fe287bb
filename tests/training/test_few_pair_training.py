"""Training with the terms for few pairs: what they see, that they resume, and what leaves older runs fresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_runs import QUIET, assert_resumes_bitwise

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.closed_forms import cca_path
from cs_aligner_cli.data.prepared import captions_of
from cs_aligner_cli.recipe.few_pairs import Teacher as TeacherSpec
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.training.setup import set_up
from cs_aligner_cli.training.teacher import fit_teacher

FEW = ["data.unpaired={paired_fraction: 0.4}", "train.epochs=2", "train.log_steps=1", "train.batch_size=16"]
ALL = "train.objective={pairwise: {unpaired_negatives: true}, structure: {}, teacher: {}, pseudo_pairs: {}, memory: 50}"
NO_UNPAIRED = "train.unpaired_per_pair={image: 0, text: 0}"


def run(file: Path, folder: Path, *settings: str, stages: tuple[str, ...] = ("prepare", "embed", "train")) -> Recipe:
    recipe = load_recipe(str(file), [*FEW, f"run_dir={folder}", *settings])
    for stage in stages:
        run_stage(stage, recipe, QUIET)
    return recipe


def steps(recipe: Recipe, variant: str = "aligned") -> list[dict[str, Any]]:
    log = (Layout(recipe).trained(variant).path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, log) if "terms" in line]


def test_structure_teacher_and_negatives_see_unpaired_items_and_the_control_does_not(
    features_recipe: Path, tmp_path: Path
) -> None:
    more = run(features_recipe, tmp_path / "more", ALL, "train.pairwise_only=true")
    pairs = run(features_recipe, tmp_path / "pairs", ALL, NO_UNPAIRED)
    with_unpaired, on_pairs = steps(more)[0]["terms"], steps(pairs)[0]["terms"]
    assert list(on_pairs) == ["infonce", "cs", "structure", "teacher", "pseudo_pairs"]
    assert all(with_unpaired[name] != on_pairs[name] for name in on_pairs)
    assert on_pairs["pseudo_pairs"] == 0
    assert with_unpaired["infonce"] > on_pairs["infonce"], "unpaired items are further negatives"
    assert list(steps(more, "pairwise_only")[0]["terms"]) == ["infonce", "cs"]
    assert steps(more, "pairwise_only")[0]["terms"]["infonce"] == on_pairs["infonce"]


def test_a_run_with_all_terms_resumes_bitwise(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *FEW, ALL)


def test_a_schedule_warms_the_structure_term_up(features_recipe: Path, tmp_path: Path) -> None:
    weight = "train.objective.structure={kind: kl, weight: {kind: scheduled, end: 2.0, until: 1.0}}"
    weights = [step["weights"]["structure"] for step in steps(run(features_recipe, tmp_path, weight))]
    assert weights == pytest.approx([2 * i / len(weights) for i in range(len(weights))])


def test_the_structure_of_a_live_tower_is_compared_with_the_frozen_store(photos_recipe: Path, tmp_path: Path) -> None:
    live = ("train.image={tune: full}", "train.text={tune: full}", "train.val_split=dev", "train.batch_size=8")
    recipe = run(photos_recipe, tmp_path / "run", "data.unpaired=null", *live, "train.objective.structure={}")
    assert all(step["terms"]["structure"] > 0 for step in steps(recipe))
    assert recipe.train is not None
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    batch, drawn = setup.batches.load(0, setup.inputs), setup.batches.pairs.pairs(0)
    assert batch.inputs["image"].ndim == 4
    frozen = Store(Layout(recipe).frozen("train").path)
    for m, rows in (("image", drawn.images), ("text", drawn.captions)):
        np.testing.assert_array_equal(batch.features[m].numpy(), frozen.array(m).take(rows))


def test_the_teachers_covariances_know_the_unpaired_items(features_recipe: Path, tmp_path: Path) -> None:
    recipe = run(features_recipe, tmp_path, "train.objective.teacher={}", stages=("prepare", "embed"))
    layout = Layout(recipe)
    assert recipe.train is not None
    setup = set_up(recipe, recipe.train, layout, Ranks())
    store = Store(layout.frozen("train").path)
    rows = {m: l2_normalize(torch.from_numpy(store.array(m).all()).double()).numpy() for m in ("image", "text")}
    captions = captions_of(setup.split, setup.train_rows)
    x, y = rows["image"][setup.split.image_of_caption[captions]], rows["text"][captions]
    pools = {m: pool.part(10**6) for m, pool in setup.batches.pools.items()}
    every = [
        np.concatenate([pairs, *(rows[m][items] for _, items in pools[m])]) for m, pairs in (("image", x), ("text", y))
    ]
    spread = tuple(z - z.mean(axis=0) for z in every)
    expected = cca_path(x - x.mean(axis=0), y - y.mean(axis=0), [1.0], spread)[0]  # type: ignore[arg-type]
    assert setup.teacher is not None
    for m, z, weight in zip(("image", "text"), every, expected, strict=True):
        np.testing.assert_allclose(setup.teacher.means[m].numpy(), z.mean(axis=0), atol=1e-12)
        ours = setup.teacher.weights[m].numpy()
        np.testing.assert_allclose(ours @ ours.T, weight @ weight.T, atol=1e-8)  # axes have no sign
    alone = TeacherSpec(unpaired_moments=False)
    of_pairs = fit_teacher(alone, setup.inputs, setup.split, setup.train_rows, pools, Ranks())
    np.testing.assert_allclose(of_pairs.means["image"].numpy(), x.mean(axis=0), atol=1e-12)


def test_terms_that_are_not_in_use_leave_older_runs_fresh(features_recipe: Path) -> None:
    def parts(*settings: str) -> dict[str, Any]:
        made_from = Layout(load_recipe(str(features_recipe), [*FEW, *settings])).trained("aligned").recipe
        objective: dict[str, Any] = made_from["train"]["objective"]
        return objective

    assert {"structure", "teacher", "pseudo_pairs"}.isdisjoint(parts()) and "unpaired_negatives" not in parts()[
        "pairwise"
    ]
    assert parts("train.objective.structure={}")["structure"]["kind"] == "js"
    assert parts("train.objective.pairwise.unpaired_negatives=true")["pairwise"]["unpaired_negatives"] is True
