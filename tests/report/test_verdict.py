"""The verdict: each kind of change to a store of pairs gets its sentence, decided by tests alone."""

from __future__ import annotations

import numpy as np
import pytest

from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.metrics import measure_headline
from cs_aligner_cli.gap.recall import recall_spreads
from cs_aligner_cli.gap.results import Measurement
from cs_aligner_cli.report import headline
from cs_aligner_cli.report.verdict import outcome, verdict

N, D = 400, 24


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(noise=0.9, gap=0.0, mean=0.0, seed=0):
    """Pairs that share a signal; ``gap`` parts the clouds, ``mean`` moves both the same way."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((N, D)) / D**0.5
    image, text = (shared + noise * rng.standard_normal((N, D)) / D**0.5 for _ in range(2))
    image[:, 0], text[:, 0] = image[:, 0] + gap, text[:, 0] - gap
    image[:, 1], text[:, 1] = image[:, 1] + mean, text[:, 1] + mean
    return unit(image), unit(text)


def rotation(seed=1):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]


def report(**stores):
    """A report on stores of the same pairs; the last is the subject."""
    found = {
        "stores": {},
        "null": {},
        "tests": {},
        "retrieval": {},
        "kinds": {n: "baseline" if "+" in n else "store" for n in stores},
    }
    measured = {}
    for name, (image, text) in stores.items():
        gap = measure_headline(image, text)
        recalls = recall_spreads(image, text, np.arange(N), (1, 10), seed=0)
        means = {k: value for k, (value, _) in recalls["mean"].items()}
        spreads = {k: spread for k, (_, spread) in recalls["mean"].items()}
        measured[name] = Measurement({**gap.values, **means}, {**gap.spreads, **spreads})
        for part in ("null", "tests"):
            found[part][name] = getattr(gap, part)
        found["stores"][name] = gap.values
        found["retrieval"][name] = {d: {k: v for k, (v, _) in recalls[d].items()} for d in ("i2t", "t2i")}
    own = [name for name, kind in found["kinds"].items() if kind == "store"]
    found["subject"] = own[-1]
    found["differences"] = differences(measured, own[-1], headline.tested_metrics(found))
    return found


def judged(before, after):
    found = report(before=before, after=after)
    (paragraph,) = verdict(found)
    return outcome(found, "before", "after"), paragraph.replace("\N{NO-BREAK SPACE}", " ")


def test_a_shift_alone_is_called_a_shift() -> None:
    """mean_shift: paired cosine rises by much, and yet nothing is known better than before."""
    image, text = pairs(gap=0.5)
    half = (image.mean(0) - text.mean(0)) / 2
    kind, words = judged((image, text), (image - half, text + half))
    assert kind == "shift"
    assert "closed" in words
    assert "more than before: no shift" not in words
    assert "cosine" not in words


def test_centring_closes_the_gap_and_wins_nothing() -> None:
    image, text = pairs(gap=0.3)
    kind, words = judged((image, text), (image - image.mean(0), text - text.mean(0)))
    assert kind == "shift"
    assert "a shift of one cloud can do that much" in words
    assert "No gap can be told any more" in words


def test_a_common_mean_only_shrinks_both_clouds() -> None:
    image, text = pairs(gap=0.3)
    common = 1.5 * np.eye(D)[1]
    kind, words = judged((image, text), (unit(image + common), unit(text + common)))
    assert kind == "scale"
    assert "Both clouds shrank, and the gap with them" in words


def test_a_rotation_of_both_changes_nothing_and_of_one_tears_pairs_apart() -> None:
    image, text = pairs(gap=0.3)
    turn = rotation()
    assert judged((image, text), (image @ turn, text @ turn))[0] == "same"
    kind, words = judged(pairs(), (pairs()[0], pairs()[1] @ turn))
    assert kind == "apart"
    assert "pairs stand out from strangers less" in words.lower()
    assert "it cost" in words


def test_a_collapse_is_called_one() -> None:
    rng = np.random.default_rng(2)
    image, text = pairs(gap=0.3)
    point = np.eye(D)[2] * 10
    collapsed = tuple(unit(z + 5 * rng.standard_normal(z.shape) / D**0.5 + 5 * point) for z in (image, text))
    kind, words = judged((image, text), collapsed)
    assert kind == "collapse"
    assert "The rows collapsed" in words
    assert "R@1" in words


def test_a_true_alignment_is_called_one() -> None:
    kind, words = judged(pairs(gap=0.3, noise=1.2), pairs(noise=0.6))
    assert kind == "alignment"
    assert words.startswith("after closed ")
    assert "it won" in words
    assert "pairs stand out from strangers more than before: no shift does that" in words
    assert words.endswith("This covers the choice of test pairs, not the seed of training: one run was measured.")


def test_other_samples_of_one_store_show_no_difference() -> None:
    image, text = pairs(seed=3)
    noise = 0.02 * np.random.default_rng(4).standard_normal((2, N, D)) / D**0.5
    assert judged((image, text), (unit(image + noise[0]), unit(text + noise[1])))[0] == "same"


def test_the_control_comes_first_and_the_best_free_alternative_is_named() -> None:
    frozen, control, aligned = pairs(gap=0.5, noise=1.2), pairs(gap=0.3, noise=0.7), pairs(noise=0.7)
    centred = tuple(z - z.mean(0) for z in control)
    free = {"frozen+centred": tuple(z - z.mean(0) for z in frozen)}
    stores = {"frozen": frozen, **free, "pairwise_only": control, "pairwise_only+centred": centred, "aligned": aligned}
    first, second = verdict(report(**stores))
    assert "its control pairwise_only" in first
    assert "Of what needs no training, frozen+centred retrieves best" in first
    assert "a lower R@1 than aligned" in first
    assert "with pairwise_only+centred" in first
    assert "no difference to aligned in either is shown" in first
    assert "centroid gap of frozen" in second


@pytest.mark.parametrize(("p", "words"), [(0.2, "No gap can be told any more"), (0.01, "A gap is left")])
def test_only_the_test_says_that_no_gap_can_be_told(p: float, words: str) -> None:
    """Below the level without a gap or above it: the sentence follows the p value."""
    for gap in (0.01, 0.03):
        data = {
            "stores": {"a": {"centroid_gap": gap}},
            "null": {"a": {"centroid_gap": 0.02}},
            "tests": {"a": {"centroid_gap": p}},
        }
        (paragraph,) = verdict(data)
        assert f"{words} ({gap:.3f} where 0.020 is read without any, p = {p:.3f})." in paragraph


def test_over_seeds_the_seeds_decide() -> None:
    found = report(before=pairs(gap=0.3, noise=1.2), after=pairs(noise=0.6))
    rows = [
        {**row, "clear": False, "p_holm": 0.4, "interval": [-1.0, 1.0]}
        for row in found["differences"]
        if row["headline"]
    ]
    values = {name: [{**found["stores"][name], "R@1": 0.5}] * 3 for name in found["stores"]}
    found["seeds"] = {"runs": ["a", "b", "c"], "stores": values, "differences": rows}
    (paragraph,) = verdict(found)
    assert "no difference" in paragraph
    assert "over 3 runs, and the choice of test pairs. So few runs can show only what differs by far." in paragraph


def test_one_store_alone_and_none() -> None:
    (words,) = verdict(report(a=pairs(gap=0.5)))
    assert words.startswith("a has a centroid gap of 0.")
    assert words.endswith("There is no other store to compare it with.")
    (words,) = verdict({"stores": {"frozen": {}}})
    assert "no gap between them can be measured yet" in words
