"""Mixed-modality retrieval against its definition in plain numpy, and where the answer is known beforehand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval import Rows, evaluate_mixed
from cs_aligner_cli.retrieval.mixed import (
    Items,
    MixedTask,
    caption_tasks,
    label_tasks,
    mixed_means,
    mixed_scores,
    task_of_pairs,
)
from cs_aligner_cli.retrieval.scan import TruePairs

Floats = npt.NDArray[np.float32]
KS = (1, 3)


def rows(seed: int, count: int, width: int = 6) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def unit(x: Floats) -> npt.NDArray[np.float64]:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


def test_the_kind_of_an_item_is_what_it_is_made_of() -> None:
    assert Items(np.array([3, -1, 0]), np.array([-1, 2, 5])).kinds.tolist() == [0, 1, 2]


def item_row(image: Floats, text: Floats, i: int, t: int) -> npt.NDArray[np.float64]:
    parts = [unit(source)[row] for source, row in ((image, i), (text, t)) if row >= 0]
    whole = np.sum(parts, axis=0)
    return whole / np.linalg.norm(whole)


def by_definition(image: Floats, text: Floats, tasks: list[MixedTask], right, ks=KS):
    """Means by sorting every corpus in float64, query by query; ``right(task, query)``: places of right answers."""
    hits: dict[tuple[str, str], list[bool]] = {}
    for task in tasks:
        corpus = np.array([item_row(image, text, i, t) for i, t in zip(*task.corpus, strict=True)])
        for query, (i, t) in enumerate(zip(*task.queries, strict=True)):
            order = np.argsort(-(corpus @ item_row(image, text, i, t)), kind="stable")
            order = order[order != task.hidden[query]]
            answers = set(right(task, query))
            kinds = [("image", "text", "both")[kind] for kind in task.corpus.kinds]
            for kind in ("", "image", "text", "both"):
                wanted = {place for place in answers if kind in ("", kinds[place])}
                for k in ks if wanted else ():
                    group = ("image_queries/" if t < 0 else "") + kind
                    hits.setdefault((group.strip("/"), f"R@{k}"), []).append(bool(wanted & set(order[:k])))
    if not any(group == "image_queries/image" for group, _ in hits):  # the part would be the whole
        hits = {key: found for key, found in hits.items() if key[0] != "image_queries/text"}
    return {key: np.mean(found) for key, found in hits.items()}


def flat(found, prefix=""):
    result = {}
    for name, value in found.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}/{name}".strip("/"))
        else:
            result[prefix, name] = value
    return result


def test_captions_as_queries_follow_the_definition() -> None:
    """Images with five, two, one and no captions, and captions without an image."""
    owner = np.array([0, 0, 0, 0, 0, 1, 1, 2, -1, 4, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 8, -1, 9, 9])
    image, text = rows(0, 11), rows(1, len(owner))
    text[owner >= 0] += 1.5 * image[owner[owner >= 0]]
    tasks = caption_tasks(owner, 11, draws=4)
    for task in tasks:
        stands = np.flatnonzero(task.corpus.image >= 0)
        assert len(task.corpus.image) == 11 + 2  # every image once, and the two captions without an image
        assert {3, 10} <= {*task.corpus.image[stands]}  # images without captions can only stand as themselves
        assert len(stands) == 2 + round(0.5 * 9)
        of_text = task.queries.text >= 0
        assert not {*task.queries.text[of_text]} & {*task.corpus.text}  # a query is never in the corpus
        assert not {*task.queries.image[~of_text]} & {*task.corpus.image}
        assert {*owner[task.queries.text[of_text]]} == {0, 1, 4, 5, 6, 7, 8, 9}  # those with two captions
    found = mixed_means(mixed_scores(Rows(image, "image"), Rows(text, "text"), tasks, KS))
    expected = by_definition(image, text, tasks, lambda task, query: [task.owner[query]])
    assert flat(found) == pytest.approx(expected)
    assert 0 < found["R@1"] < 1
    assert set(found) == {"R@1", "R@3", "image", "text", "image_queries"}
    assert evaluate_mixed(image, text, owner, KS, draws=4) == found


def test_labels_as_answers_follow_the_definition() -> None:
    labels = np.array(["cat", "dog", "", "cat", "dog", "eel", "cat", "dog"], object)
    owner = np.array([0, 1, 2, 3, 4, 5, 6, -1])  # the last dog has no caption: it takes part as nothing but itself
    image, text = rows(2, 8), rows(3, 8)
    tasks = label_tasks(labels, owner, draws=3)
    number = {"cat": [0, 3, 6], "dog": [1, 4]}

    def right(task: MixedTask, query: int) -> list[int]:
        mine = task.owner[query]
        return [place for place in number.get(labels[mine], []) if place != mine]

    found = mixed_means(mixed_scores(Rows(image, "image"), Rows(text, "text"), tasks, KS))
    assert flat(found) == pytest.approx(by_definition(image, text, tasks, right))
    assert {"image", "text"} <= set(found["image_queries"])
    assert label_tasks(np.array(["a", "b", "", ""], object), np.arange(4)) == []


def test_items_of_both_modalities_and_many_answers_follow_the_definition() -> None:
    rng = np.random.default_rng(4)
    image, text = rows(5, 20), rows(6, 25)
    corpus = Items(np.r_[np.arange(12), np.full(9, -1)], np.r_[np.full(6, -1), np.arange(15)])
    queries = Items(np.r_[np.full(8, -1), 12:16, 16:20], np.r_[15:23, np.full(4, -1), 21:25])
    answers = [sorted(rng.choice(21, rng.integers(1, 4), replace=False)) for _ in range(16)]
    pairs = TruePairs.of(np.repeat(np.arange(16), [len(a) for a in answers]), np.concatenate(answers))
    task = task_of_pairs(corpus, queries, np.arange(16), pairs)
    found = mixed_means(mixed_scores(Rows(image, "image"), Rows(text, "text"), [task], (1, 4)))
    assert flat(found) == pytest.approx(by_definition(image, text, [task], lambda _, q: answers[q], (1, 4)))
    assert {"image", "text", "both"} <= set(found)


def one_of_each(count: int, per_image: int = 2) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    image = np.eye(count, count + 1, dtype=np.float32)
    return image, np.repeat(image, per_image, axis=0), np.repeat(np.arange(count), per_image)


def test_perfect_embeddings_find_all_and_collapsed_ones_what_chance_finds() -> None:
    image, text, owner = one_of_each(40)
    found = evaluate_mixed(image, text, owner)
    assert all(value == 1.0 for value in flat(found).values())
    collapsed = evaluate_mixed(np.ones((40, 3)), np.ones((80, 3)), owner)
    # All scores are equal, so the first k of the corpus are listed, whoever asks.
    assert (collapsed["R@1"], collapsed["R@10"]) == (1 / 40, 10 / 40)


def test_a_gap_that_no_pair_can_cross_hides_all_items_of_the_other_modality() -> None:
    """Images and texts far apart, each modality perfect in itself: R@K in one direction sees nothing of it."""
    image, text, owner = one_of_each(40)
    image[:, -1], text[:, -1] = 3, -3
    found = evaluate_mixed(image, text, owner)
    assert (found["text"]["R@1"], found["image"]["R@10"], found["image_queries"]["R@10"]) == (1, 0, 0)
    assert found["R@10"] == pytest.approx(0.5)
    quarter = evaluate_mixed(image, text, owner, share=0.25)
    assert quarter["R@1"] == pytest.approx(0.75)
    # Twenty texts come before any image, and then the right image is the first.
    assert evaluate_mixed(image, text, owner, ks=(20, 21))["image"] == {"R@20": 0.0, "R@21": 1.0}


def test_arrays_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(InputError, match="no image has two texts"):
        evaluate_mixed(rows(0, 12), rows(1, 12), np.arange(12))
    with pytest.raises(InputError, match="differ in dimension: 6 against 5"):
        evaluate_mixed(rows(0, 12), rows(1, 24, 5), np.arange(24) % 12)
    for wrong, message in (
        ({"share": -0.5}, "share: expected a number from 0"),
        ({"draws": 0}, "draws: expected an int"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_mixed(rows(0, 12), rows(1, 24), np.arange(24) % 12, **wrong)
    with pytest.raises(InputError, match="k = 13 but the gallery holds 12 images"):
        evaluate_mixed(rows(0, 12), rows(1, 24), np.arange(24) % 12, ks=(13,))
