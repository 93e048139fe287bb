"""Self-training: mutual neighbours against plain numpy, what a round accepts, that it is trained on, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import random_rows
from trained_runs import QUIET, assert_resumes_bitwise, recipe_of, run_of

from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.data.text_groups import text_groups
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.training.self_training import mutual_nearest
from cs_aligner_cli.training.setup import set_up

ROUNDS = "train.self_training={first_epoch: 1, every: 1, min_cosine: -1, min_margin: 0, agreement: [], share: 1}"
SETTINGS = ("data.unpaired={paired_fraction: 0.3}", "train.epochs=3", "train.batch_size=16", "train.log_steps=1")


def test_mutual_neighbours_are_those_of_plain_numpy() -> None:
    image, text = random_rows(0, 40, 6), random_rows(1, 55, 6)
    cosines = image.astype(np.float64) @ text.T.astype(np.float64)
    expected = []
    for i in range(40):
        j = int(cosines[i].argmax())
        if cosines[:, j].argmax() == i:
            rivals = max(np.delete(cosines[i], j).max(), np.delete(cosines[:, j], i).max())
            expected.append((i, j, cosines[i, j], cosines[i, j] - rivals))
    found = mutual_nearest(image, text)
    np.testing.assert_allclose(np.stack([found.image, found.text, found.cosine, found.margin], 1), expected, atol=1e-6)
    assert 5 < len(expected) < 40
    assert len(mutual_nearest(image[:1], text).image) == 0


def test_equal_views_are_matched_one_by_one() -> None:
    rows, order = random_rows(0, 30, 8), np.random.default_rng(0).permutation(30)
    found = mutual_nearest(rows, rows[order])
    assert (order[found.text] == np.arange(30)).all() and found.cosine.min() > 1 - 1e-6 and found.margin.min() > 0


def test_a_run_resumes_bitwise_in_the_middle_of_a_round(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *SETTINGS, ROUNDS)
    lines = [json.loads(line) for line in (run_of(whole) / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "self_training" in line]
    assert [line["epoch"] for line in rounds] == [1, 2]
    summary = Layout(whole).trained("aligned").record()["summary"]["self_training"]  # type: ignore[index]
    assert [{"epoch": line["epoch"], **line["self_training"]} for line in rounds] == summary
    assert all(r["mutual"] == r["accepted"] == r["known"] > r["right"] for r in summary)
    assert Layout(whole).trained("aligned").record()["summary"]["unpaired_items"] == {"image": 84, "text": 420}  # type: ignore[index]
    first, second = ((run_of(whole) / f"self-training-00{i}.json").read_bytes() for i in (1, 2))
    assert first != second
    cut = Layout(recipe_of(features_recipe, tmp_path / "cut")).folder / "train" / "aligned"
    assert (cut / "self-training-001.json").read_bytes() == first


def test_what_a_round_accepts_is_trained_on_as_pairs_and_is_unpaired_no_more(
    features_recipe: Path, tmp_path: Path
) -> None:
    settings = [*SETTINGS, ROUNDS, "data.groups=text", f"run_dir={tmp_path / 'run'}"]
    recipe = load_recipe(str(features_recipe), settings)
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, QUIET)
    layout = Layout(recipe)
    assert recipe.train
    setup = set_up(recipe, recipe.train, layout, ALONE)
    assert setup.self_training
    accepted = setup.self_training.choose(setup.towers, setup.inputs, setup.device, 64)
    before, items = setup.batches.load(3, setup.inputs), {m: pool.items for m, pool in setup.batches.pools.items()}
    setup.batches.accept(accepted, 1)
    after = setup.batches.load(3, setup.inputs)
    counts = accepted.counts()
    assert {m: items[m] - pool.items for m, pool in setup.batches.pools.items()} == dict.fromkeys(
        ("image", "text"), counts["accepted"]
    )
    taken = min(round(0.5 * setup.batches.pairs.batch_size), counts["accepted"])
    pairs = [batch.pairs["image", "text"] for batch in (before, after)]
    groups = [found.groups for found in pairs]
    assert groups[0] is not None and groups[1] is not None
    assert len(groups[1]) == len(groups[0]) + taken
    # Row by row the features of the two are those of a pair that was accepted.
    own = len(groups[0])
    split = PreparedData(layout.prepared.path).split("train", "")
    rows = {m: setup.inputs(m, split, np.arange(len(split.table(m)))) for m in ("image", "text")}
    found = {m: {tuple(row.tolist()): i for i, row in enumerate(rows[m])} for m in ("image", "text")}
    image, text = (
        [found[m][tuple(row.tolist())] for row in after.inputs[m][own : own + taken]] for m in ("image", "text")
    )
    known = dict(
        zip(
            *(
                np.concatenate([r for _, r in accepted.drawn(m, np.arange(counts["accepted"]))])
                for m in ("image", "text")
            ),
            strict=True,
        )
    )
    assert len(set(image)) == taken and [known[i] for i in image] == text
    # Captions of equal text are of one group, whether the data made them pairs or a round.
    np.testing.assert_array_equal(groups[1][own:], text_groups(split.captions["text"])[text])
    assert counts["right"] == sum(split.image_of_caption[t] == i for i, t in known.items())


def test_thresholds_and_judges_leave_fewer(features_recipe: Path, tmp_path: Path) -> None:
    def accepted(spec: str) -> dict[str, int]:
        recipe = load_recipe(
            str(features_recipe), [*SETTINGS, ROUNDS, "train.start=cca", spec, f"run_dir={tmp_path / 'run'}"]
        )
        for stage in ("prepare", "embed"):
            run_stage(stage, recipe, QUIET)
        assert recipe.train
        setup = set_up(recipe, recipe.train, Layout(recipe), ALONE)
        setup.start_adapters(recipe.train)
        assert setup.self_training
        return setup.self_training.choose(setup.towers, setup.inputs, setup.device, 64).counts()

    every = accepted("train.self_training.share=1")
    assert 0 < accepted("train.self_training.agreement=[cca, ridge]")["accepted"] < every["accepted"]
    assert accepted("train.self_training.min_margin=2")["accepted"] == 0
    some = accepted("train.self_training.share=0.1")
    assert 0 < some["accepted"] < every["accepted"] and some["mutual"] == every["mutual"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.unpaired=null"], "train.self_training: without data.unpaired there are no unpaired items"),
        (["train.epochs=1"], "self_training.first_epoch (1) must be less than epochs (1)"),
        (
            [
                "train.self_training.agreement=[cca]",
                "encoders.text={kind: transformers, model: x}",
                "train.text.tune=full",
            ],
            "self_training.agreement compares stored pooled features, and text.tune: full reads none; use []",
        ),
    ],
)
def test_what_cannot_be(features_recipe: Path, refused: Callable[..., str], settings: list[str], message: str) -> None:
    parts: list[Any] = [part for setting in (*SETTINGS, ROUNDS, *settings) for part in ("--set", setting)]
    assert message in refused("recipe", "validate", features_recipe, *parts)
