"""Reranking with scores whose answers are known: an oracle, its opposite, ties, and what lies beyond the first hits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from samples import random_rows

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval import evaluate_retrieval
from cs_aligner_cli.retrieval.metrics import DIRECTIONS
from cs_aligner_cli.retrieval.protocol import Evaluated, caption_protocol, evaluate
from cs_aligner_cli.retrieval.rerank import Reranker
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.scores import Scores

OWNER = np.repeat(np.arange(30), 2)  # two texts an image
X, Y = random_rows(0, 30, 4), random_rows(1, 60, 4)
ROWS = Rows(X, "image"), Rows(Y, "text")


def measured(reranker: Reranker | None = None, folds: int = 1) -> dict[str, Evaluated]:
    protocol = caption_protocol(OWNER, 30, 60, folds)
    return evaluate(dict.fromkeys(DIRECTIONS, ROWS), protocol, (1, 5), 12, reranker=reranker)


def right(image: Ints, text: Ints) -> Scores:
    return (OWNER[text] == image).astype(np.float32)


@pytest.mark.parametrize("folds", [1, 3])
def test_an_oracle_puts_first_what_it_sees_and_changes_nothing_beyond(folds: int) -> None:
    """R@1 becomes the former R@k, ranks beyond k stay, and every item is still there once."""
    plain, better = measured(folds=folds), measured(Reranker(6, right), folds)
    for way in DIRECTIONS:
        before, after = plain[way].scores.ranks, better[way].scores.ranks
        np.testing.assert_array_equal(after, np.where(before <= 6, 1, before))
        np.testing.assert_array_equal(plain[way].scores.queries, better[way].scores.queries)
        np.testing.assert_array_equal(plain[way].top_ids[:, 6:], better[way].top_ids[:, 6:])
        np.testing.assert_array_equal(np.sort(plain[way].top_ids), np.sort(better[way].top_ids))
        assert (before <= 6).mean() > (before == 1).mean() + 0.1


def test_mean_precision_follows_all_true_answers() -> None:
    """With all of the gallery reranked by an oracle every true answer comes before every other."""
    found = measured(Reranker(60, right))
    assert all((way.scores.values["mAP"] == 1).all() for way in found.values())
    worst = measured(Reranker(60, lambda image, text: -right(image, text)))
    assert (worst["i2t"].scores.ranks == 59).all() and (worst["t2i"].scores.ranks == 30).all()


@pytest.mark.parametrize(
    "score",
    [
        pytest.param(lambda image, text: np.zeros(len(image), np.float32), id="ties keep the order"),
        pytest.param(lambda image, text: (X[image] * Y[text]).sum(1).astype(np.float32), id="the search's own score"),
    ],
)
def test_scores_that_say_nothing_new_change_nothing(score: Callable[[Ints, Ints], Scores]) -> None:
    plain, same = measured(), measured(Reranker(8, score))
    for way in DIRECTIONS:
        np.testing.assert_array_equal(plain[way].top_ids, same[way].top_ids)
        for metric, values in plain[way].scores.values.items():
            np.testing.assert_array_equal(values, same[way].scores.values[metric])


def test_the_python_surface_takes_one_too() -> None:
    plain, better = (evaluate_retrieval(X, Y, OWNER, (1, 10), reranker=r) for r in (None, Reranker(10, right)))
    for way in DIRECTIONS:
        assert better[way]["R@1"] == better[way]["R@10"] == plain[way]["R@10"] > plain[way]["R@1"]
