"""Training: batches, the schedule, the log, variants, live towers, and the bitwise end of a run that was killed."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import yaml
from conftest import Csalign
from safetensors.torch import load_file
from trained_runs import assert_resumes_bitwise
from typer.testing import CliRunner

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.prefetch import prefetched
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of, hold_out
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.towers import Inputs
from cs_aligner_cli.training.device_inputs import DeviceInputs
from cs_aligner_cli.training.optimizer import learning_rate, make_optimizer, step_seed
from cs_aligner_cli.training.samplers import PairBatches
from cs_aligner_cli.training.step import DivergedError, Stepper

QUIET = Console(quiet=True)


def _split(owners: list[int], images: int) -> Split:
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(images)]})
    ids = [f"i{n}" if n >= 0 else None for n in owners]
    return Split("train", table, pd.DataFrame({"caption_id": range(len(owners)), "image_id": ids}))


def _trained(recipe: Recipe, *stages: str) -> dict[str, dict[str, object]]:
    return {
        stage: run_stage(stage, recipe, QUIET, archive=True).data()
        for stage in (stages or ("prepare", "embed", "train"))
    }


def _log(recipe: Recipe, variant: str = "aligned") -> list[dict[str, object]]:
    path = Layout(recipe).trained(variant).path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _steps(recipe: Recipe, variant: str = "aligned") -> list[dict[str, object]]:
    return [line for line in _log(recipe, variant) if "loss" in line]


def test_every_epoch_shows_each_image_once_with_one_of_its_captions() -> None:
    split = _split([3, 0, 0, 1, -1, 3, 5, 1, 0], images=6)
    batches = PairBatches(split, np.array([0, 1, 3, 5]), batch_size=2, seed=7)
    assert batches.steps_per_epoch == 2
    seen_captions = set()
    for epoch in range(30):
        pairs = [batches.pairs(epoch * 2 + i) for i in range(2)]
        images = np.concatenate([p[0] for p in pairs])
        captions = np.concatenate([p[1] for p in pairs])
        assert sorted(images) == [0, 1, 3, 5]
        assert (split.image_of_caption[captions] == images).all()
        seen_captions |= set(captions.tolist())
    assert seen_captions == {0, 1, 2, 3, 5, 6, 7, 8}  # all but the unpaired caption 4


def test_batches_are_a_function_of_seed_and_step_alone() -> None:
    split = _split([i % 20 for i in range(60)], images=20)
    rows = np.arange(20)
    forward = PairBatches(split, rows, 6, seed=1)
    planned = [forward.pairs(step) for step in range(9)]
    again = PairBatches(split, rows, 6, seed=1)
    for step in reversed(range(9)):
        for ours, theirs in zip(again.pairs(step)[:2], planned[step][:2], strict=True):
            assert (ours == theirs).all()
    other = PairBatches(split, rows, 6, seed=2)
    assert any((other.pairs(s)[0] != planned[s][0]).any() for s in range(3))


@pytest.mark.parametrize(("least", "sizes", "left_out"), [(None, [4, 4], 2), (2, [4, 4, 2], 0), (3, [4, 4], 2)])
def test_the_last_incomplete_batch_is_kept_or_left_out(least: int | None, sizes: list[int], left_out: int) -> None:
    batches = PairBatches(_split(list(range(10)), images=10), np.arange(10), 4, seed=0, least=least)
    assert (batches.steps_per_epoch, batches.left_out) == (len(sizes), left_out)
    for epoch in range(3):
        drawn = [batches.pairs(epoch * len(sizes) + i).images for i in range(len(sizes))]
        assert [len(images) for images in drawn] == sizes
        assert len({*np.concatenate(drawn)}) == 10 - left_out


def test_what_an_epoch_leaves_out_is_said_once(csalign: Csalign, features_recipe: Path) -> None:
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q").exit_code == 0
    for size, kept, said in (
        (50, "drop", "14 of 114 images are left out of every epoch"),
        (50, "keep", ""),
        (512, "drop", "train.batch_size 512 exceeds 114 images"),
    ):
        keys = (f"train.batch_size={size}", f"train.last_batch={kept}", "train.epochs=2")
        called = csalign("train", features_recipe, "--json", "--force", *(f"--set={key}" for key in keys))
        run = called.json["runs"]["aligned"]
        assert called.stderr.count("left out of every epoch") + called.stderr.count("exceeds") == bool(said)
        assert said in called.stderr
        left_out = 14 if (size, kept) == (50, "drop") else 0
        assert (run["train_images"], run["left_out_images"]) == (114, left_out)
        assert run["steps"] == {512: 2, 50: 4 if kept == "drop" else 6}[size]


def test_a_validation_on_what_is_trained_on_is_said(csalign: Csalign, features_recipe: Path) -> None:
    settings = ("--set", "train.val_split=train", "--set", "train.epochs=1")
    for stage in ("prepare", "embed"):
        assert csalign(stage, features_recipe, "-q", *settings).exit_code == 0
    assert "train.val_split: train is trained on, too" in csalign("train", features_recipe, *settings).stderr
    assert "is trained on" not in csalign("train", features_recipe, "--set", "train.epochs=1", "--force").stderr


def test_a_kept_last_batch_resumes_bit_by_bit(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.batch_size=50", "train.last_batch=keep", "train.epochs=2", "train.objective.memory=40")
    assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *settings)


def test_a_batch_larger_than_the_data_is_cut_to_it() -> None:
    batches = PairBatches(_split([0, 1, 2], images=3), np.arange(3), batch_size=512, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (3, 1)


def test_held_out_images_are_no_training_images_and_have_captions() -> None:
    split = _split([i % 50 for i in range(100)], images=60)  # images 50 to 59 have no caption
    train, held_out = hold_out(split, 0.2, seed=3)
    assert len(held_out) == 10
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(range(50))
    assert set(split.image_of_caption[captions_of(split, held_out)]) == set(held_out)


def test_prefetched_keeps_the_order_and_passes_errors_on() -> None:
    assert list(prefetched(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]
    assert list(prefetched(lambda i: i, [], ahead=3)) == []
    assert list(prefetched(lambda i: i * i, range(5), ahead=3)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(prefetched(lambda i: 1 // (2 - i), range(4)))


@pytest.mark.parametrize("memory", [0, 4 * 5 * 3, 10**6])
def test_inputs_on_a_device_are_the_same_whether_or_not_it_holds_them(memory: int) -> None:
    """With room for nothing, for the five images, and for the seven captions, too."""
    split = _split([0, 1, 2, 3, 4, 4, 0], images=5)
    rows = {m: torch.randn(count, 3) for m, count in (("image", 5), ("text", 7))}
    plain = ArrayInputs(rows)
    placed = DeviceInputs(plain, torch.device("cpu"), memory)
    for modality, some in rows.items():
        for wanted in (np.array([3, 0, 3]), np.arange(len(some))):
            assert torch.equal(placed(modality, split, wanted), some[wanted])
        items = [(split, np.array([1, 2])), (split, np.array([0]))]
        assert torch.equal(placed.features(modality, items), some[[1, 2, 0]])


class ArrayInputs(Inputs):
    """Rows in memory as towers' inputs."""

    def __init__(self, rows: dict[str, torch.Tensor]) -> None:
        self._rows = rows
        self.live, self.reads = {}, dict.fromkeys(rows, "pooled")

    def __call__(self, modality: str, split: Split, rows: Ints) -> torch.Tensor:
        return self._rows[modality][torch.from_numpy(rows)]


def test_learning_rate_warms_up_linearly_and_ends_near_zero() -> None:
    spec = Train(lr=0.5, warmup_fraction=0.25)
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert rates[:25] == pytest.approx([0.5 * (step + 1) / 25 for step in range(25)])
    assert rates[25] == pytest.approx(0.5)
    assert rates[25 + 37] == pytest.approx(0.25, abs=0.01)
    assert all(later <= sooner for sooner, later in itertools.pairwise(rates[25:]))
    assert 0 < rates[-1] < 1e-3


def test_weight_decay_leaves_biases_and_logit_scale_alone() -> None:
    module = torch.nn.Linear(3, 2)
    module.log_logit_scale = torch.nn.Parameter(torch.tensor(1.0))
    decay = {
        id(p): g["weight_decay"]
        for g in make_optimizer(module, Train(weight_decay=0.3)).param_groups
        for p in g["params"]
    }
    assert decay == {id(module.weight): 0.3, id(module.bias): 0.0, id(module.log_logit_scale): 0.0}


def test_step_seeds_differ_by_seed_and_step() -> None:
    seeds = {step_seed(seed, step) for seed in range(3) for step in range(100)}
    assert len(seeds) == 300


def test_training_learns_and_logs_every_term(features_recipe: Path) -> None:
    recipe = load_recipe(str(features_recipe), ["train.epochs=12", "train.log_steps=1"])
    summary = _trained(recipe)["train"]["runs"]["aligned"]  # type: ignore[index]
    steps = _steps(recipe)
    assert len(steps) == summary["steps"]
    assert {"loss", "terms", "grad_norm_ratio", "grad_norm", "logit_scale", "lr", "epoch", "step"} <= set(steps[0])
    assert set(steps[0]["terms"]) == {"infonce", "cs"}  # type: ignore[call-overload]
    assert steps[0]["grad_norm_ratio"]["cs"] > 0  # type: ignore[index]
    for line in steps:
        assert line["loss"] == pytest.approx(line["terms"]["infonce"] + line["terms"]["cs"], rel=1e-5)  # type: ignore[index]
    assert steps[-1]["terms"]["infonce"] < 0.6 * steps[0]["terms"]["infonce"]  # type: ignore[index]
    val = [line["val_R@1"] for line in _log(recipe) if "val_R@1" in line]
    assert len(val) == recipe.train.epochs  # type: ignore[union-attr]
    best = max(val, key=lambda v: v["i2t"] + v["t2i"])  # type: ignore[index]
    assert summary["val_R@1"] == best


def test_weight_zero_values_the_divergence_where_it_is_logged_and_does_not_train_on_it(
    features_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = []
    plain = Stepper.step

    def recorded(self: Stepper, *given: Any) -> Any:
        metrics, state = plain(self, *given)
        found.append(metrics)
        return metrics, state

    monkeypatch.setattr(Stepper, "step", recorded)
    recipe = load_recipe(str(features_recipe), ["train.objective.divergence.weight=0", "train.log_steps=2"])
    _trained(recipe)
    for line in _steps(recipe):
        assert line["terms"]["cs"] > 0  # type: ignore[index]
        assert line["grad_norm_ratio"] == {"cs": 0.0}
        assert line["loss"] == pytest.approx(line["terms"]["infonce"])  # type: ignore[index]
    assert [*found[0]["terms"]] == ["infonce"] and found[0]["weights"] == {"infonce": 1.0, "cs": 0.0}


def test_pairwise_only_control_is_the_recipe_with_weight_zero(features_recipe: Path, tmp_path: Path) -> None:
    both = load_recipe(str(features_recipe), ["train.pairwise_only=true"])
    _trained(both)
    alone = load_recipe(str(features_recipe), ["train.objective.divergence.weight=0", f"run_dir={tmp_path / 'alone'}"])
    _trained(alone)
    control = load_file(Layout(both).trained("pairwise_only").path / "last.safetensors")
    twin = load_file(Layout(alone).trained("aligned").path / "last.safetensors")
    ours = load_file(Layout(both).trained("aligned").path / "last.safetensors")
    assert all(torch.equal(control[name], twin[name]) for name in twin)
    assert not all(torch.equal(control[name], ours[name]) for name in ours)


def test_one_seed_gives_one_result_and_another_seed_another(features_recipe: Path, tmp_path: Path) -> None:
    weights = []
    for i, seed in enumerate((3, 3, 4)):
        recipe = load_recipe(str(features_recipe), [f"seed={seed}", f"run_dir={tmp_path / str(i)}", "train.epochs=2"])
        _trained(recipe)
        weights.append(load_file(Layout(recipe).trained("aligned").path / "best.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize("divergence", ["{}", "{weight: 0, bandwidth: 0.05, approximation: {kind: nystroem}}"])
def test_logging_changes_nothing(features_recipe: Path, tmp_path: Path, divergence: str) -> None:
    """Not even where the divergence, of weight 0, refuses the rows: a cross sum that is lost in its noise."""
    weights = []
    for every, conflict_every in ((1, 2), (1000, "null")):
        settings = [f"train.log_steps={every}", f"train.conflict_steps={conflict_every}", "train.epochs=2"]
        settings += [f"train.objective.divergence={divergence}", f"run_dir={tmp_path / str(every)}"]
        recipe = load_recipe(str(features_recipe), settings)
        _trained(recipe)
        weights.append(load_file(Layout(recipe).trained("aligned").path / "last.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_logit_scale_fixed_stays_and_learned_is_clamped(features_recipe: Path) -> None:
    scale = "train.objective.pairwise.logit_scale"
    fixed = load_recipe(str(features_recipe), [f"{scale}.init=50", f"{scale}.learn=false", "train.log_steps=1"])
    _trained(fixed)
    assert {round(line["logit_scale"], 3) for line in _steps(fixed)} == {50.0}  # type: ignore[call-overload]
    low = [f"{scale}.init=0.5", "train.log_steps=1", "train.epochs=1"]
    for learn in ("false", "true"):  # CLIP's lower bound of 1 is for scales that start above it
        below = load_recipe(str(features_recipe), [*low, f"{scale}.learn={learn}"])
        _trained(below)
        values = [line["logit_scale"] for line in _steps(below)]
        assert values[0] == pytest.approx(0.5) and max(values) < 0.52  # type: ignore[type-var]
        assert learn == "true" or min(values) == max(values)  # type: ignore[type-var]
    learned = load_recipe(
        str(features_recipe),
        [f"{scale}.init=1", f"{scale}.max=1.01", "train.lr=0.05", "train.epochs=15", "train.log_steps=1"],
    )
    _trained(learned)
    values = [line["logit_scale"] for line in _steps(learned)]
    assert max(values) == pytest.approx(1.01, rel=1e-5)  # type: ignore[type-var]


_PART = "train.objective.divergence"


@pytest.mark.parametrize(
    "setting",
    [
        "{kind: cs, bandwidth: median, estimator: u}",
        "{kind: cs, bandwidth: [0.5, 1.0], products: bf16}",
        "{kind: cs, bandwidth: {kind: annealed, start: 1.5, end: 0.5}}",
        "{kind: cs, bandwidth: auto, weight: {kind: scheduled, end: 2.0}}",
        "{kind: mmd, weight: {kind: relative, ratio: 0.3, every: 2}}",
        "{kind: energy, estimator: u}",
        "{kind: hoelder, alpha: 3.0, gamma: 1.5}",
        "{kind: cs, approximation: {kind: nystroem, landmarks: 16}}",
        "{kind: cs, approximation: {kind: rff, features: 256}}",
        "{kind: gaussian_kl}",
        "{kind: jeffreys, shrinkage: 0.5}",
        "{kind: frechet}",
        "{kind: coral}",
        "{kind: sliced_wasserstein, projections: 16, p: 1}",
        "{kind: sinkhorn, blur: 0.2}",
    ],
)
def test_every_form_of_bandwidth_and_weight_trains(features_recipe: Path, setting: str) -> None:
    recipe = load_recipe(str(features_recipe), [f"{_PART}={setting}", "train.epochs=2", "train.log_steps=1"])
    before, after = _steps_of(recipe)
    assert after["loss"] < before["loss"]  # type: ignore[operator]


def _steps_of(recipe: Recipe) -> tuple[dict[str, object], dict[str, object]]:
    _trained(recipe)
    steps = _steps(recipe)
    return steps[0], steps[-1]


@pytest.mark.parametrize("pairwise", ["siglip", "align_uniform", "l2_contrastive"])
def test_every_pairwise_term_trains(features_recipe: Path, pairwise: str) -> None:
    settings = [f"train.objective.pairwise={{kind: {pairwise}}}", "train.epochs=6", "train.log_steps=1"]
    before, after = _steps_of(load_recipe(str(features_recipe), settings))
    assert after["terms"][pairwise] < before["terms"][pairwise]  # type: ignore[index]


def test_auto_bandwidth_is_chosen_once_before_training_and_recorded(features_recipe: Path) -> None:
    recipe = load_recipe(str(features_recipe), [f"{_PART}.bandwidth=auto", "train.log_steps=1"])
    summary = _trained(recipe)["train"]["runs"]["aligned"]  # type: ignore[index]
    widths = {tuple(line["bandwidth"]) for line in _steps(recipe)}  # type: ignore[arg-type]
    assert widths == {tuple(summary["bandwidth"])}


def test_relative_weight_keeps_the_gradients_in_proportion(features_recipe: Path) -> None:
    weight = "{kind: relative, ratio: 0.3, every: 3}"
    recipe = load_recipe(str(features_recipe), [f"{_PART}.weight={weight}", "train.log_steps=1", "train.epochs=3"])
    _trained(recipe)
    for line in _steps(recipe):
        ratio = line["grad_norm_ratio"]["cs"]  # type: ignore[index]
        measured = (line["step"] - 1) % 3 == 0  # type: ignore[operator]
        assert ratio == pytest.approx(0.3, rel=1e-5 if measured else 0.5)
    assert len({line["weights"]["cs"] for line in _steps(recipe)}) > 1  # type: ignore[index]


@pytest.mark.parametrize("kind", ["cs", "energy", "hoelder", "frechet", "sinkhorn", "sliced_wasserstein"])
@pytest.mark.parametrize("pairwise", ["infonce", "siglip"])
def test_micro_batches_equal_the_whole_batch(features_recipe: Path, tmp_path: Path, kind: str, pairwise: str) -> None:
    """Cached accumulation: the loss is that of the whole batch, whatever passes through the towers at once."""
    weights = []
    for micro in ("null", "7"):
        settings = [f"run_dir={tmp_path / micro}", f"train.micro_batch_size={micro}", "train.batch_size=28"]
        settings += [f"{_PART}={{kind: {kind}}}", f"train.objective.pairwise={{kind: {pairwise}}}", "train.epochs=2"]
        recipe = load_recipe(str(features_recipe), settings)
        _trained(recipe)
        weights.append(load_file(Layout(recipe).trained("aligned").path / "last.safetensors"))
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-4, atol=2e-5)


def test_a_micro_batch_must_divide_the_batch(features_recipe: Path) -> None:
    settings = ["train.batch_size=512", "train.micro_batch_size=100"]
    with pytest.raises(
        InputError, match=r"micro_batch_size \(100\) must divide batch_size \(512\); the nearest is 128"
    ):
        load_recipe(str(features_recipe), settings)


def test_a_linear_adapter_on_one_tower_and_a_frozen_other(features_recipe: Path) -> None:
    recipe = load_recipe(
        str(features_recipe),
        [
            "train.text.tune=frozen",
            "train.image.adapter={kind: linear}",
            "train.embed_dim=16",
            "train.epochs=2",
        ],
    )
    _trained(recipe, "prepare", "embed", "train", "embed")
    frozen = Store(Layout(recipe).frozen("dev").path).array("text").all()
    aligned = Store(Layout(recipe).aligned("aligned", "dev").path).array("text").all()
    np.testing.assert_allclose(aligned, frozen / np.linalg.norm(frozen, axis=1, keepdims=True), atol=1e-6)


def test_a_tower_without_adapter_must_have_the_shared_dimension(features_recipe: Path) -> None:
    recipe = load_recipe(str(features_recipe), ["train.text.tune=frozen", "train.embed_dim=8"])
    with pytest.raises(
        InputError, match=r"train\.text\.tune: frozen keeps the tower's own 16 dimensions, but .* has 8"
    ):
        _trained(recipe)
    with pytest.raises(InputError, match="stored features have no weights to train"):
        _trained(load_recipe(str(features_recipe), ["train.text.tune=full", "train.embed_dim=16"]))


def test_a_non_finite_loss_stops_and_says_what_it_was_and_keeps_what_was_there(features_recipe: Path) -> None:
    good = load_recipe(str(features_recipe), [])
    _trained(good)
    before = Layout(good).trained("aligned").fingerprint()
    bad = load_recipe(str(features_recipe), ["train.objective.pairwise.weight=3e38", f"{_PART}.weight=0"])
    with pytest.raises(DivergedError, match=r"^aligned: step 1: the loss is inf\nA lower train\.lr") as caught:
        _trained(bad)
    assert caught.value.exit_code == 2
    trained = Layout(good).trained("aligned")
    assert trained.fingerprint() == before and trained.require() and not trained.path.with_name("aligned.1").exists()


def _csalign(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from cs_aligner_cli.cli.main import main; main()", *arguments]


def _killed_and_resumed(recipe_file: Path, run_dir: Path, *settings: str) -> str:
    """Kill a training run with SIGKILL some way in, resume it, and return what the second command said."""
    arguments = [
        "train",
        str(recipe_file),
        "--set",
        f"run_dir={run_dir}",
        "--set",
        "train.checkpoint_steps=3",
    ]
    arguments += [part for setting in settings for part in ("--set", setting)]
    state = run_dir / "train" / "aligned.partial" / "last.json"
    process = subprocess.Popen(_csalign(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not state.is_file():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert state.is_file() and not (run_dir / "train" / "aligned").exists(), "the run ended before it was killed"
    resumed = CliRunner().invoke(app, arguments)  # in this process, which has imported torch
    assert resumed.exit_code == 0, resumed.stderr
    return resumed.stderr


def _assert_same_run(one: Path, other: Path) -> None:
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        [],
        [f"{_PART}={{bandwidth: {{every: 4}}, weight: {{kind: relative, every: 4}}}}", "train.micro_batch_size=16"],
        ["data.unpaired={paired_fraction: 0.6}", "train.captions=all", "train.objective.memory=60"],
    ],
)
def test_a_killed_run_resumes_to_the_bitwise_same_end(features_recipe: Path, tmp_path: Path, more: list[str]) -> None:
    settings = ["train.epochs=20", "train.image.adapter.dropout=0.2", "train.log_steps=1", "train.batch_size=32", *more]
    whole = load_recipe(str(features_recipe), [*settings, f"run_dir={tmp_path / 'whole'}"])
    _trained(whole)
    cut = load_recipe(str(features_recipe), [*settings, f"run_dir={tmp_path / 'cut'}"])
    _trained(cut, "prepare", "embed")
    said = _killed_and_resumed(features_recipe, tmp_path / "cut", *settings)
    assert "going on from step" in said
    _assert_same_run(Layout(whole).trained("aligned").path, Layout(cut).trained("aligned").path)


@pytest.fixture
def live_recipe(tmp_path: Path) -> Path:
    """A tiny CLIP trained from scratch on a few drawn scenes."""
    counts = {"train": 48, "val": 8, "test": 12}
    manifest = {"name": "few", "kind": "scenes", "images": counts, "size": 32}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(manifest))
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 1},
    }
    recipe = {
        "name": "live",
        "run_dir": "live",
        "data": {"manifest": "few.yaml"},
        "encoders": {"image": {"kind": "open_clip", "random_init": True, "config": config}},
        "train": {
            "image": {"tune": "full"},
            "text": {"tune": "full"},
            "epochs": 4,
            "batch_size": 12,
            "val_split": "val",
        },
    }
    path = tmp_path / "live.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_live_towers_in_micro_batches_equal_the_whole_batch(live_recipe: Path, tmp_path: Path) -> None:
    weights = []
    for micro in ("null", "4"):
        recipe = load_recipe(str(live_recipe), [f"run_dir={tmp_path / micro}", f"train.micro_batch_size={micro}"])
        _trained(recipe, "prepare", "train")
        weights.append(load_file(Layout(recipe).trained("aligned").path / "last.safetensors"))
    for name, whole in weights[0].items():
        # Adam divides by the gradient's size, so where that is near 0 rounding alone moves a weight.
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-3, atol=1e-3)


def test_siglip_exports_its_bias_to_open_clip(live_recipe: Path) -> None:
    recipe = load_recipe(str(live_recipe), ["train.objective.pairwise={kind: siglip}", "train.epochs=1"])
    _trained(recipe, "prepare", "train")
    folder = Layout(recipe).trained("aligned").path
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'open_clip'}")
    weights = load_file(folder / "best.safetensors")
    assert model.logit_bias.item() == pytest.approx(weights["logit_bias"].item())
    assert model.logit_bias.item() != -10
    assert model.logit_scale.item() == pytest.approx(weights["log_logit_scale"].item())


def test_live_towers_train_resume_and_export_to_open_clip(live_recipe: Path, tmp_path: Path) -> None:
    whole = load_recipe(str(live_recipe), [f"run_dir={tmp_path / 'whole'}", "train.epochs=8"])
    _trained(whole, "prepare", "train", "embed")
    cut = load_recipe(str(live_recipe), [f"run_dir={tmp_path / 'cut'}"])
    _trained(cut, "prepare")
    _killed_and_resumed(live_recipe, tmp_path / "cut", "train.epochs=8")
    folder = Layout(whole).trained("aligned").path
    _assert_same_run(folder, tmp_path / "cut" / "train" / "aligned")

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder / 'open_clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'open_clip'}")
    data = PreparedData(Layout(whole).prepared.path)
    test = data.split("test", "test")
    from PIL import Image

    pixels = torch.stack([preprocess(Image.open(data.root / locator)) for locator in test.images["locator"]])
    with torch.no_grad():
        expected = {
            "image": model.eval().encode_image(pixels, normalize=True),
            "text": model.encode_text(tokenizer(test.captions["text"].tolist()), normalize=True),
        }
    store = Store(Layout(whole).aligned("aligned", "test").path)
    for modality, features in expected.items():
        np.testing.assert_allclose(store.array(modality).all(), features.numpy(), atol=1e-5)


def test_one_live_tower_beside_an_adapter_on_cached_features(live_recipe: Path) -> None:
    recipe = load_recipe(str(live_recipe), ["train.text.tune=adapter", "train.epochs=2"])
    _trained(recipe, "prepare", "embed", "train", "embed")
    frozen = Store(Layout(recipe).frozen("test").path)
    aligned = Store(Layout(recipe).aligned("aligned", "test").path)
    assert not np.allclose(aligned.array("image").all(), frozen.array("image").all())
    assert not (Layout(recipe).trained("aligned").path / "open_clip").exists()
