"""Data regimes: unpaired items, caption modes, a memory of past embeddings, further modalities."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Csalign, features_recipe_content, make_features
from safetensors.torch import load_file
from trained_runs import assert_resumes_bitwise

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.unpaired import LEFT_OUT, PAIRED, UNPAIRED, draw_pairing, read_pairing
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.weights import load_towers
from cs_aligner_cli.training.batches import TrainingBatches
from cs_aligner_cli.training.memory_bank import Memory
from cs_aligner_cli.training.samplers import PairBatches, Pool

QUIET = Console(quiet=True)
Refused = Callable[..., str]


def _split(owners: list[int], images: int, name: str = "train") -> Split:
    table = pd.DataFrame({"image_id": [f"{name}{n}" for n in range(images)]})
    table = table.assign(digest=[f"content of {i}" for i in table["image_id"]])
    ids = [f"{name}{n}" if n >= 0 else None for n in owners]
    captions = pd.DataFrame({"caption_id": range(len(owners)), "image_id": ids})
    return Split(name, table, captions.assign(text=[f"{name} caption {i}" for i in range(len(owners))]))


OWNERS = [3, 0, 0, 1, -1, 3, 5, 1, 0]


def test_first_captions_are_the_first_in_the_table() -> None:
    batches = PairBatches(_split(OWNERS, 6), np.array([0, 1, 3, 5]), 4, seed=7, captions="first")
    for step in range(5):
        drawn = batches.pairs(step)
        assert dict(zip(drawn.images.tolist(), drawn.captions.tolist(), strict=True)) == {0: 1, 1: 3, 3: 0, 5: 6}


def test_all_captions_come_with_their_images() -> None:
    split = _split(OWNERS, 6)
    batches = PairBatches(split, np.array([0, 1, 3, 5]), 3, seed=7, captions="all")
    for step in range(6):
        drawn = batches.pairs(step)
        assert drawn.owner is not None
        assert (split.image_of_caption[drawn.captions] == drawn.images[drawn.owner]).all()
        wanted = np.flatnonzero(np.isin(split.image_of_caption, drawn.images))
        assert sorted(drawn.captions) == wanted.tolist()


def test_weighted_captions_are_drawn_by_their_weights() -> None:
    split = _split([0] * 4 + [1] * 2, 2)
    batches = PairBatches(split, np.array([0, 1]), 2, seed=0, captions=[3.0, 1.0])
    drawn = np.concatenate([batches.pairs(step).captions for step in range(4000)])
    shares = np.bincount(drawn, minlength=6) / 4000
    np.testing.assert_allclose(shares, [3 / 6, 1 / 6, 1 / 6, 1 / 6, 3 / 4, 1 / 4], atol=0.03)


def test_a_pool_shows_every_item_once_a_round_whatever_the_order_of_the_steps() -> None:
    parts = [(_split([], 7), np.array([1, 4, 6])), (_split([], 9, "more"), np.arange(9))]
    pool = Pool(parts, per_step=4, seed=3)
    assert (pool.items, pool.per_step) == (12, 4)
    seen = [[(split.name, int(row)) for split, rows in pool.rows(step) for row in rows] for step in range(6)]
    for turn in (seen[:3], seen[3:]):
        items = [item for step in turn for item in step]
        assert sorted(items) == sorted([("train", 1), ("train", 4), ("train", 6), *(("more", i) for i in range(9))])
    assert seen[:3] != seen[3:]
    again = Pool(parts, per_step=4, seed=3)
    backwards = {step: again.rows(step) for step in (5, 0, 3)}
    assert [[(s.name, int(r)) for s, rows in backwards[step] for r in rows] for step in (0, 3, 5)] == [
        seen[0], seen[3], seen[5]
    ]  # fmt: skip
    uneven = Pool(parts, per_step=5, seed=3)  # a step may reach into the next round
    first = [(s.name, int(r)) for step in range(2) for s, rows in uneven.rows(step) for r in rows]
    assert len(set(first)) == 10
    assert sum(len(rows) for _, rows in uneven.rows(2)) == 5
    assert Pool(parts, per_step=99, seed=3).per_step == 12
    assert Pool([], per_step=5, seed=3).rows(0) == []


def test_a_memory_keeps_the_newest_rows() -> None:
    memory = Memory(5)
    rows = torch.arange(8.0).reshape(8, 1).requires_grad_()
    memory.add({"image": rows[:3], "text": rows[:2]})
    memory.add({"image": rows[3:], "text": rows[2:4]})
    assert memory.rows["image"].flatten().tolist() == [3, 4, 5, 6, 7]
    assert memory.rows["text"].flatten().tolist() == [0, 1, 2, 3]
    assert not memory.rows["image"].requires_grad
    nothing = Memory(0)
    nothing.add({"image": rows})
    assert nothing.rows == {}


def test_a_pairing_says_what_every_item_is() -> None:
    split = _split([0, 0, 1, 2, 2, 3, -1], 6)
    guarded = _split([0, 0], 1, "test")
    guarded.images.loc[0, "digest"] = "content of train5"  # an image without captions, also in the test split
    guarded.captions.loc[0, "text"] = " TRAIN  caption 6"  # and a caption of no image, but for case and spaces
    more = _split([], 3, "more")
    pairing = draw_pairing(split, (guarded.images, guarded.captions), {"more": (more, ["image"])}, 0.5, seed=1)
    assert len(pairing.rows("image", PAIRED)) == 2
    kept = set(pairing.rows("image", PAIRED))
    assert set(split.image_of_caption[pairing.rows("text", PAIRED)]) == kept
    assert pairing.rows("image", LEFT_OUT).tolist() == [5] and pairing.rows("text", LEFT_OUT).tolist() == [6]
    assert set(pairing.rows("image", UNPAIRED)) == {0, 1, 2, 3, 4} - kept
    assert pairing.rows("image", UNPAIRED, "more").tolist() == [0, 1, 2]
    assert len(pairing.rows("text", UNPAIRED, "more")) == 0
    assert pairing.counts()["image"] == {"paired": 2, "unpaired": 6, "left out": 1}
    limited = pairing.limited(split)
    assert set(limited.image_of_caption) == kept | {-1}
    assert (split.image_of_caption[:-1] >= 0).all(), "the split itself is left as it was"
    other = draw_pairing(split, (guarded.images, guarded.captions), {}, 0.5, seed=2)
    assert set(other.rows("image", PAIRED)) != kept
    with pytest.raises(InputError, match=r"paired_fraction: 0\.2 of the 4 captioned images of split 'train' leaves 1"):
        draw_pairing(split, (guarded.images, guarded.captions), {}, 0.2, seed=1)


def _run(recipe: Recipe, *stages: str) -> dict[str, Any]:
    return {
        stage: run_stage(stage, recipe, QUIET, archive=True).data() for stage in stages or ("prepare", "embed", "train")
    }


def _steps(recipe: Recipe) -> list[dict[str, Any]]:
    log = (Layout(recipe).trained("aligned").path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, log) if "loss" in line]


def _weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(Layout(recipe).trained("aligned").path / "last.safetensors")  # type: ignore[no-any-return]


UNPAIRED_ITEMS = ["data.unpaired={paired_fraction: 0.4}", "train.epochs=3", "train.log_steps=1", "train.batch_size=16"]


def test_unpaired_items_are_seen_by_the_divergence_alone(features_recipe: Path, tmp_path: Path) -> None:
    found = {}
    for name, more in {
        "with": [],
        "alone": ["train.unpaired_per_pair={image: 0, text: 0}"],
        "unweighted": ["train.objective.divergence.weight=0"],
        "neither": ["train.objective.divergence.weight=0", "train.unpaired_per_pair={image: 0, text: 0}"],
    }.items():
        recipe = load_recipe(str(features_recipe), [*UNPAIRED_ITEMS, *more, f"run_dir={tmp_path / name}"])
        summary = _run(recipe)["train"]["runs"]["aligned"]
        assert summary["train_images"] + summary["val_images"] == 48
        weighted = "train.objective.divergence.weight=0" not in more
        assert summary["unpaired_items"] == ({"image": 72, "text": 360} if weighted else {})
        found[name] = recipe
    terms = {name: _steps(recipe)[0]["terms"] for name, recipe in found.items()}
    assert terms["with"]["infonce"] == terms["alone"]["infonce"]
    assert terms["with"]["cs"] != terms["alone"]["cs"]
    assert terms["unweighted"] == terms["neither"], "they are not even drawn where the divergence weighs nothing"
    ours, theirs = _weights(found["unweighted"]), _weights(found["neither"])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours), "unpaired items change nothing without divergence"
    ours, theirs = _weights(found["with"]), _weights(found["alone"])
    assert not all(torch.equal(ours[key], theirs[key]) for key in ours)
    paired = read_pairing(Layout(found["with"]).pairing.path)  # type: ignore[union-attr]
    assert len(paired.rows("image", PAIRED)) == 48


def test_pairs_stay_pairs_when_unpaired_images_make_as_many_rows_as_captions(features_recipe: Path) -> None:
    """5 captions an image and 4 unpaired images a pair: both modalities have 5 rows a pair, in different orders."""
    more = ["train.captions=all", "train.unpaired_per_pair={image: 4, text: 0}", "train.batch_size=8"]
    recipe = load_recipe(str(features_recipe), [*UNPAIRED_ITEMS, *more])
    _run(recipe, "prepare", "embed")
    layout = Layout(recipe)
    split = PreparedData(layout.prepared.path).split("train", "train.split")
    pairing = read_pairing(layout.pairing.path)  # type: ignore[union-attr]
    limited = pairing.limited(split)
    assert recipe.train is not None
    batches = TrainingBatches(layout, recipe.train, limited, pairing.rows("image", PAIRED), pairing, Ranks())
    first, second, groups = batches.load(0, _Numbers()).pairs["image", "text"]  # type: ignore[arg-type]
    drawn = batches.pairs.pairs(0)
    assert first is not None and second is None and groups is not None
    assert (first.numpy() == drawn.owner).all()
    assert (limited.image_of_caption[drawn.captions] == groups.numpy()).all()


class _Numbers:
    """Row numbers in the place of a tower's inputs."""

    def __call__(self, modality: str, split: Split, rows: Any) -> torch.Tensor:
        return torch.from_numpy(rows).float().unsqueeze(1)


def test_what_is_held_out_for_validation_is_no_unpaired_item(features_recipe: Path, tmp_path: Path) -> None:
    """The data set itself as a further source: whatever it holds of validation and test is left out."""
    source = f"{{manifest: flickr8k, root: {tmp_path / 'features'}}}"
    recipe = load_recipe(str(features_recipe), [f"data.unpaired={{sources: [{source}]}}", "train.val_fraction=0.25"])
    counts = _run(recipe, "prepare")["prepare"]["pairing"]
    assert counts["image"] == {"paired": 120, "unpaired": 90, "left out": 30}
    assert counts["text"] == {"paired": 600, "unpaired": 450, "left out": 150}


def test_a_change_of_the_data_or_of_what_is_taken_makes_pairing_and_stores_anew(
    features_recipe: Path, tmp_path: Path
) -> None:
    other = make_features(tmp_path / "other", {"train": 30}, seed=1)
    source = f"manifest: flickr8k, root: {other}"
    one = load_recipe(str(features_recipe), [f"data.unpaired={{sources: [{{{source}, modalities: [text]}}]}}"])
    both = load_recipe(str(features_recipe), [f"data.unpaired={{sources: [{{{source}}}]}}", "train.epochs=1"])
    _run(one, "prepare", "embed")
    found = _run(both)
    assert found["embed"]["stores"]["unpaired flickr8k"]["train"]["status"] == "done"
    for table in ("images.csv", "captions.csv"):
        rows = pd.read_csv(tmp_path / "features" / table)
        rows.loc[rows["split"] == "dev", "split"] = "train"
        rows.to_csv(tmp_path / "features" / table, index=False)
    assert _run(both, "prepare")["prepare"]["pairing"]["status"] == "done", "the main data set has changed"


def test_a_share_of_pairs_leaves_the_frozen_stores_fresh(features_recipe: Path) -> None:
    _run(load_recipe(str(features_recipe), ["data.unpaired={paired_fraction: 0.4}"]), "prepare", "embed")
    again = load_recipe(str(features_recipe), ["data.unpaired={paired_fraction: 0.3}", "seed=5"])
    found = _run(again, "prepare", "embed")
    assert found["prepare"]["pairing"]["image"]["paired"] == 36
    assert found["embed"]["status"] == "fresh"


@pytest.mark.parametrize(
    "settings",
    [
        ["train.captions=all", "train.objective.memory=50"],
        ["train.captions={kind: weighted, weights: [4, 1]}", "train.unpaired_per_pair={image: 2.5, text: 0.5}"],
        ["train.captions=all", "train.unpaired_per_pair={image: 4, text: 0}"],
        ["train.captions=first", "train.objective={pairwise: {kind: siglip}, divergence: {kind: energy}}"],
        ["train.objective={pairwise: {unpaired_negatives: true}, structure: {}, teacher: {}, memory: 50}"],
        ["train.objective={pseudo_pairs: {kind: softmax}}", "train.captions=all"],
    ],
)  # fmt: skip
def test_micro_batches_equal_the_whole_batch_in_every_regime(
    features_recipe: Path, tmp_path: Path, settings: list[str]
) -> None:
    weights = []
    for micro in ("null", "4"):
        more = [*UNPAIRED_ITEMS, *settings, f"run_dir={tmp_path / micro}", f"train.micro_batch_size={micro}"]
        recipe = load_recipe(str(features_recipe), more)
        _run(recipe)
        assert _steps(recipe)[-1]["terms"].keys() == _steps(recipe)[0]["terms"].keys()
        weights.append(_weights(recipe))
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-4, atol=2e-5)


def test_a_memory_adds_rows_to_the_divergence(features_recipe: Path, tmp_path: Path) -> None:
    steps = {}
    for size in (40, 0):
        settings = [*UNPAIRED_ITEMS, f"train.objective.memory={size}", f"run_dir={tmp_path / str(size)}"]
        recipe = load_recipe(str(features_recipe), settings)
        _run(recipe)
        steps[size] = _steps(recipe)
    assert steps[40][0]["terms"] == steps[0][0]["terms"], "nothing is remembered before the first step"
    assert steps[40][1]["terms"]["cs"] != steps[0][1]["terms"]["cs"]


def test_a_memory_is_filled_by_the_average_of_the_towers(
    features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state's average is that of the state before and of the weights, and its rows are what the average gives."""
    settings = ("train.objective.memory=40", "train.objective.memory_momentum=0.8", "train.image.adapter.dropout=0.2")
    settings += ("train.epochs=2", "train.micro_batch_size=8", "train.batch_size=32", "train.keep_states=20")
    whole = assert_resumes_bitwise(features_recipe, tmp_path, monkeypatch, *settings, "train.keep_checkpoints=20")
    layout = Layout(whole)
    folder = layout.trained("aligned").path
    states = [load_file(path) for path in sorted(folder.glob("last-*.safetensors"))]
    assert len(states) > 3
    for before, after in pairwise(states):
        for name in (name for name in after if name.startswith("memory_averages.")):
            weights = after[name.replace("memory_averages", "towers")]
            torch.testing.assert_close(after[name], 0.8 * before[name] + 0.2 * weights)
    towers = load_towers(folder / "last.safetensors", {}, {}).eval()
    state = {name.removeprefix("memory_averages."): z for name, z in states[-1].items() if "averages" in name}
    towers.load_own_state(state)
    split = PreparedData(layout.prepared.path).split("train", "train.split")
    store = Store(layout.frozen("train").path)
    with torch.no_grad():
        every = towers("image", torch.from_numpy(store.array("image").take(np.arange(len(split.images)))))
    nearest = (states[-1]["memory.image"] @ every.T).amax(dim=1)
    torch.testing.assert_close(nearest[-32:], torch.ones(32), rtol=0, atol=1e-5)  # the newest, item by item
    assert nearest.min() > 0.9  # older ones are of older averages


def _captions_alone(tmp_path: Path, root: Path, **changes: Any) -> Path:
    """A manifest of captions without images, over another folder of features."""
    captions = {"table": "captions.csv", "features": "text_minilm.npy", "image_column": None, **changes}
    content = {"name": "more", "kind": "embeddings", "root": str(root), "captions": captions}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "more.yaml"


def test_further_captions_come_from_another_manifest(
    features_recipe: Path, tmp_path: Path, csalign: Csalign, refused: Refused
) -> None:
    other = make_features(tmp_path / "other", {"train": 30}, seed=1)
    table = pd.read_csv(other / "captions.csv")
    captions_csv = pd.read_csv(tmp_path / "features" / "captions.csv")
    table["caption"] = [f"another caption {i}" for i in range(len(table))]
    table.loc[3, "caption"] = captions_csv.loc[captions_csv["split"] == "test", "caption"].iloc[0]  # a leak
    table.to_csv(other / "captions.csv", index=False)
    _captions_alone(tmp_path, other)
    source = f"{{manifest: {tmp_path / 'more.yaml'}, modalities: [text]}}"
    setting = f"data.unpaired={{paired_fraction: 0.5, sources: [{source}]}}"
    recipe = tmp_path / "more_recipe.yaml"
    content = features_recipe_content(tmp_path / "features", tmp_path / "run")
    sources = [{"manifest": "more.yaml", "modalities": ["text"]}]
    content["data"]["unpaired"] = {"paired_fraction": 0.5, "sources": sources}
    recipe.write_text(yaml.safe_dump(content))
    prepared = csalign("prepare", recipe, "--json").json
    assert prepared["pairing"]["text"] == {"paired": 300, "unpaired": 300 + 149, "left out": 1}
    assert prepared["pairing"]["image"]["unpaired"] == 60
    assert csalign("embed", recipe).exit_code == 0
    trained = csalign("train", recipe, "--set", "train.epochs=1", "--json").json
    assert trained["runs"]["aligned"]["unpaired_items"] == {"image": 60, "text": 449}
    assert csalign("run", recipe, "--set", "train.epochs=1").exit_code == 0

    np.save(other / "text_minilm.npy", np.load(other / "text_minilm.npy")[:, :7])
    expected = (
        "data.unpaired.sources.0: the text embeddings of more have 7 dimensions, but those of the data set have 16"
    )
    assert expected in refused("run", recipe, "--force")
    both = setting.replace("modalities: [text]", "modalities: [image, text]")
    assert "more.yaml: no usable images are left" in refused("prepare", recipe, "--force", "--set", both)


def test_a_fraction_that_leaves_no_pair_is_refused(features_recipe: Path, refused: Refused) -> None:
    message = refused("prepare", features_recipe, "--set", "data.unpaired={paired_fraction: 0.001}")
    assert "data.unpaired.paired_fraction: 0.001 of the 120 captioned images of split 'train' leaves 0" in message
    message = refused("prepare", features_recipe, "--set", "data.unpaired={paired_fraction: 0}")
    assert "data.unpaired.paired_fraction: got 0; expected more than 0" in message


def test_images_alone_are_a_table_without_captions(photos_root: Path, tmp_path: Path, write_yaml: Callable[..., Path],
                                                   photos_recipe: Path) -> None:  # fmt: skip
    rows = pd.read_csv(photos_root / "captions.csv")
    rows[["image"]].drop_duplicates().to_csv(photos_root / "images.csv", index=False)
    write_yaml(
        "images_alone.yaml", name="images", kind="table", root=str(photos_root), table="images.csv",
        image_dir="images", caption_column=None, split_column=None,
    )  # fmt: skip
    sources = f"[{{manifest: {tmp_path / 'images_alone.yaml'}, split: all, modalities: [image]}}]"
    recipe = load_recipe(str(photos_recipe), [f"data.unpaired={{sources: {sources}}}"])
    counts = _run(recipe, "prepare")["prepare"]["pairing"]["image"]
    assert counts == {"paired": 8, "unpaired": 7, "left out": 9}, "those of dev, test and validation would leak"
    assert _run(recipe, "embed", "train")["train"]["runs"]["aligned"]["unpaired_items"] == {"image": 7, "text": 0}


@pytest.fixture
def views_recipe(tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """Three small modalities of one latent variable."""
    counts = {"train": 160, "val": 20, "test": 60}
    options = {"dim": 12, "latent_dim": 4, "noise": 0.05, "curvature": 0.3, "modalities": ["audio"]}
    write_yaml("views.yaml", name="views", kind="latent", images=counts, **options)
    return write_yaml(
        "three.yaml",
        name="three",
        run_dir=str(tmp_path / "run"),
        data={"manifest": "views.yaml"},
        encoders={"image": {"kind": "features"}, "further": {"audio": {"kind": "features"}}},
        train={
            "epochs": 25,
            "batch_size": 76,
            "lr": 3e-3,
            "objective": {"divergence": {"kind": "generalized_cs"}},
            "further": {"audio": {"adapter": {"kind": "residual_mlp", "hidden_dim": 64}}},
        },
        eval_retrieval={"split": "test", "bootstrap": 0},
        gap_report={"baselines": {"frozen": []}, "examples": 0},
    )


def test_three_modalities_align_along_every_edge(views_recipe: Path, csalign: Csalign, tmp_path: Path) -> None:
    for stage in ("prepare", "embed", "train", "embed"):
        assert csalign(stage, views_recipe, "-q").exit_code == 0
    found = csalign("eval-retrieval", views_recipe, "--json").json
    assert set(found["edges"]) == {"image-audio", "audio-text"}
    for edge, stores in found["edges"].items():
        first, second = edge.split("-")
        for way in (f"{first}_to_{second}", f"{second}_to_{first}"):
            assert stores["frozen"][way]["R@1"] < 0.4 < 0.5 < stores["aligned"][way]["R@1"]
    gaps = {}
    for edge in ("[image, text]", "[audio, text]", "[audio, image]"):
        called = csalign("gap-report", views_recipe, "--set", f"gap_report.modalities={edge}", "--json")
        gaps[edge] = called.json["gap_report"]
        if "audio" in edge:
            assert any("image stands for audio" in note for note in called.json["notes"])
    for report in gaps.values():
        assert report["frozen"]["centroid_gap"] > 1 > 0.3 > report["aligned"]["centroid_gap"]
    store = Store(tmp_path / "run" / "embeddings" / "aligned" / "test")
    assert store.keys("audio").columns.tolist() == ["audio_id", "image_id"]
    log = (tmp_path / "run" / "train" / "aligned" / "metrics.jsonl").read_text().splitlines()
    logged = next(line for line in map(json.loads, log) if "terms" in line)
    assert logged["terms"].keys() == {"infonce", "generalized_cs"}


def test_an_edge_is_seen_as_images_and_captions() -> None:
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "locator": ["a.png", "b.png", "c.png"]})
    captions = pd.DataFrame({"image_id": ["a", "a", "c", None], "text": ["1", "2", "3", "4"]})
    audio = pd.DataFrame({"image_id": ["c", "a", "c", None]})
    split = Split("s", images, captions, {"audio": audio})
    seen = split.seen_as(("audio", "text"))
    assert seen.places["image"].tolist() == [0, 1, 3]  # row 2 is a second sound of c, and left out
    assert seen.image_of_caption.tolist() == [1, 1, 0, -1]
    assert seen.images["locator"].tolist() == ["c.png", "a.png", ""]
    assert seen.captions["text"].tolist() == ["1", "2", "3", "4"]
    assert split.seen_as(("image", "text")) is split
    turned = split.seen_as(("audio", "image"))
    assert turned.image_of_caption.tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoders.further.video={kind: features}", "encoders.further: the data set has no modality 'video'"),
        ("train.further={video: {}}", "train.further: encoders.further names no 'video'"),
        ("train.edges=[[image, text], [audoi, text]]", "train.edges: 'audoi' is no modality here; did you mean audio?"),
        ("train.edges=[[image, text]]", "train.edges: audio is in no edge"),
        ("train.edges=[[image, text], [text, image], [audio, text]]", "train.edges: an edge is named twice"),
        ("gap_report.modalities=[text, text]", "gap_report.modalities: expected two different ones"),
        ("train.conflict_steps=5", "train.conflict_steps: the conflict is measured of images and texts alone"),
        ("train.edges=[[image, image]]", "train.edges: expected pairs of two modalities"),
        (
            "gap_report.modalities=[audoi, text]",
            "gap_report.modalities: 'audoi' is no modality here; did you mean audio?",
        ),
        ("train.further={audio: {tune: full}}", "further.audio.tune: full needs a live encoder"),
        ("train.start=cca", "train.start: cca is of images and texts alone"),
    ],
)
def test_a_modality_that_is_not_there_is_refused_by_name(
    views_recipe: Path, refused: Refused, setting: str, message: str
) -> None:
    csalign_command = "embed" if "encoders.further" in setting else "prepare"
    if csalign_command == "embed":
        run_stage("prepare", load_recipe(str(views_recipe)), QUIET)
    assert message in refused(csalign_command, views_recipe, "--set", setting)


def test_further_modalities_of_stored_features(features_recipe: Path, tmp_path: Path, csalign: Csalign) -> None:
    """A manifest with sounds: some of them of no image, and one of an image in another split."""
    root = tmp_path / "features"
    images = pd.read_csv(root / "images.csv")
    sounds = images.rename(columns={"image": "of"})
    sounds.loc[5, "of"] = None
    sounds.loc[6, "split"] = "dev"
    sounds.to_csv(root / "sounds.csv", index=False)
    np.save(root / "sounds.npy", np.load(root / "image_mobilenet_v2.npy")[:, :9])
    manifest = {
        "name": "sounds",
        "kind": "embeddings",
        "root": str(root),
        "images": {"table": "images.csv", "features": "image_mobilenet_v2.npy"},
        "captions": {"table": "captions.csv", "features": "text_minilm.npy"},
        "modalities": {"sound": {"table": "sounds.csv", "features": "sounds.npy", "image_column": "of"}},
    }
    (tmp_path / "sounds.yaml").write_text(yaml.safe_dump(manifest))
    settings = [f"data.manifest={tmp_path / 'sounds.yaml'}", "encoders.further={sound: {kind: features}}"]
    arguments = [part for setting in [*settings, "train.epochs=2"] for part in ("--set", setting)]
    prepared = csalign("prepare", features_recipe, *arguments, "--json").json
    assert prepared["skipped"]["sound items without their image: it is missing, or in another split"] == 1
    done = csalign("run", features_recipe, *arguments, "--json").json
    assert done["train"]["aligned"]["train_images"] + done["train"]["aligned"]["val_images"] == 118
    recipe = load_recipe(str(features_recipe), settings)
    split = PreparedData(Layout(recipe).prepared.path).split("train", "train.split", ("image", "sound"))
    assert (split.image_of("sound") < 0).sum() == 1
