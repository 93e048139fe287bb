"""Captions with equal texts: no negatives of each other, and all of them right answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Csalign
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.data.text_groups import linked_groups, text_groups
from cs_aligner_cli.gap.recall import mixed_recalls, recall_spreads
from cs_aligner_cli.objectives import infonce
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.retrieval import evaluate_mixed, evaluate_retrieval, true_ranks
from cs_aligner_cli.retrieval import protocol as protocols
from cs_aligner_cli.retrieval.equal_texts import image_by_text
from cs_aligner_cli.retrieval.mixed import caption_tasks
from cs_aligner_cli.retrieval.protocol import caption_protocol, with_equal_texts
from cs_aligner_cli.runs.distributed import ALONE
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.training.batches import TrainingBatches


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_true_answers_are_those_of_a_table_of_all_pairs(data: st.DataObject) -> None:
    images, texts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    owner = np.array(data.draw(st.lists(st.integers(-1, images - 1), min_size=texts, max_size=texts)))
    owner[0] = 0
    groups = np.array(data.draw(st.lists(st.integers(0, 4), min_size=texts, max_size=texts)))
    folds = data.draw(st.integers(1, images))
    plain = caption_protocol(owner, images, texts, folds)
    found = with_equal_texts(plain, groups)
    kept = {int(text) for _, part in plain.galleries for text in part}
    wanted = {
        (i, j)
        for i in range(images)
        for j in kept
        if any(owner[other] == i and groups[other] == groups[j] for other in kept)
    }
    assert {*zip(found.pairs["i2t"].query, found.pairs["i2t"].item, strict=True)} == wanted
    assert {*zip(found.pairs["t2i"].item, found.pairs["t2i"].query, strict=True)} == wanted
    assert len(found.pairs["i2t"]) == len(wanted)


def test_a_caption_that_equals_the_own_one_is_a_hit() -> None:
    image = torch.eye(4)[[0, 1, 0, 1]]
    text = torch.eye(4)[[0, 1, 0, 1]]  # two labels: of equal scores the smaller row comes first
    assert evaluate_retrieval(image, text, ks=(1,))["i2t"]["R@1"] == 0.5
    found = evaluate_retrieval(image, text, ks=(1,), text_groups=np.array([7, 3, 7, 3]))
    assert found["i2t"]["R@1"] == found["t2i"]["R@1"] == found["i2t"]["mAP"] == 1.0
    with pytest.raises(InputError, match="text_groups: expected 4 integers, one per text; got shape"):
        evaluate_retrieval(image, text, ks=(1,), text_groups=np.arange(3))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_right_answers_in_a_mixed_corpus_are_those_of_a_table_of_all_pairs(data: st.DataObject) -> None:
    images, texts = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 14))
    owner = np.array(data.draw(st.lists(st.integers(-1, images - 1), min_size=texts, max_size=texts)))
    owner[:2] = 0
    groups = np.array(data.draw(st.lists(st.integers(0, 4), min_size=texts, max_size=texts)))
    for task in caption_tasks(owner, images, draws=2, text_groups=groups):
        belong = {(owner[t], groups[t]) for t in range(texts)}
        for query in range(len(task.owner)):
            image, text = task.queries.image[query], task.queries.text[query]
            wanted = []
            for place, (item_image, item_text) in enumerate(zip(*task.corpus, strict=True)):
                if text >= 0:  # all items of images that have an equal text, and texts equal to it
                    same = item_text >= 0 and groups[item_text] == groups[text]
                    wanted.append(same or (place < images and (place, groups[text]) in belong))
                else:  # the texts that belong to the image
                    wanted.append(item_image < 0 and (image, groups[item_text]) in belong)
            places = np.arange(len(task.corpus.image))
            assert task.right(np.full(len(places), query), places).tolist() == wanted
            assert task.right(np.array([query]), task.owner[[query]])[0], "its own item is always right"


def test_equal_captions_count_in_every_r_at_k() -> None:
    """Two like images with the same two captions: either answers for both, in mixed corpora and the gap report, too."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 6))
    image[1] = image[0] + 0.01 * rng.normal(size=6)
    text = np.repeat(image, 2, axis=0)
    text[:4] = image[[1, 1, 0, 0]]  # nearest is the other image
    owner, groups = np.repeat(np.arange(12), 2), np.arange(24)
    groups[[2, 3]] = groups[[0, 1]]
    plain, equal = (evaluate_mixed(image, text, owner, (1,), text_groups=g)["R@1"] for g in (None, groups))
    assert plain < 1.0 == equal
    found = recall_spreads(true_ranks(image, text, owner, text_groups=groups), owner, 12, (1,), 0, groups)
    assert (
        found["mean"]["R@1"][0]
        == 1.0
        > recall_spreads(true_ranks(image, text, owner), owner, 12, (1,), 0)["mean"]["R@1"][0]
    )
    assert mixed_recalls(image, text, owner, (1,), 0, groups)[1]["R@1"][0] == 1.0
    assert image_by_text(np.array([3, -1, -1]), np.array([7, 7, 8])).tolist() == [3, 3, -1]


def test_more_pairs_than_can_be_held_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "_MOST_PAIRS", 10)
    with pytest.raises(InputError, match="makes 16 pairs of image and right caption; 10 can be held"):
        with_equal_texts(caption_protocol(np.arange(4), 4, 4), np.zeros(4, np.int64))


def _split(owners: list[str | None], texts: list[str]) -> Split:
    images = pd.DataFrame({"image_id": ["a", "b", "c", "d"]})
    return Split("train", images, pd.DataFrame({"image_id": owners, "text": texts}))


def test_groups_of_texts_and_of_all_that_is_linked() -> None:
    texts = ["x", "y", "y", "z", "x ", "", ""]
    groups = text_groups(pd.Series(texts))
    assert groups[1] == groups[2] and len({*groups}) == 6
    linked = linked_groups(_split(["a", "a", "b", "b", "c", "d", None], texts))
    assert len({*linked[:4]}) == 1, "x and y are of image a, y and z of image b"
    assert len({*linked[3:]}) == 4


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A recipe over 24 images of 3 classes, whose captions name the class; features that tell the classes apart."""
    rng = np.random.default_rng(0)
    classes = np.arange(24) % 3
    for name, noise in (("image", 0.1), ("text", 0.0)):
        np.save(tmp_path / f"{name}.npy", (np.eye(8)[classes] + noise * rng.normal(size=(24, 8))).astype(np.float32))
    splits = ["train"] * 12 + ["test"] * 12
    pd.DataFrame({"image": range(24), "split": splits}).to_csv(tmp_path / "images.csv", index=False)
    table = {"image": range(24), "caption": [f"a photo of class {c}" for c in classes], "split": splits}
    pd.DataFrame(table).to_csv(tmp_path / "captions.csv", index=False)
    manifest = {
        "name": "labels",
        "kind": "embeddings",
        "images": {"table": "images.csv", "features": "image.npy"},
        "captions": {"table": "captions.csv", "features": "text.npy"},
    }
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(manifest))
    recipe = {
        "name": "r",
        "run_dir": "run",
        "data": {"manifest": "labels.yaml"},
        "encoders": {"image": {"kind": "features"}},
        "train": {"epochs": 1, "batch_size": 12},
        "eval_retrieval": {"ks": [1], "mixed": None, "bootstrap": 0},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "r.yaml"


def test_labels_as_captions_are_right_answers_and_no_negatives(labels: Path, csalign: Csalign) -> None:
    said = csalign("prepare", labels).stderr
    assert "12 captions, 3 different texts" in said and "unless data.groups is text" in said
    assert csalign("embed", labels, "-q", "--set", "train=null").exit_code == 0
    recalls = {}
    for groups in ("image", "text"):
        options = ("--set", "train=null", "--set", f"data.groups={groups}")
        found = csalign("eval-retrieval", labels, "--json", *options).json
        assert found["status"] == "done"
        recalls[groups] = found["eval_retrieval"]["frozen"]["i2t"]["R@1"]
    assert "all captions equal to one of them" in found["protocol"]["relevance"]
    assert recalls["text"] == 1.0 > recalls["image"]

    recipe = load_recipe(str(labels), ["data.groups=text"])
    layout, spec = Layout(recipe), recipe.train
    assert spec is not None
    split = PreparedData(layout.prepared.path).split("train", "train.split")
    for captions in ("one_random", "all"):
        chosen = spec.model_copy(update={"captions": captions})
        batches = TrainingBatches(layout, chosen, split, np.arange(12), None, ALONE)
        batch = batches.load(0, lambda modality, split, rows: torch.from_numpy(rows[:, None]).float())  # type: ignore[arg-type]
        (pairs,) = batch.pairs.values()
        assert pairs.groups is not None and len(pairs.groups) == 12
        of_row = split.captions["text"].iloc[batches.pairs.pairs(0).captions].to_numpy()
        assert all(
            (pairs.groups[i] == pairs.groups[j]) == (of_row[i] == of_row[j]) for i in range(12) for j in range(12)
        )
    x = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert infonce(x, x, 10.0, pairs.groups) < infonce(x, x, 10.0)
    assert Layout(recipe).trained("aligned").wanted() != Layout(load_recipe(str(labels))).trained("aligned").wanted()
    assert Layout(recipe).prepared.wanted() == Layout(load_recipe(str(labels))).prepared.wanted()
