"""Which runs a sweep has: configurations, ids, shared folders, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.plan import Source, configurations, load_sweep, plan
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.sweep import Sweep

FEATURES = {"image": {"kind": "features"}, "text": {"kind": "features"}}
WEIGHT, SIGMA = "train.objective.divergence.weight", "train.objective.divergence.bandwidth"


@pytest.fixture
def recipe(write_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def write(**sweep: Any) -> Path:
        return write_yaml("r.yaml", name="r", run_dir=str(tmp_path / "runs"), encoders=FEATURES, sweep=sweep)

    return write


def planned(file: Path, *overrides: str) -> list:
    source = Source(str(file), overrides)
    base = load_sweep(source)
    return plan(source, base, configurations(base.sweep))


def test_a_grid_times_seeds_shares_its_data_and_frozen_stores(recipe):
    runs = planned(recipe(grid={WEIGHT: [0.3, 1.0], SIGMA: [0.5, 1.0]}, seeds=[3, 5]))
    assert [run.label for run in runs][:5] == [
        "weight=0.3, bandwidth=0.5, seed 3",
        "weight=0.3, bandwidth=1, seed 3",
        "weight=1, bandwidth=0.5, seed 3",
        "weight=1, bandwidth=1, seed 3",
        "weight=0.3, bandwidth=0.5, seed 5",
    ]
    assert len({run.id for run in runs}) == 8
    assert len({run.configuration_id for run in runs}) == 4
    assert len({run.recipe.data.dir for run in runs}) == len({run.recipe.embed.dir for run in runs}) == 1
    assert len({run.recipe.run_dir for run in runs}) == 8


def test_ids_do_not_depend_on_names_places_or_files_of_figures(recipe, tmp_path):
    file = recipe(grid={WEIGHT: [0.3, 1.0]}, seeds=1)
    ids = [run.id for run in planned(file)]
    changes = f"run_dir={tmp_path / 'else'}", "name=other", "gap_report.formats=[pdf]"
    assert ids == [run.id for run in planned(file, *changes)]
    assert ids != [run.id for run in planned(file, "train.lr=0.5")]


def test_moved_data_and_run_folders_keep_the_ids_and_other_names_do_not(recipe, tmp_path):
    def ids(folder, weights="a"):
        (tmp_path / folder / weights).mkdir(parents=True, exist_ok=True)
        given = f"data.root={tmp_path / folder}", f"embed.weights={tmp_path / folder / weights}"
        return [run.id for run in planned(recipe(grid={WEIGHT: [0.3, 1.0]}, seeds=1), *given)]

    assert ids("here") == ids("there")
    assert ids("here") != ids("here", "b")
    assert str(tmp_path) in str(planned(recipe(grid={WEIGHT: [0.3]}), f"data.root={tmp_path}")[0].places)


def test_configurations_with_other_data_do_not_share_it(recipe):
    runs = planned(recipe(grid={"embed.precision": ["fp32", "bf16"]}, seeds=1))
    assert len({run.recipe.data.dir for run in runs}) == 1
    assert len({run.recipe.embed.dir for run in runs}) == 2


def test_ablation_takes_each_component_away_and_all_together():
    sweep = Sweep(ablation=[f"{WEIGHT}=0", "train.objective.tokens"], seeds=1)
    found = {c.name: c.settings for c in configurations(sweep)}
    assert found == {
        "full": {},
        "without weight": {WEIGHT: 0},
        "without tokens": {"train.objective.tokens": None},
        "without all": {WEIGHT: 0, "train.objective.tokens": None},
    }


def test_random_configurations_are_the_same_every_time():
    keys = {WEIGHT: {"low": 0.1, "high": 10.0, "log": True}, "train.epochs": {"low": 1, "high": 9, "whole": True}}
    sweep = Sweep.model_validate({"random": {"count": 20, "keys": keys}})
    first, again = configurations(sweep), configurations(sweep)
    assert first == again
    few = {"count": 3, "keys": {"train.epochs": {"choices": [1, 2, 3]}}}  # drawn again where one repeats
    assert {c.name for c in configurations(Sweep.model_validate({"random": few}))} == {f"epochs={n}" for n in (1, 2, 3)}
    assert all(0.1 <= c.settings[WEIGHT] <= 10 and isinstance(c.settings["train.epochs"], int) for c in first)


def test_the_command_line_adds_a_grid_and_seeds(recipe, write_yaml, tmp_path):
    plain = write_yaml("plain.yaml", name="plain", run_dir=str(tmp_path / "runs"))
    base = load_sweep(Source(str(plain)), [f"{WEIGHT}=0,1", "train.image.tune=frozen,adapter"], "2")
    assert base.sweep.grid == {WEIGHT: [0, 1], "train.image.tune": ["frozen", "adapter"]}
    assert base.sweep.seeds == [0, 1]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"grid": {"train.objective.divergence.wieght": [1.0]}}, "did you mean train.objective.divergence.weight?"),
        ({"grid": {WEIGHT: [-1.0]}}, "sweep (weight=-1): train.objective.divergence.weight"),
        ({"grid": {WEIGHT: [1.0, 1.0]}}, "two configurations are equal"),
        ({"settings": {"a": {WEIGHT: 1.0}, "b": {WEIGHT: 1}}}, "b and a are the same experiment"),
        ({"grid": {WEIGHT: [1.0]}, "control": "weight=2"}, "no configuration is named 'weight=2'; did you mean"),
        ({"grid": {"seed": [1, 2]}}, "the sweep itself sets seed"),
        ({"seeds": 3}, "names no configurations"),
        ({"grid": {WEIGHT: [1.0]}, "seeds": [1, 1]}, "1 is named twice"),
        ({"random": {"keys": {WEIGHT: {"low": 2.0, "high": 1.0}}}}, "expected low <= high"),
        ({"random": {"count": 3, "keys": {WEIGHT: {"choices": [1, 2]}}}}, "sweep.random.count: 3 configurations, but"),
        ({"random": {"keys": {WEIGHT: {"low": 2.0, "choices": [1]}}}}, "either choices, or low and high"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_anything_runs(recipe, sweep, message):
    with pytest.raises(InputError) as caught:
        planned(recipe(**sweep))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["flickr8k_sweep", "flickr8k_ablation", "flickr8k_fewpairs_sweep"])
def test_a_misspelt_key_of_a_shipped_sweep_is_refused_by_name(name):
    sweep = load_recipe(name).sweep
    for key in sweep.varied_keys:
        wrong = sweep.model_dump()
        for own in (wrong["grid"], *wrong["settings"].values()):
            if key in own:
                own[f"{key}x"] = own.pop(key)
        with pytest.raises(InputError, match=rf"{key}x: unknown key; did you mean {key}\?"):
            load_recipe(name, (), {"sweep": wrong}, "test")


def test_a_recipe_without_a_sweep_says_what_to_do(write_yaml):
    with pytest.raises(InputError, match="no --grid is given"):
        load_sweep(Source(str(write_yaml("plain.yaml", name="plain"))))
