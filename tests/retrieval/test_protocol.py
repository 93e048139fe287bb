"""Protocols against slow definitions: folds, first captions, many answers, graded judgements; backends agree."""

# ruff: noqa: E501 (a message is easier to read on one line)

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.judgements import read_judgements
from cs_aligner_cli.retrieval import Rows, evaluate_retrieval, score_tiles
from cs_aligner_cli.retrieval.metrics import summarise
from cs_aligner_cli.retrieval.protocol import caption_protocol, evaluate, judged
from cs_aligner_cli.retrieval.scan import TruePairs, scan

Floats = npt.NDArray[np.float32]


def rows(seed: int, count: int, width: int = 6) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def tied(seed: int, count: int, width: int = 4) -> Floats:
    return np.random.default_rng(seed).integers(-1, 2, size=(count, width)).astype(np.float32)


def order_of(query: Floats, gallery: Floats) -> list[int]:
    """All items by the rule, from float64 sums."""
    unit = torch.nn.functional.normalize(torch.from_numpy(np.vstack([query, gallery])), dim=1).double().numpy()
    scores = np.array([math.fsum(unit[0] * row) for row in unit[1:]], np.float32)
    return list(np.argsort(-scores, kind="stable"))


def measured(image: Floats, text: Floats, protocol, ks=(1, 3)):
    pair = Rows(image, "image"), Rows(text, "text")
    return evaluate({"i2t": pair, "t2i": pair}, protocol, ks)


def test_folds_are_galleries_of_their_own_and_pool_their_queries() -> None:
    image, text, owner = rows(0, 20), rows(1, 60), np.random.default_rng(2).permutation(np.repeat(np.arange(20), 3))
    found = summarise({d: e.scores for d, e in measured(image, text, caption_protocol(owner, 20, 60, folds=5)).items()})
    apart = []
    for fold in range(5):
        images = np.arange(4 * fold, 4 * fold + 4)
        texts = np.flatnonzero(np.isin(owner, images))
        apart.append(evaluate_retrieval(image[images], text[texts], owner[texts] - 4 * fold, ks=(1, 3)))
    for direction in ("i2t", "t2i"):
        for metric in ("R@1", "R@3", "mAP", "MRR", "mean_rank"):
            assert found[direction][metric] == pytest.approx(np.mean([one[direction][metric] for one in apart]))
    assert (found["i2t"]["queries"], found["t2i"]["queries"]) == (20, 60)


def test_the_first_captions_of_each_image_are_kept_and_captions_without_image() -> None:
    owner = np.array([2, 0, -1, 2, 0, 2, 1, 2])
    protocol = caption_protocol(owner, 3, 8, captions_per_image=2)
    assert protocol.galleries[0][1].tolist() == [0, 1, 2, 3, 4, 6]
    kept = protocol.galleries[0][1]
    image, text = rows(0, 3), rows(1, 8)
    found = {d: e.scores for d, e in measured(image, text, protocol, ks=(1,)).items()}
    expected = evaluate_retrieval(image, text[kept], owner[kept], ks=(1,))
    assert summarise(found) == expected
    assert found["t2i"].queries.tolist() == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("make", [rows, tied])
def test_many_to_many_and_graded_judgements_follow_the_definitions(make) -> None:
    rng = np.random.default_rng(5)
    image, text = make(0, 12), make(1, 30)
    judgements = {(int(q), int(i)): float(g) for q, i, g in zip(rng.integers(12, size=90), rng.integers(30, size=90), rng.integers(0, 4, size=90), strict=True)}  # fmt: skip
    query, item = np.array(list(judgements)).T
    grade = np.array(list(judgements.values()))
    protocol = judged(caption_protocol(np.arange(30) % 12, 12, 30), "i2t", query, item, grade)
    scored = measured(image, text, protocol)["i2t"].scores
    for place, row in enumerate(scored.queries):
        order = order_of(image[row : row + 1], text)
        grades = {i: g for (q, i), g in judgements.items() if q == row}
        true = sorted(1 + order.index(i) for i, g in grades.items() if g > 0)
        assert scored.ranks[place] == true[0]
        assert scored.values["mAP"][place] == pytest.approx(np.mean([n / r for n, r in enumerate(true, 1)]))
        assert scored.values["R@3"][place] == (true[0] <= 3)
        gains = [grades.get(i, 0) / math.log2(2 + r) for r, i in enumerate(order[:3])]
        ideal = [g / math.log2(2 + r) for r, g in enumerate(sorted(grades.values(), reverse=True)[:3])]
        assert scored.values["nDCG@3"][place] == pytest.approx(sum(gains) / sum(ideal))
        unit = torch.nn.functional.normalize(torch.from_numpy(np.vstack([image[row], text])), dim=1).double()
        scores = (unit[1:] @ unit[0]).float().numpy()
        if len(set(grades.values())) > 1 and len({float(scores[i]) for i in grades}) > 1:
            expected = spearmanr([scores[i] for i in grades], list(grades.values())).statistic
            assert scored.values["spearman"][place] == pytest.approx(expected)
        else:
            assert np.isnan(scored.values["spearman"][place])
    judged_rows = {q for (q, _), g in judgements.items() if g > 0}
    assert scored.queries.tolist() == sorted(judged_rows)


@pytest.mark.parametrize("make", [rows, tied])
def test_the_torch_backend_gives_what_the_numpy_backend_gives(make, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = Rows(make(0, 300), "x"), Rows(make(1, 1500), "y")
    owner = np.random.default_rng(2).integers(300, size=1500)
    pairs = TruePairs.of(owner, np.arange(1500)), TruePairs.of(np.arange(1500), owner)
    for name, value in {"TILE_ROWS": 128, "TILE_COLUMNS": 1024}.items():
        monkeypatch.setattr(score_tiles, name, value)
    numpy_found = scan(x, y, *pairs, k=7)
    monkeypatch.setattr(score_tiles, "_TOOLS", {})
    for ours, theirs in zip(numpy_found, scan(x, y, *pairs, k=7), strict=True):
        assert ours is not None and theirs is not None
        np.testing.assert_array_equal(ours.ranks, theirs.ranks)
        np.testing.assert_array_equal(ours.top_ids, theirs.top_ids)


def test_a_store_in_half_precision_gives_what_its_widened_rows_give() -> None:
    class Halves:
        """Rows as a store with float16 shards gives them."""

        def __init__(self, array: npt.NDArray[np.float16]) -> None:
            self.array, self.shape = array, array.shape

        def take(self, chosen: npt.NDArray[np.int64]) -> Floats:
            return self.array[chosen].astype(np.float32)

    image, text = rows(0, 30).astype(np.float16), rows(1, 90).astype(np.float16)
    owner = np.arange(90) % 30
    expected = evaluate_retrieval(image.astype(np.float32), text.astype(np.float32), owner)
    assert evaluate_retrieval(Halves(image), Halves(text), owner) == expected  # type: ignore[arg-type]
    assert evaluate_retrieval(image, text, owner) == expected


IDS = {"image": pd.Series(["a.jpg", "b.jpg"]), "text": pd.Series(["00", "01", "02"])}


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "judged.csv").write_text("query,item,score\n" + text)
    return tmp_path / "judged.csv"


def test_a_judgement_table_goes_to_the_direction_of_its_queries(tmp_path: Path) -> None:
    plain = caption_protocol(np.array([0, 0, 1]), 2, 3)
    protocol = plain
    for direction, found in read_judgements(table(tmp_path, "b.jpg,02,3\na.jpg,01,0.5\nb.jpg,00,1\n"), IDS).items():
        protocol = judged(protocol, direction, *found)
    pairs = protocol.pairs["i2t"]
    assert list(zip(pairs.query, pairs.item, protocol.grades["i2t"], strict=True)) == [
        (0, 1, 0.5),
        (1, 0, 1),
        (1, 2, 3),
    ]
    assert protocol.pairs["t2i"] is plain.pairs["t2i"]
    assert "t2i" not in protocol.grades


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpgg,00,1\n", "row 0 (counted from 0): query 'a.jpgg' is no image and no caption of the split; did you mean a.jpg?"),
        ("a.jpg,00,1\nb.jpg,09,1\n", "row 1 (counted from 0): item '09' is no image"),
        ("a.jpg,00,-1\n", "row 0 has the score '-1'; expected a number of at least 0"),
        ("a.jpg,00,good\n", "row 0 has the score 'good'"),
        ("a.jpg,b.jpg,1\n", "row 0 judges 'a.jpg' and 'b.jpg', which are of one modality"),
        ("a.jpg,00,1\na.jpg,00,2\n", "row 1 judges 'a.jpg' and '00' a second time"),
    ],
)  # fmt: skip
def test_a_wrong_judgement_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_judgements(table(tmp_path, text), IDS)
    assert message in str(caught.value)


def test_a_protocol_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="folds = 9, but there are 2 images"):
        caption_protocol(np.array([0, 0, 1]), 2, 3, folds=9)
    protocol = caption_protocol(np.arange(12) % 4, 4, 12, folds=2)
    with pytest.raises(InputError, match="k = 3 but the gallery holds 2 images"):
        measured(rows(0, 4), rows(1, 12), protocol, ks=(3,))
    none = judged(caption_protocol(np.arange(3), 3, 3), "i2t", np.array([0]), np.array([1]), np.array([0.0]))
    with pytest.raises(InputError, match="i2t: no query has a true answer"):
        measured(rows(0, 3), rows(1, 3), none, ks=(1,))
