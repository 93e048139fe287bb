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
from cs_aligner_cli.common.closed_forms import cca
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import captions_of
from cs_aligner_cli.objectives import Clouds, Logits, Pairs, direction_agreement, evaluate_terms
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.recipe.few_pairs import Mixup
from cs_aligner_cli.recipe.few_pairs import Teacher as TeacherSpec
from cs_aligner_cli.recipe.objective import Objective
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.weights import load_towers
from cs_aligner_cli.training.memory_bank import Memory
from cs_aligner_cli.training.mixup import DrawnMixing, Mixing
from cs_aligner_cli.training.scheduled_objective import ObjectiveState, TrainingObjective
from cs_aligner_cli.training.setup import set_up
from cs_aligner_cli.training.teacher import Teacher, fit_teacher

FEW = ["data.unpaired={paired_fraction: 0.4}", "train.epochs=2", "train.log_steps=1", "train.batch_size=16"]
ALL = (
    "train.objective={pairwise: {unpaired_negatives: true}, structure: {}, teacher: {}, pseudo_pairs: {}, "
    "agreement: {}, memory: 50}"
)
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
    assert list(on_pairs) == ["infonce", "cs", "structure", "teacher", "pseudo_pairs", "agreement"]
    assert with_unpaired.pop("agreement") == on_pairs["agreement"] > 0, "it is a term of pairs"
    assert all(with_unpaired[name] != on_pairs[name] for name in with_unpaired)
    assert on_pairs["pseudo_pairs"] == 0
    assert with_unpaired["infonce"] > on_pairs["infonce"], "unpaired items are further negatives"
    assert list(steps(more, "pairwise_only")[0]["terms"]) == ["infonce", "cs"]
    assert steps(more, "pairwise_only")[0]["terms"]["infonce"] == on_pairs["infonce"]


def test_a_run_with_all_terms_resumes_bitwise(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *FEW, ALL)


def test_agreement_sees_the_pairs_that_the_memory_still_has_whole() -> None:
    """Two steps of pairs in any order with unpaired rows, and a queue that is too short for the texts of the first."""
    rows = {m: torch.nn.functional.normalize(torch.randn(9, 3, dtype=torch.float64), dim=1) for m in ("image", "text")}
    first, second = {m: z[:4] for m, z in rows.items()}, {m: z[4:] for m, z in rows.items()}
    memory = Memory(7)
    memory.add(first, pairs={IMAGE_TEXT: Pairs(torch.tensor([3, 2, 0]), torch.tensor([1, 3, 2]))})
    memory.add(second, pairs={IMAGE_TEXT: Pairs(torch.tensor([1, 1]), torch.tensor([0, 4]))})
    # The oldest two rows are gone, image 0 and text 1 of the first step's pairs among them.
    past = rows["image"][[2, 5, 5]], rows["text"][[3, 4, 8]]
    found = Clouds(first, {IMAGE_TEXT: Pairs()}, memory.rows, memory_pairs=memory.pairs).memory_pair(IMAGE_TEXT)
    assert found is not None and all(map(torch.equal, found, past))
    memory.add(second, pairs={IMAGE_TEXT: Pairs()})
    clouds = Clouds(first, {IMAGE_TEXT: Pairs()}, memory.rows, memory_pairs=memory.pairs)
    spec = Objective.model_validate({"agreement": {}, "memory": 7})
    terms, _ = TrainingObjective(spec, 10).terms(0, clouds, ObjectiveState())
    logits = Logits(torch.tensor(5.0).double(), torch.tensor(0.0).double())
    value = evaluate_terms(terms, clouds, logits).values["agreement"]
    # The images of all former pairs are gone.
    torch.testing.assert_close(
        value, direction_agreement(first["image"], first["text"], 5.0, (second["image"], second["text"]))
    )


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
    expected = cca(x - x.mean(axis=0), y - y.mean(axis=0), 1.0, spread)  # type: ignore[arg-type]
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
        assert {"mixup", "start_moments", "self_training"}.isdisjoint(made_from["train"])
        return objective

    later = {"structure", "teacher", "pseudo_pairs", "agreement", "levels", "token_exchange", "memory_momentum"}
    assert {*later, "noise_filter"}.isdisjoint(parts())
    assert "unpaired_negatives" not in parts()["pairwise"]
    assert "runs" not in parts("train.objective.teacher={}")["teacher"]
    assert parts("train.objective.structure={}")["structure"]["kind"] == "js"
    assert parts("train.objective.pairwise.unpaired_negatives=true")["pairwise"]["unpaired_negatives"] is True


def test_mixup_mixes_images_and_captions_in_the_same_shares(features_recipe: Path, tmp_path: Path) -> None:
    recipe = run(
        features_recipe, tmp_path, "train.mixup={alpha: 0.5}", "train.captions=all", stages=("prepare", "embed")
    )
    assert recipe.train is not None
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    batch, drawn = setup.batches.load(3, setup.inputs), setup.batches.pairs.pairs(3)
    mixed = Mixing(Mixup(alpha=0.5), recipe.seed).drawn(3, drawn)
    assert drawn.owner is not None and sorted(mixed.partner) == [*range(len(drawn.images))]
    store = Store(Layout(recipe).frozen("train").path)
    unit = {m: l2_normalize(torch.from_numpy(store.array(m).all())).numpy() for m in ("image", "text")}
    captions_of_image = drawn.captions.reshape(len(drawn.images), -1)
    for i, (partner, share) in enumerate(zip(mixed.partner, mixed.share, strict=True)):
        image = share * unit["image"][drawn.images[i]] + (1 - share) * unit["image"][drawn.images[partner]]
        np.testing.assert_allclose(batch.inputs["image"][i].numpy(), image, atol=1e-5)
        for j, caption in enumerate(captions_of_image[i]):
            text = share * unit["text"][caption] + (1 - share) * unit["text"][captions_of_image[partner][j]]
            np.testing.assert_allclose(batch.inputs["text"][5 * i + j].numpy(), text, atol=1e-5)
    unpaired = setup.batches.pools["image"].rows(3)[0][1]
    np.testing.assert_array_equal(
        batch.inputs["image"][len(drawn.images) :].numpy(), store.array("image").take(unpaired)
    )


def test_a_partner_with_fewer_captions_lends_them_in_turn() -> None:
    mixed = DrawnMixing(np.array([1, 0]), np.array([0.5, 0.5]), np.array([0, 0, 0, 1, 1]))
    assert [*mixed.partners("text", np.array([10, 11, 12, 20, 21]))] == [20, 21, 20, 10, 11]
    assert [*mixed.partners("image", np.array([7, 8]))] == [8, 7]
    own, other = torch.eye(2), {7: torch.tensor([0.0, 3.0]), 8: torch.tensor([2.0, 0.0])}
    found = mixed.mix(
        "image", np.array([7, 8]), own[1:], lambda rows: torch.stack([other[r] for r in rows]), slice(1, 2)
    )
    np.testing.assert_allclose(found.numpy(), [[0.0, 1.0]], err_msg="a part of the step's rows, unit rows of both")


def test_a_start_may_know_the_unpaired_items(features_recipe: Path, tmp_path: Path) -> None:
    settings = (
        "train.start=cca",
        "train.start_moments={unpaired: true, shrinkage: 0.5}",
        "train.objective.divergence.weight=0",
    )
    recipe = run(features_recipe, tmp_path, *settings, stages=("prepare", "embed"))
    assert recipe.train is not None and not recipe.train.objective.sees_unpaired
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    setup.start_adapters(recipe.train)
    assert setup.batches.load(0, setup.inputs).sizes["image"] == 16, "they are in no step"
    store = Store(Layout(recipe).frozen("train").path)
    unit = {m: l2_normalize(torch.from_numpy(store.array(m).all()).double()).numpy() for m in ("image", "text")}
    captions = captions_of(setup.split, setup.train_rows)
    pairs = {"image": unit["image"][setup.split.image_of_caption[captions]], "text": unit["text"][captions]}
    every = {m: np.concatenate([pairs[m], unit[m][setup.batches.pools[m].part(10**6)[0][1]]]) for m in pairs}
    x, y = (pairs[m] - pairs[m].mean(axis=0) for m in pairs)
    spread = tuple(z - z.mean(axis=0) for z in every.values())
    expected = cca(x, y, 0.5, spread)  # type: ignore[arg-type]
    for m, weight in zip(pairs, expected, strict=True):
        found = setup.towers.parts[m].skip.weight.detach().double().numpy()[: weight.shape[1]]
        scale = np.linalg.norm(found) / np.linalg.norm(weight[:, :12])
        np.testing.assert_allclose(found.T @ found, scale**2 * weight[:, :12] @ weight[:, :12].T, atol=1e-4)


def test_runs_teach_beside_the_closed_form(features_recipe: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(features_recipe, tmp_path / f"{seed}", "train.epochs=1", f"seed={seed}", "data.seed=0")
    runs = [Layout(load_recipe(str(features_recipe), [f"run_dir={tmp_path / n}"])).folder for n in ("1", "2")]
    named = f"runs: [{runs[0]}, {runs[1]}]"
    recipe = run(features_recipe, tmp_path / "taught", f"train.objective.teacher={{{named}}}", "data.seed=0")
    assert all(step["terms"]["teacher"] > 0 for step in steps(recipe))
    assert recipe.train is not None
    setup = set_up(recipe, recipe.train, Layout(recipe), Ranks())
    batch = setup.batches.load(0, setup.inputs)
    teacher = setup.teacher
    assert teacher is not None
    alone = [Teacher(teacher.means, teacher.weights), *(Teacher({}, {}, [member]) for member in teacher.members)]
    with_all, parts = (teacher("image", batch.features["image"]), [t("image", batch.features["image"]) for t in alone])
    cosines = l2_normalize(with_all) @ l2_normalize(with_all).T
    mean = sum(l2_normalize(part) @ l2_normalize(part).T for part in parts) / 3
    torch.testing.assert_close(cosines, mean)
    stored = l2_normalize(torch.from_numpy(Store(Layout(recipe).frozen("train").path).array("text").take(np.arange(3))))
    member = load_towers(runs[0] / "train" / "aligned" / "last.safetensors", {}, {})
    torch.testing.assert_close(parts[1].shape[1], 12)
    torch.testing.assert_close(teacher("text", stored)[:, -24:-12].float(), member.eval()("text", stored))
    (runs[0] / "train" / "aligned" / "last.safetensors").unlink()
    with pytest.raises(InputError, match=r"train.objective.teacher.runs: .* holds no trained weights"):
        run(features_recipe, tmp_path / "other", f"train.objective.teacher={{kind: runs, {named}}}", "data.seed=0")


def test_a_run_with_mixup_and_a_start_of_all_items_resumes_bitwise(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.mixup={}", "train.start=cca", "train.start_moments={unpaired: true}")
    assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *FEW, *settings)
